"""Checkpoint: a vision-language model as transformers saves it, and the gnomon model directory made of it.

A family (llava.py, qwen2_5_vl.py) says what a checkpoint's parts are in our terms and how its weights are named; the
weights themselves are the same tensors under other names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

from gnomon.vlm.importing import llava, qwen2_5_vl
from gnomon.vlm.save import from_config, save


class Family(Protocol):
    """names: (theirs, ours) beginnings of weights' names, the first that fits counts. unused: of ours, left over."""

    names: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]

    def describe(self, config: Any, processor: Any) -> dict[str, Any]:
        """VLM's arguments, but for the language model and the template."""


FAMILIES: dict[str, Family] = {
    "llava": llava.Llava(),
    "llava_next": llava.LlavaNext(),
    "qwen2_5_vl": qwen2_5_vl.Qwen2_5VLFamily(),
}


@dataclass
class Checkpoint:
    """model and processor are transformers' own."""

    path: str
    model: nn.Module
    processor: Any

    def chat(self, messages: list[dict[str, Any]]) -> str | None:
        """What the checkpoint's chat template makes of messages, with `<image>` for images; None if it has none."""
        if not getattr(self.processor, "chat_template", None):
            return None
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text.replace(self.processor.image_token, "<image>")

    def inputs(self, text: str, image: Any) -> dict[str, Tensor]:
        """Text with `<image>` for an image, as the checkpoint's own processor has it."""
        text = text.replace("<image>", self.processor.image_token)
        inputs = self.processor(text=[text], images=[image], return_tensors="pt")
        return {name: x.to(self.model.dtype) if x.is_floating_point() else x for name, x in inputs.items()}


def read(path: str) -> Checkpoint:
    """A directory or a hub id."""
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if config.model_type not in FAMILIES:
            raise ValueError(f"it is a {config.model_type!r}, not one of {', '.join(FAMILIES)}")
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        # images are resized by Pillow here; the other backends round differently
        pillow = {"backend": "pil"} if hasattr(transformers, "PilBackend") else {"use_fast": False}
        processor.image_processor = AutoImageProcessor.from_pretrained(path, trust_remote_code=False, **pillow)
        model, info = AutoModelForImageTextToText.from_pretrained(
            path, trust_remote_code=False, dtype="auto", output_loading_info=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{path} cannot be imported: {str(error).strip().splitlines()[0]}") from error
    except RuntimeError as error:
        raise ValueError(
            f"{path} cannot be imported: its weights do not have the shapes of config.json; use another copy"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{path} lacks {len(missing)} weights, such as {missing[0]}; use another copy")
    return Checkpoint(path, model, processor)


def convert(checkpoint: Checkpoint, out: str | Path, *, template: str) -> Path:
    """Write the model directory, all or nothing."""
    theirs, config = checkpoint.model, checkpoint.model.config
    family = FAMILIES[config.model_type]
    text = config.text_config.to_dict()
    text["dtype"] = str(theirs.dtype).removeprefix("torch.")
    text["tie_word_embeddings"] = theirs.get_output_embeddings().weight is theirs.get_input_embeddings().weight
    description = {
        **family.describe(config, checkpoint.processor),
        "lm": {"class_path": "gnomon.vlm.hf.CausalLM", "init_args": {"config": text, "tokenizer": checkpoint.path}},
        "template": template,
    }
    # shapes without memory: the weights exist already
    with torch.device("meta"):
        ours = from_config(description)
    state = _renamed(theirs.state_dict(), family)
    wanted = ours.state_dict()
    lacks, extra = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    extra = [name for name in extra if not name.startswith(family.unused)]
    for names, what in ((lacks, "lacks"), (extra, "has beyond what the model needs")):
        if names:
            raise ValueError(
                f"{checkpoint.path} {what} {len(names)} weights, such as {names[0]}; it cannot be imported"
            )
    meta = {
        "imported": checkpoint.path,
        "architecture": type(theirs).__name__,
        "transformers": transformers.__version__,
    }
    return save(ours, out, meta=meta, state={name: state[name] for name in wanted})


def _renamed(state: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    found = {}
    for name, tensor in state.items():
        for theirs, ours in family.names:
            if name.startswith(theirs):
                found[ours + name.removeprefix(theirs)] = tensor
                break
        else:
            raise ValueError(f"weight {name} has no place in the model; the checkpoint cannot be imported")
    return found
