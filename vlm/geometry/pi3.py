"""Pi3: points and cameras of views of which none is the reference.

Paper:   pi^3: Scalable Permutation-Equivariant Visual Geometry Learning. arXiv:2507.13347
Rule:    DINOv2 ViT-L/14 patches and 5 registers that all views share; 36 blocks, even ones within a view and odd ones
         across views (2-D RoPE of base 100, normed queries and keys, LayerScale 0.01); tokens = the last two blocks'
         states side by side. Three decoders of 5 blocks within a view: points (x z, y z, z) with z = exp, in each
         camera's own frame; how sure; and cameras, whose rotation is the one nearest to nine numbers (SVD)
Where:   the geometry encoder
Differs: missing views are left out of attention; confidence is the sigmoid of what the weights put out; intrinsics are
         the least-squares focal lengths of the points, with the principal point in the centre
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.multiview import pose, rays
from gnomon.vlm.multiview import weights as published
from gnomon.vlm.multiview.block import Block
from gnomon.vlm.multiview.cross import CrossView, ViewLayout
from gnomon.vlm.multiview.dinov2 import DINOv2
from gnomon.vlm.multiview.patches import normalise
from gnomon.vlm.multiview.precise import precisely
from gnomon.vlm.multiview.rope2d import Rope, positions, tables

_PATCH, _REGISTERS = 14, 5


class Pi3(GeometryEncoder):
    """weights: a file or directory of yyfz233/Pi3, or of the state of one that was trained here.

    heads: those of depth, points (in the world that the cameras share) and camera that it predicts; all of them need
    all three decoders, which are built if there is any head.
    What follows is the published configuration: width, depth of the patch embedding and of the blocks, attention heads
    of all of these, picture side of the learned positions, width of the decoders and of the camera's.
    `layers` counts pairs of blocks.
    """

    frame = "world"

    def __init__(
        self,
        *,
        weights: str | None = None,
        heads: Collection[str] = ("depth", "points", "camera"),
        frozen: bool = True,
        cross: CrossView | dict[str, Any] | None = None,
        width: int = 1024,
        embed_depth: int = 24,
        depth: int = 36,
        attention_heads: int = 16,
        trained_at: int = 518,
        decoder_width: int = 1024,
        camera_width: int = 512,
    ) -> None:
        super().__init__()
        if unknown := set(heads) - {"depth", "points", "camera"}:
            raise ValueError(f"Pi3 has no head {min(unknown)!r}; choose among depth, points and camera")
        if depth < 2 or depth % 2:
            raise ValueError(f"Pi3 has depth {depth}; its blocks come in pairs, so give an even number")
        self.heads, self.cross = frozenset(heads), CrossView.of(cross)
        self.patch = self.multiple = _PATCH
        self.width, self.layer_count = 2 * width, depth // 2
        self.head_widths = (width // attention_heads, decoder_width // attention_heads)
        with torch.device("meta") if weights else nullcontext():
            self.encoder = DINOv2(width, embed_depth, attention_heads, trained_at=trained_at, mask_token=False)
            self.register_token = nn.Parameter(1e-6 * torch.randn(1, 1, _REGISTERS, width))
            self.decoder = nn.ModuleList(Block(width, attention_heads, eps=1e-6) for _ in range(depth))
            if heads:
                self.point_decoder = _Decoder(self.width, decoder_width, attention_heads, decoder_width)
                self.point_head = _ToPixels(decoder_width, 3)
                self.conf_decoder = _Decoder(self.width, decoder_width, attention_heads, decoder_width)
                self.conf_head = _ToPixels(decoder_width, 1)
                self.camera_decoder = _Decoder(self.width, decoder_width, attention_heads, camera_width)
                self.camera_head = _CameraHead(camera_width)
        if weights is not None:
            decoders = ["point_", "conf_", "camera_"] if not heads else []
            published.load(self, weights, ignore=["image_mean", "image_std", *decoders])
        self.freeze(frozen)

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        layout = ViewLayout(tuple(side // _PATCH for side in scenes.images.shape[-2:]), _REGISTERS, scenes.valid)
        images = normalise(scenes.images, scenes.valid).to(self.register_token.dtype)
        last = self.layer_count - 1
        wanted = {last, *(layer % self.layer_count for layer in layers)}
        found, state = self._look(images, layout, wanted, scenes.state)
        out = GeometryOutput(
            tokens=scenes.present(found[last][:, :, _REGISTERS:]),
            grid=layout.grid,
            valid=scenes.valid,
            special=scenes.present(found[last][:, :, :_REGISTERS]),
            layers={layer: scenes.present(found[layer % self.layer_count][:, :, _REGISTERS:]) for layer in layers},
            frame=self.frame,
            state=state,
        )
        if heads:
            self._predict(out, found[last], layout, heads)
        return out

    def _look(
        self, images: Tensor, layout: ViewLayout, wanted: Collection[int], memory: Any
    ) -> tuple[dict[int, Tensor], Any]:
        """Of each pair of blocks that is wanted (B,S,P+N,2C): their states side by side."""
        patches = self.encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        memory = self.cross.begin(patches, layout, memory)
        x = torch.cat([self.register_token.expand(*images.shape[:2], -1, -1), patches], dim=2)
        rope = tables(positions(layout.grid, _REGISTERS, x.device), self.head_widths[0])
        whole = (rope[0].repeat(layout.views, 1), rope[1].repeat(layout.views, 1))
        found = {}
        for pair, (within, across) in enumerate(zip(self.decoder[::2], self.decoder[1::2])):
            local = within(x.flatten(0, 1), rope=rope).view(x.shape)
            attend = self.cross.at(pair, layout, memory)
            x = across(local.flatten(1, 2), rope=whole, attend=attend).view(x.shape)
            if pair in wanted:
                found[pair] = torch.cat([local, x], dim=-1)
        return found, memory

    def _predict(self, out: GeometryOutput, states: Tensor, layout: ViewLayout, heads: Collection[str]) -> None:
        """Depth and points are one prediction: (x z, y z, z) in each camera's own frame, z = exp."""
        rope = tables(positions(layout.grid, _REGISTERS, states.device), self.head_widths[1])

        def decoded(decoder: nn.Module, head: nn.Module) -> Tensor:
            patches = decoder(states.flatten(0, 1), rope=rope)[:, _REGISTERS:]
            return precisely(head, patches, grid=layout.grid).unflatten(0, layout.valid.shape)

        raw = decoded(self.point_decoder, self.point_head)
        depth = raw[..., 2].exp()
        local = torch.cat([raw[..., :2] * depth[..., None], depth[..., None]], dim=-1)
        confidence = decoded(self.conf_decoder, self.conf_head)[..., 0].sigmoid()
        world = decoded(self.camera_decoder, self.camera_head)
        if "depth" in heads:
            out.depth, out.depth_confidence = depth, confidence
        if "points" in heads:
            out.points, out.points_confidence = rays.moved(local, world), confidence
        if "camera" in heads:
            out.extrinsics, out.intrinsics = rays.invert(world), _lens(raw[..., :2])
            out.pose = pose.encode(out.extrinsics, out.intrinsics, size=tuple(depth.shape[2:]))


def _lens(directions: Tensor) -> Tensor:
    """(B,S,3,3) with the focal lengths that fit directions (B,S,H,W,2) with z = 1 best, about the picture's centre."""
    size = tuple(directions.shape[2:4])
    away = rays.centres(size, size, directions)[..., :2] - directions.new_tensor([size[1] / 2, size[0] / 2])
    # a pixel's distance from the centre is focal length times direction
    focal = (away * directions).sum((2, 3)) / directions.square().sum((2, 3)).clamp(min=1e-12)
    lens = torch.diag_embed(F.pad(focal, (0, 1), value=1.0))
    lens[..., 0, 2], lens[..., 1, 2] = size[1] / 2, size[0] / 2
    return lens


class _Decoder(nn.Module):
    """(I,P+N,in) to (I,P+N,out), each view alone."""

    def __init__(self, width_in: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.projects = nn.Linear(width_in, width)
        self.blocks = nn.ModuleList(Block(width, heads, qk_norm=False, scale=None, eps=1e-6) for _ in range(5))
        self.linear_out = nn.Linear(width, out)

    def forward(self, x: Tensor, *, rope: Rope) -> Tensor:
        x = self.projects(x)
        for block in self.blocks:
            x = block(x, rope=rope)
        return self.linear_out(x)


class _ToPixels(nn.Module):
    """(I,N,C) to (I,H,W,out): each token its square of pixels."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, out * _PATCH**2)

    def forward(self, patches: Tensor, *, grid: tuple[int, int]) -> Tensor:
        return F.pixel_shuffle(self.proj(patches).mT.unflatten(2, grid), _PATCH).movedim(1, -1)


class _CameraHead(nn.Module):
    """(I,N,C) to (I,3,4), world-from-camera."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList(_Residual(width) for _ in range(2))
        self.more_mlps = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t = nn.Linear(width, 3)
        self.fc_rot = nn.Linear(width, 9)

    def forward(self, patches: Tensor, *, grid: tuple[int, int]) -> Tensor:
        for residual in self.res_conv:
            patches = residual(patches)
        x = self.more_mlps(patches.mean(1))
        return torch.cat([_nearest_rotation(self.fc_rot(x)), self.fc_t(x)[..., None]], dim=-1)


def _nearest_rotation(numbers: Tensor) -> Tensor:
    """(I,9) to (I,3,3). Rows are brought to length 1 first: it keeps the singular values, and the gradient, apart."""
    left, _, right = torch.linalg.svd(F.normalize(numbers.unflatten(-1, (3, 3)), dim=-1))
    flip = torch.linalg.det(left @ right)[:, None, None]
    return torch.cat([left[..., :2], left[..., 2:] * flip], dim=-1) @ right


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.res_conv1 = nn.Linear(width, width)
        self.res_conv2 = nn.Linear(width, width)
        self.res_conv3 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_conv3(self.res_conv2(self.res_conv1(x).relu()).relu()).relu()
