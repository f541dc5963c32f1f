"""Export to a directory that plain transformers loads as LLaVA; the proof is a reload in a fresh process.

Only what LLaVA can express: an HFVision tower, the two-layer MLP, a language model that takes embeddings as they are.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AddedToken, LlavaConfig, LlavaForConditionalGeneration, LlavaImageProcessor, LlavaProcessor

from gnomon.vlm.connectors.mlp import MLP
from gnomon.vlm.directory import whole
from gnomon.vlm.encoders.hf import HFVision
from gnomon.vlm.export.chat import chat_template
from gnomon.vlm.layout import IGNORE, Batch, Kind, TokenLayout
from gnomon.vlm.model import VLM

IMAGE_TOKEN = "<image>"

# Run by a Python that never imports this package
_RELOAD = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

path, given, found = sys.argv[1:]
model, report = LlavaForConditionalGeneration.from_pretrained(path, dtype="auto", output_loading_info=True)
missing = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
if missing:
    sys.exit(f"weights missing or unexpected: {missing[:3]}")
token = AutoProcessor.from_pretrained(path).tokenizer.convert_tokens_to_ids("<image>")
if token != model.config.image_token_id:
    sys.exit(f"the tokenizer's image token is {token}, the model's {model.config.image_token_id}")
given = load_file(given)
model.eval()
with torch.no_grad():
    logits = model(input_ids=given["ids"], pixel_values=given["pixels"].to(model.dtype)).logits
save_file({"logits": logits}, found)
"""


def export_hf(model: VLM, path: str | Path) -> Path:
    """Write the directory, all or nothing; an earlier export there is replaced."""
    path = Path(path)
    if reason := obstacle(model):
        raise ValueError(f"this model cannot be exported to hf: {reason}")
    with whole(path, ours=_is_llava) as draft:
        tokenizer = _tokenizer(model)
        token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        _llava(model, token).save_pretrained(draft)
        _processor(model, tokenizer).save_pretrained(draft)
    return path


def obstacle(model: VLM) -> str | None:
    """Why LLaVA cannot express this model, in one line."""
    encoder, connector, image = model.encoder, model.connector, model.image
    if not isinstance(encoder, HFVision):
        return f"its encoder is {type(encoder).__name__}; LLaVA in transformers takes HFVision towers"
    if not (isinstance(connector, MLP) and connector.depth == 2):
        return f"its connector is {type(connector).__name__}; LLaVA in transformers takes an MLP of depth 2"
    if model.lm.model.config.model_type.startswith("gemma"):
        return "gemma scales its embeddings, which LLaVA in transformers does to image features too"
    if encoder.normed:
        return "its tower ends with a norm that LLaVA in transformers skips; train with layer -2"
    if encoder.prefix > 1:
        return f"its tower has {encoder.prefix} tokens before the patches; LLaVA in transformers drops one at most"
    if model.compute is not None:
        return f"its layers spare visual tokens ({type(model.compute).__name__}), which transformers does not know"
    if placed := sorted({**model.lm.operators, **model.lm.mixed}):
        return f"its layers {placed} have no softmax attention, which LLaVA in transformers has in every layer"
    if image.fit == "anyres":
        return "its images come in crops, which LLaVA in transformers does not know; use image_fit pad, crop or resize"
    side = encoder.config.image_size
    if image.size != (side, side):
        return f"its image size is {image.size}; LLaVA in transformers wants the tower's own, {(side, side)}"
    return None


@torch.no_grad()
def compare(path: str | Path, model: VLM, *, limit: float | None = None) -> float:
    """Largest absolute difference of logits between the directory, reloaded by plain transformers, and the model.

    limit: what is an error above; by default this share of the largest logit: 1e-5 in float32, 2e-2 in half precision.
    """
    token = LlavaConfig.from_pretrained(path).image_token_id
    batch = _example(model, token)
    ours = model(batch).logits.float().cpu()
    pixels = ((batch.pixels[0].cpu() / 255 - model.mean.cpu()) / model.std.cpu())[None]
    ids = batch.ids.masked_fill(batch.layout.is_image, token).cpu()
    theirs = _reloaded(Path(path), ids, pixels)
    difference = (theirs[..., : ours.shape[-1]] - ours).abs().max().item()
    if limit is None:
        exact = all(p.dtype == torch.float32 for p in model.parameters())
        limit = (1e-5 if exact else 2e-2) * max(1.0, ours.abs().max().item())
    # not "difference > limit": a nan must not pass
    if not difference <= limit:
        raise ValueError(f"{path} reloads with logits {difference:.2e} apart, more than {limit:.0e}; do not use it")
    return difference


def _reloaded(path: Path, ids: Tensor, pixels: Tensor) -> Tensor:
    """Logits of the directory, from a process that has never heard of this package."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.safetensors", Path(folder) / "found.safetensors"
        save_file({"ids": ids, "pixels": pixels}, given)
        command = [sys.executable, "-c", _RELOAD, str(path.resolve()), str(given), str(found)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ValueError(f"{path} cannot be reloaded by transformers: {reason}")
        return load_file(found)["logits"].float()


def _is_llava(path: Path) -> bool:
    file = path / "config.json"
    return file.is_file() and '"LlavaForConditionalGeneration"' in file.read_text()


def _tokenizer(model: VLM) -> Any:
    """A copy of the model's tokenizer, with a token for the image."""
    tokenizer = deepcopy(model.tokenizer)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def _llava(model: VLM, token: int) -> nn.Module:
    """The model in transformers' class, on our own weights."""
    encoder, lm = model.encoder, model.lm.model
    rows = max(lm.config.vocab_size, token + 1)
    # the blocks after the chosen one are gone, and with them what names them
    gone = ("out_features", "out_indices")
    vision = {key: value for key, value in encoder.config.to_dict().items() if key not in gone}
    config = LlavaConfig(
        vision_config={**vision, "num_hidden_layers": encoder.blocks, "vision_use_head": False},
        text_config={**lm.config.to_dict(), "vocab_size": rows},
        image_token_index=token,
        image_seq_length=(model.image.size[0] // encoder.stride) * (model.image.size[1] // encoder.stride),
        vision_feature_layer=-1,
        vision_feature_select_strategy=_strategy(encoder),
        projector_hidden_act="gelu",
        tie_word_embeddings=lm.config.tie_word_embeddings,
        dtype=str(model.connector.layers[0].weight.dtype).removeprefix("torch."),
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    state = {}
    # older transformers wrap the tower once more
    tower = "model.vision_tower." + ("vision_model." if hasattr(llava.model.vision_tower, "vision_model") else "")
    for name, tensor in encoder.tower.state_dict().items():
        state[tower + name] = tensor
    for ours, theirs in (("layers.0", "linear_1"), ("layers.2", "linear_2")):
        for name, tensor in model.connector.get_submodule(ours).state_dict().items():
            state[f"model.multi_modal_projector.{theirs}.{name}"] = tensor
    for name, tensor in lm.state_dict().items():
        state[name.replace("model.", "model.language_model.", 1)] = tensor
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        state[name] = _extended(state[name], rows)
    for name, tensor in llava.state_dict().items():
        # what LLaVA has but never uses, such as the norm of the pooled token
        if name not in state and name.startswith(tower):
            state[name] = torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)
    llava.load_state_dict(state, assign=True)
    llava.tie_weights()
    llava.generation_config = deepcopy(lm.generation_config)
    return llava


def _extended(weight: Tensor, rows: int) -> Tensor:
    """Rows for new tokens: the mean of the others, so that none is more likely than an average word."""
    return torch.cat([weight, weight.mean(0, keepdim=True).expand(rows - len(weight), -1)])


def _strategy(encoder: HFVision) -> str:
    return "default" if encoder.prefix else "full"


def _processor(model: VLM, tokenizer: Any) -> LlavaProcessor:
    """Prompt and pixels as in training; where padding meets the picture, pixels may differ by rounding."""
    encoder, image = model.encoder, model.image
    height, width = image.size
    crop = image.fit == "crop"
    pixels = LlavaImageProcessor(
        do_pad=image.fit == "pad",
        size={"shortest_edge": height} if crop else {"height": height, "width": width},
        do_center_crop=crop,
        crop_size={"height": height, "width": width},
        image_mean=list(image.mean),
        image_std=list(image.std),
    )
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=encoder.stride,
        vision_feature_select_strategy=_strategy(encoder),
        chat_template=chat_template(model.template),
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=encoder.prefix,
    )


def _example(model: VLM, token: int) -> Batch:
    """Two words, an image, three words, none of which is the image token; always the same."""
    h, w = model.image.grid(*model.image.size)
    generator = torch.Generator().manual_seed(0)
    kind = torch.tensor([[Kind.TEXT] * 2 + [Kind.IMAGE] * h * w + [Kind.TEXT] * 3])
    layout = TokenLayout.text(*kind.shape)
    layout = replace(layout, kind=kind, image=torch.where(kind == Kind.IMAGE, 0, -1))
    layout.cell[0, 2 : 2 + h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    ids = torch.randint(model.lm.model.config.vocab_size, kind.shape, generator=generator)
    ids[ids == token] = 0
    pixels = torch.randint(256, (3, *model.image.size), generator=generator).to(torch.uint8)
    batch = Batch(ids=ids, labels=torch.full_like(ids, IGNORE), layout=layout, pixels=[pixels])
    return batch.to(model.mean.device)
