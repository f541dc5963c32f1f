"""DepthOnly: any depth estimator of transformers as a geometry encoder that sees each view alone.

Origin:  https://github.com/huggingface/transformers (classes for depth estimation over a vision transformer)
Rule:    tokens = the trunk's last states, layer-normed without scale; depth = the head's output, or where it puts out
         inverse depth 1 / max(output, 0.001); a pixel's point = depth * K^-1 (x, y, 1) where intrinsics are known
Where:   the geometry encoder
Differs: nothing is shared between views: relative depth has a scale and shift of its own in each of them, points are in
         the frame of each view's own camera
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForDepthEstimation, PretrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.multiview import rays
from gnomon.vlm.multiview.patches import MEAN, STD, normalise
from gnomon.vlm.multiview.precise import precisely

# Model types whose trunk is a plain vision transformer
_TYPES = ("depth_anything", "dpt")


class DepthOnly(GeometryEncoder):
    """path: a directory or a hub name. Or config: random weights.

    inverse: whether the head puts out inverse depth; None: it does unless the configuration says that it is metric.
    mean, std: of the pictures; None: those saved with the model, ImageNet's without any.
    """

    frame = "own_camera"
    heads = frozenset({"depth", "points"})
    # views are joined by the cameras that are known
    reads = frozenset({"intrinsics", "extrinsics"})

    def __init__(
        self,
        path: str | None = None,
        *,
        config: dict[str, Any] | None = None,
        inverse: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if (path is None) == (config is None):
            raise ValueError("DepthOnly takes either path or config; give exactly one of them")
        self.model = _random(config) if path is None else _pretrained(path)
        self.config: PretrainedConfig = self.model.config
        saved = {} if path is None else _preprocessor(path)
        self.mean = tuple(mean or saved.get("image_mean") or MEAN)
        self.std = tuple(std or saved.get("image_std") or STD)
        self.metric = getattr(self.config, "depth_estimation_type", "relative") == "metric"
        self.inverse = not self.metric if inverse is None else inverse
        backbone = getattr(self.model, "backbone", None)
        self.trunk = "dpt" if backbone is None else "backbone"
        vision = self.config if backbone is None else backbone.config
        self.patch = self.multiple = vision.patch_size
        self.width, self.layer_count = vision.hidden_size, vision.num_hidden_layers
        self.freeze(frozen)

    def spec(self) -> dict[str, Any]:
        config = self.config.to_dict()
        for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype"):
            config.pop(key, None)
        args = {"config": config, "inverse": self.inverse, "mean": list(self.mean), "std": list(self.std)}
        return {**super().spec(), "init_args": {**args, "frozen": self.frozen}}

    def check(self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()) -> None:
        super().check(scenes, layers=layers, heads=heads)
        height, width = scenes.images.shape[-2:]
        if self.trunk == "dpt" and heads and height != width:
            raise ValueError(f"this DPT predicts depth of square views, not of {height}x{width}; crop or resize them")
        if "points" in heads and scenes.intrinsics is None:
            raise ValueError("DepthOnly has points only of views whose intrinsics are known; give them or leave it out")

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        size, lead = tuple(scenes.images.shape[-2:]), scenes.valid.shape
        grid = (size[0] // self.patch, size[1] // self.patch)
        pixels = normalise(scenes.images, scenes.valid, mean=self.mean, std=self.std).flatten(0, 1)
        trunk = self.model.get_submodule(self.trunk)
        states = trunk(pixels.to(next(trunk.parameters()).dtype), output_hidden_states=True).hidden_states[1:]

        def there(state: Tensor) -> Tensor:
            patches = state[:, -grid[0] * grid[1] :]
            return scenes.present(F.layer_norm(patches, patches.shape[-1:]).unflatten(0, lead))

        out = GeometryOutput(
            tokens=there(states[-1]),
            grid=grid,
            valid=scenes.valid,
            layers={layer: there(states[layer]) for layer in layers},
        )
        if heads:
            depth = self._depth(pixels, size).unflatten(0, lead)
            out.scale = torch.ones_like(depth[:, 0, 0, 0]) if self.metric else None
            if "depth" in heads:
                out.depth = depth
            if "points" in heads:
                out.points, out.frame = self._points(depth, scenes), self.frame
        return out

    def _depth(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        """(I,H,W)"""
        found = precisely(self.model, pixels).predicted_depth
        if tuple(found.shape[1:]) != size:
            found = F.interpolate(found[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
        return 1 / found.clamp(min=1e-3) if self.inverse else found

    def _points(self, depth: Tensor, scenes: GeometryInput) -> Tensor:
        here = torch.eye(3, 4, device=depth.device)
        # padding has no camera
        lens = torch.where(scenes.valid[..., None, None], scenes.intrinsics, here[:, :3])
        return rays.points(rays.from_cameras(here.expand(*lens.shape[:3], 4), lens, size=tuple(depth.shape[2:])), depth)


def _known(config: PretrainedConfig, source: str) -> PretrainedConfig:
    if config.model_type not in _TYPES or getattr(config, "is_hybrid", False):
        raise ValueError(
            f"{source} is a {config.model_type!r} that DepthOnly cannot take; use one of {', '.join(_TYPES)}"
        )
    return config


def _random(config: dict[str, Any]) -> nn.Module:
    rest = {key: value for key, value in config.items() if key != "model_type"}
    known = _known(AutoConfig.for_model(config["model_type"], **rest), "config")
    return AutoModelForDepthEstimation.from_config(known)


def _pretrained(path: str) -> nn.Module:
    try:
        config = _known(AutoConfig.from_pretrained(path), path)
        return AutoModelForDepthEstimation.from_pretrained(path, config=config, dtype=torch.float32)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"depth model {path!r} cannot be loaded: {reason}; give a directory or a hub name") from error


def _preprocessor(path: str) -> dict[str, Any]:
    try:
        return ImageProcessingMixin.get_image_processor_dict(path)[0]
    except OSError:
        # a directory of weights alone
        return {}
