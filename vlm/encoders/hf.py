"""HFVision: the vision tower of a Hugging Face checkpoint (CLIP, SigLIP, DINOv2), as LLaVA and its relatives use it.

Origin:  https://github.com/huggingface/transformers
Rule:    hidden state after one block, class and register tokens split off, in raster order;
         scores for reducers from the attention of the same block
Where:   the vision encoder
Differs: blocks after the chosen one, pooling heads and norms that the chosen state does not pass are deleted
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from gnomon.vlm import taps
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.layout import Features

# Per model type: where the blocks are, the final norm, whether the patch tokens pass that norm, tokens before them
_TOWERS = {
    "clip_vision_model": ("encoder.layers", "post_layernorm", False, 1),
    "siglip_vision_model": ("encoder.layers", "post_layernorm", True, 0),
    "dinov2": ("encoder.layer", "layernorm", True, 1),
    "dinov2_with_registers": ("encoder.layer", "layernorm", True, 1),
}


class HFVision(Encoder):
    """path: a directory or a hub name, of a vision model or of one with a vision part. Or config: random weights.

    layer: block whose output is taken; -1 is the last one, with the model's final norm where its tokens pass one;
    -2 (LLaVA's choice) is the block before it.
    """

    def __init__(self, path: str | None = None, *, config: dict[str, Any] | None = None, layer: int = -2) -> None:
        super().__init__()
        if (path is None) == (config is None):
            raise ValueError("HFVision takes either path or config; give exactly one of them")
        tower = _random(config) if path is None else _pretrained(path)
        # older transformers wrap the tower once more; without the wrapper the names are the same everywhere
        self.tower = getattr(tower, "vision_model", tower)
        self.config: PretrainedConfig = tower.config
        self.layer = layer
        self.width = self.config.hidden_size
        self.stride = self.config.patch_size
        blocks, norm, normed, prefix = _TOWERS[self.config.model_type]
        self.prefix = prefix + getattr(self.config, "num_register_tokens", 0)
        depth = self.config.num_hidden_layers
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer} does not exist in a tower of {depth} blocks; use {-depth} to {depth - 1}")
        self.blocks = layer % depth + 1
        self.normed = normed and self.blocks == depth
        self._cut(blocks, norm)

    def _cut(self, blocks: str, norm: str) -> None:
        """Delete what the chosen state does not depend on."""
        self.tower.set_submodule(blocks, self.tower.get_submodule(blocks)[: self.blocks])
        if not self.normed:
            setattr(self.tower, norm, nn.Identity())
        if hasattr(self.tower, "head"):
            self.tower.use_head = False
            del self.tower.head
        if hasattr(self.tower.embeddings, "mask_token"):
            self.tower.embeddings.mask_token = None

    def spec(self) -> dict[str, Any]:
        config = self.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(key, None)
        return {**super().spec(), "init_args": {"config": config, "layer": self.layer}}

    def forward(self, pixels: Tensor, want: frozenset[str] = frozenset()) -> Features:
        height, width = pixels.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"image size {(height, width)} is not a multiple of the patch's {self.stride}; round it")
        # DINOv2 resamples its positions unasked
        options = {} if self.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
        wanted = want & taps.NAMES
        block = self.tower.get_submodule(_TOWERS[self.config.model_type][0])[-1]
        with taps.watched(block) if wanted else nullcontext() as seen:
            hidden = self.tower(pixels, **options).last_hidden_state
        tokens, has_cls, scores = hidden[:, self.prefix :], self.prefix > 0, {}
        if seen is not None:
            scores = taps.read(seen, wanted, cells=tokens.shape[1], prefix=self.prefix, cls=has_cls)
        return Features(
            tokens=tokens,
            grid=[(height // self.stride, width // self.stride)] * len(hidden),
            cls=hidden[:, 0] if has_cls else None,
            **scores,
        )


def _known(config: PretrainedConfig, source: str) -> PretrainedConfig:
    config = getattr(config, "vision_config", config)
    if config.model_type not in _TOWERS:
        raise ValueError(f"{source} is a {config.model_type!r}, not one of {', '.join(_TOWERS)}; use Timm for others")
    return config


def _random(config: dict[str, Any]) -> nn.Module:
    rest = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModel.from_config(_known(AutoConfig.for_model(config["model_type"], **rest), "config"))


def _pretrained(path: str) -> nn.Module:
    try:
        config = _known(AutoConfig.from_pretrained(path), path)
        tower, info = AutoModel.from_pretrained(path, config=config, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"vision tower {path!r} cannot be loaded: {reason}; give a directory or a hub name") from error
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{path} lacks {len(missing)} tensors of its tower, such as {missing[0]}; use another copy")
    return tower
