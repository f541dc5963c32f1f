"""Depth Anything 3: depth and rays of any number of views from one plain DINOv2.

Paper:   Depth Anything 3: Recovering the Visual Space from Any Views. arXiv:2511.10647
Rule:    from block `alternate_from` on, odd blocks attend across views and even ones within a view (2-D RoPE; across
         views all patches stand at 1,1), and the class token is a camera token: one for the reference view, one for the
         others. Tokens = the last state within a view beside the normed state. DualDPT: depth = exp, confidence
         1 + exp, rays (direction, origin); point = origin + depth * direction. An MLP on the camera token: cameras
Where:   the geometry encoder
Differs: the first view is the reference unless `reference` says otherwise (released: saddle_balanced for three views
         and more); missing views are left out of attention; cameras come from rays by weighted least squares without
         RANSAC; no Gaussian head, no nested model; of the sky the metric model tells by confidence 0
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.multiview import activate, pose
from gnomon.vlm.multiview import rays as raymaps
from gnomon.vlm.multiview import weights as published
from gnomon.vlm.multiview.alternating_dinov2 import AlternatingDINOv2
from gnomon.vlm.multiview.block import MLP, Block
from gnomon.vlm.multiview.cross import CrossView, ViewLayout, among
from gnomon.vlm.multiview.dpt import DPT, checked, last_convolutions
from gnomon.vlm.multiview.dual_dpt import DualDPT
from gnomon.vlm.multiview.patches import normalise
from gnomon.vlm.multiview.precise import precisely
from gnomon.vlm.multiview.reference import CHOICES

_PATCH = 14
# The focal length, in pixels, at which the metric model's output is in metres
_FOCAL = 300.0


@dataclass(frozen=True)
class Size:
    """alternate_from: the first block of those that alternate; None: each view is seen alone, and depth is all."""

    width: int
    attention_heads: int
    depth: int
    alternate_from: int | None
    taps: tuple[int, ...]
    features: int = 256
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    swiglu: bool = False
    metric: bool = False
    trained_at: int = 518
    camera_heads: int = 16


_ALONE = Size(1024, 16, 24, None, (4, 11, 17, 23))
SIZES = {
    "small": Size(384, 6, 12, 4, (5, 7, 9, 11), 64, (48, 96, 192, 384)),
    "base": Size(768, 12, 12, 4, (5, 7, 9, 11), 128, (96, 192, 384, 768)),
    "large": Size(1024, 16, 24, 8, (11, 15, 19, 23)),
    "giant": Size(1536, 24, 40, 13, (19, 27, 33, 39), swiglu=True),
    "mono_large": _ALONE,
    "metric_large": replace(_ALONE, metric=True),
}


class DepthAnything3(GeometryEncoder):
    """weights: a file or directory of the published ones, or of the state of one that was trained here.

    heads: those of depth, rays, points (from both of these) and camera to be built; mono and metric have depth only.
    cameras: from the camera tokens ("decoder") or from the "rays". reference: first, middle or saddle_balanced.
    condition: the given extrinsics and intrinsics take the camera tokens' place; `scale` is then in their unit.
    args: what to change in the size's configuration.
    """

    def __init__(
        self,
        size: str = "large",
        *,
        weights: str | None = None,
        heads: Collection[str] | None = None,
        cameras: str = "decoder",
        reference: str = "first",
        condition: bool = False,
        frozen: bool = True,
        cross: CrossView | dict[str, Any] | None = None,
        args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        config = _configuration(size, args or {})
        alone = config.alternate_from is None
        able = {"depth"} if alone else {"depth", "rays", "points", "camera"}
        self.heads = frozenset(able if heads is None else heads)
        if unknown := self.heads - able:
            raise ValueError(f"{size} has no head {min(unknown)!r}; choose among {', '.join(sorted(able))}")
        if reference not in CHOICES or cameras not in ("decoder", "rays"):
            wrong, right = (reference, CHOICES) if reference not in CHOICES else (cameras, ("decoder", "rays"))
            raise ValueError(f"{wrong!r} is no way to choose the reference view or cameras; use {', '.join(right)}")
        if condition and alone:
            raise ValueError(f"{size} sees each view alone and takes no cameras; leave condition out")
        self.reference, self.condition, self.cross = reference, condition, CrossView.of(cross)
        self.taps, self.metric, self.by_rays = tuple(config.taps), config.metric, cameras == "rays"
        if condition:
            self.reads = self.needs = frozenset({"intrinsics", "extrinsics"})
        elif alone and config.metric:
            self.reads = frozenset({"intrinsics"})
        elif reference != "first":
            # the world is that of another view
            self.frame = "world"
        self.patch = self.multiple = _PATCH
        self.layer_count = config.depth
        self.width = config.width * (1 if alone else 2)
        with torch.device("meta") if weights else nullcontext():
            self.backbone = AlternatingDINOv2(
                config.width,
                config.depth,
                config.attention_heads,
                alternate_from=config.alternate_from,
                trained_at=config.trained_at,
                swiglu=config.swiglu,
            )
            dense = {"depth", "rays", "points"} | ({"camera"} if self.by_rays else set())
            options = {"patch": _PATCH, "features": config.features, "channels": config.channels}
            self.head = self.cam_dec = self.cam_enc = None
            if self.heads & dense:
                checked(self.taps, config.depth, name=f"Depth Anything 3 {size}")
                self.head = (_DepthAndSky if alone else DualDPT)(self.width, **options)
            if "camera" in self.heads and not self.by_rays:
                self.cam_dec = _CameraDecoder(self.width)
            if condition:
                self.cam_enc = _CameraEncoder(config.width, config.camera_heads)
        if weights is not None:
            unwanted = [f"{name}." for name in ("head", "cam_dec", "cam_enc") if getattr(self, name) is None]
            names = {"model.backbone.pretrained.": "backbone.", "model.": ""}
            published.load(self, weights, rename=names, ignore=["gs_head.", "gs_adapter.", *unwanted])
        self.freeze(frozen)

    def check(self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()) -> None:
        if self.condition and (scenes.extrinsics is None or scenes.intrinsics is None):
            raise ValueError("condition needs extrinsics and intrinsics of every view; give them or leave it out")
        super().check(scenes, layers=layers, heads=heads)

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        size = tuple(scenes.images.shape[-2:])
        layout = ViewLayout((size[0] // _PATCH, size[1] // _PATCH), 1, scenes.valid)
        last = self.layer_count - 1
        wanted = {last, *(self.taps if heads else ()), *(layer % self.layer_count for layer in layers)}
        camera, scale = self._given(scenes, size) if self.condition else (None, None)
        images = normalise(scenes.images, scenes.valid).to(self.backbone.cls_token.dtype)
        found, state = self.backbone(
            images,
            layout,
            layers=wanted,
            cross=self.cross,
            memory=scenes.state,
            reference=self.reference,
            camera=camera,
        )
        normed = {layer: self.backbone.normed(pair) for layer, pair in found.items()}
        out = GeometryOutput(
            tokens=scenes.present(normed[last][:, :, 1:]),
            grid=layout.grid,
            valid=scenes.valid,
            special=scenes.present(normed[last][:, :, :1]),
            layers={layer: scenes.present(normed[layer % self.layer_count][:, :, 1:]) for layer in layers},
            frame=self.frame,
            state=state,
            scale=scale,
        )
        taps = [normed[layer][:, :, 1:] for layer in self.taps if layer in normed]
        if self.backbone.alternate_from is None:
            if "depth" in heads:
                self._alone(out, taps, scenes, size)
            return out
        if "camera" in heads and not self.by_rays:
            self._cameras(out, found[last], size)
        if {"depth", "rays", "points"} & set(heads) or ("camera" in heads and self.by_rays):
            self._dense(out, taps, size, heads)
        return out

    def _dense(self, out: GeometryOutput, taps: list[Tensor], size: tuple[int, int], heads: Collection[str]) -> None:
        pixels, exits = precisely(self.head, *taps, size=size)
        depth, confidence = activate.depth(pixels)
        rays, sure = exits[..., :6], 1 + exits[..., 6].exp()
        if "depth" in heads:
            out.depth, out.depth_confidence = depth, confidence
        if "rays" in heads:
            out.rays, out.rays_confidence = rays, sure
        if "points" in heads:
            flat = rays.flatten(0, 1).movedim(-1, 1)
            fine = F.interpolate(flat, size=size, mode="bilinear").movedim(1, -1).unflatten(0, depth.shape[:2])
            out.points, out.points_confidence = raymaps.points(fine, depth), confidence
        if "camera" in heads and self.by_rays:
            out.extrinsics, out.intrinsics = raymaps.to_cameras(rays, sure, size=size)
            out.pose = pose.encode(out.extrinsics, out.intrinsics, size=size)

    def _cameras(self, out: GeometryOutput, states: tuple[Tensor, Tensor], size: tuple[int, int]) -> None:
        token = torch.cat(states, dim=-1)[:, :, 0]
        world, out.intrinsics = pose.decode(precisely(self.cam_dec, token), size=size)
        out.extrinsics = raymaps.invert(world)
        out.pose = pose.encode(out.extrinsics, out.intrinsics, size=size)

    def _alone(self, out: GeometryOutput, taps: list[Tensor], scenes: GeometryInput, size: tuple[int, int]) -> None:
        value, sky = precisely(self.head, *taps, size=size).unbind(-1)
        out.depth, out.depth_confidence = value.exp(), (sky.relu() < 0.3).to(value.dtype)
        if self.metric and scenes.intrinsics is not None:
            focal = scenes.intrinsics.diagonal(dim1=-2, dim2=-1)[..., :2].mean(-1).to(value)
            out.depth = out.depth * (focal / _FOCAL)[..., None, None]
            out.scale = torch.ones_like(focal[:, 0])

    def _given(self, scenes: GeometryInput, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Camera tokens (B,S,C) of the given cameras, and the unit (B,) that their distances are measured in."""
        world, valid = raymaps.invert(scenes.extrinsics.float()), scenes.valid
        row = torch.arange(len(valid), device=valid.device)
        # in the frame of the first view that is there
        moved = raymaps.compose(scenes.extrinsics.float()[row, valid.int().argmax(1)][:, None], world)
        distance = moved[..., 3].norm(dim=-1).masked_fill(~valid, torch.nan)
        unit = distance.nanmedian(dim=1).values.nan_to_num(1).clamp(min=0.1)
        moved = torch.cat([moved[..., :3], moved[..., 3:] / unit[:, None, None, None]], dim=-1)
        cameras = pose.encode(moved, scenes.intrinsics, size=size).masked_fill(~valid[..., None], 0)
        return precisely(self.cam_enc, cameras, valid=valid), unit


def _configuration(size: str, args: Mapping[str, Any]) -> Size:
    if size not in SIZES:
        raise ValueError(f"Depth Anything 3 comes in {', '.join(SIZES)}, not {size!r}; choose one of them")
    try:
        return replace(SIZES[size], **args)
    except TypeError as error:
        raise ValueError(f"size {size} has no such option: {error}; correct `args`") from error


class _DepthAndSky(DPT):
    """(B,S,H,W,2): depth before exp, and how much it is sky."""

    def __init__(self, width: int, *, patch: int, features: int, channels: tuple[int, ...]) -> None:
        options = {"uv": False, "normed": False, "rectified": False}
        super().__init__(width, 1, patch=patch, features=features, channels=channels, **options)
        self.scratch.sky_output_conv2 = last_convolutions(features, 1)

    def pixels(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        x = self.full(levels, size)
        return torch.cat([self.scratch.output_conv2(x), self.scratch.sky_output_conv2(x)], dim=1).movedim(1, -1)


class _CameraDecoder(nn.Module):
    """(B,S,2C) to pose encodings (B,S,9) of world-from-camera."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t = nn.Linear(width, 3)
        self.fc_qvec = nn.Linear(width, 4)
        self.fc_fov = nn.Sequential(nn.Linear(width, 2), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.backbone(tokens)
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], dim=-1)


class _CameraEncoder(nn.Module):
    """Pose encodings (B,S,9) of world-from-camera to camera tokens (B,S,C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.pose_branch = MLP(pose.SIZE, width // 2, width)
        self.token_norm = nn.LayerNorm(width)
        self.trunk = nn.ModuleList(Block(width, heads, qk_norm=False) for _ in range(4))
        self.trunk_norm = nn.LayerNorm(width)

    def forward(self, cameras: Tensor, *, valid: Tensor) -> Tensor:
        x = self.token_norm(self.pose_branch(cameras))
        for block in self.trunk:
            x = block(x, attend=among(valid))
        return self.trunk_norm(x)
