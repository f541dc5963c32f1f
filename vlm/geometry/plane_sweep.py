"""PlaneSweep: the depth of each view from what others show of it, where their cameras are known.

Paper:   MVSNet: Depth Inference for Unstructured Multi-view Stereo. arXiv:1804.02505
Rule:    features at half the size are compared with those of the nearest cameras on planes of depth; a network adds to
         the mean of the groups, softmax over planes, depth = 1 / mean inverse depth, confidence = what lies within a
         plane of that. Tokens are Known's, of the predicted points
Where:   the geometry encoder, for posed views
Differs: from MVSNet: products of groups of channels (GwcNet, arXiv:1903.04025) in place of the variance; planes evenly
         spaced in inverse depth, in units of the mean distance between cameras; a 2-D network over all planes and the
         view's own features in place of a 3-D one, and no refinement after it
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.multiview import places, sweep
from gnomon.vlm.multiview import weights as published
from gnomon.vlm.multiview.patches import normalise
from gnomon.vlm.multiview.precise import precisely
from gnomon.vlm.multiview.vectors import widen

_STEP = 4
"""Pixels between cells of the network's coarse level."""

_NORMED = 4
"""Groups of channels, each of which is normed by itself."""

_SHARP = 10.0
"""Planes that agree wholly and not at all are weighed e^10 to 1 by themselves."""


class PlaneSweep(GeometryEncoder):
    """patch: pixels per token and side. octaves, extent: of tokens, see Known; in the unit of the cameras. A view that
    no camera at another place joins has no distance to go by: its depth is a guess, 1 unit of the cameras standing for
    that distance.

    weights: a file or directory that holds its state.
    planes, nearest, farthest: how many depths, and the first and last in distances between cameras.
    others: how many of the nearest cameras each view is compared with. width, groups: channels of what is compared, and
    how many sums of them.
    """

    metric = True
    heads = frozenset({"depth", "points"})
    reads = needs = frozenset({"intrinsics", "extrinsics"})

    def __init__(
        self,
        *,
        patch: int = 8,
        weights: str | None = None,
        frozen: bool = True,
        octaves: int = 6,
        extent: float = 16.0,
        planes: int = 32,
        nearest: float = 1.5,
        farthest: float = 60.0,
        others: int = 4,
        width: int = 16,
        groups: int = 4,
    ) -> None:
        super().__init__()
        if patch < _STEP or patch % _STEP or octaves < 1 or extent <= 0:
            given = f"patch {patch}, octaves {octaves}, extent {extent}"
            raise ValueError(f"{given}: patch is to be a multiple of {_STEP}, the others positive; correct them")
        if width < 1 or width % _NORMED:
            raise ValueError(f"PlaneSweep has width {width}; give a multiple of {_NORMED}")
        if planes < 2 or not 0 < nearest < farthest or others < 1 or groups < 1 or width % groups:
            raise ValueError(
                f"planes {planes} from {nearest} to {farthest}, others {others}, width {width} in {groups} groups: use "
                "2 planes and 1 other or more, nearest before farthest, and groups that divide width"
            )
        self.patch = self.multiple = patch
        self.octaves, self.extent, self.planes, self.others, self.groups = octaves, extent, planes, others, groups
        self.nearest, self.farthest = nearest, farthest
        self.width = 6 * octaves + 1
        self.look = nn.Sequential(_conv(3, width), _conv(width, width, stride=2), _conv(width, width))
        self.feature = nn.Conv2d(width, width, 3, padding=1)
        self.weigh = _Weigh(groups * planes + width, 3 * width, planes)
        if weights is not None:
            published.load(self, weights)
        self.freeze(frozen)

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        valid, size = scenes.valid, tuple(scenes.images.shape[3:])
        # what is padded has no camera and may hold anything
        there = valid[..., None, None]
        extrinsics = torch.where(there, widen(scenes.extrinsics), torch.eye(3, 4, device=there.device))
        intrinsics = torch.where(there, widen(scenes.intrinsics), torch.eye(3, device=there.device))
        images = normalise(scenes.images, valid).to(self.feature.weight.dtype)
        depth, confidence = self._depth(images, valid, extrinsics, intrinsics)
        points = places.in_view(extrinsics, intrinsics, depth, valid.to(torch.uint8).argmax(1))
        grid = (size[0] // self.patch, size[1] // self.patch)
        tokens = places.tokens(points, confidence, grid=grid, octaves=self.octaves, extent=self.extent)
        tokens = scenes.present(tokens)
        output = GeometryOutput(tokens, grid, valid, layers=dict.fromkeys(layers, tokens))
        output.scale = torch.ones(len(tokens), device=tokens.device)
        if "depth" in heads:
            output.depth, output.depth_confidence = depth, confidence
        if "points" in heads:
            output.points, output.points_confidence = points, confidence
        return output

    def _depth(self, images: Tensor, valid: Tensor, extrinsics: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """(B,S,H,W) each."""
        size = tuple(images.shape[3:])
        seen = self.look(images.flatten(0, 1))
        features = widen(self.feature(seen)).unflatten(1, (self.groups, -1))
        features = F.normalize(features, dim=2).flatten(1, 2).unflatten(0, valid.shape)
        which, there, unit = sweep.neighbours(extrinsics, valid, self.others)
        inverse = torch.linspace(1 / self.farthest, 1 / self.nearest, self.planes, device=images.device)
        volume = sweep.agreement(
            features, extrinsics, intrinsics, inverse / unit[..., None],
            size=size, groups=self.groups, which=which, there=there,
        ).flatten(0, 1)  # fmt: skip
        more = precisely(self.weigh, torch.cat([volume.flatten(1, 2), widen(seen)], 1))
        shares = (_SHARP * volume.mean(1) + more).softmax(1)
        mean = (shares * inverse[:, None, None]).sum(1, keepdim=True)
        step = inverse[1] - inverse[0]
        near = ((inverse[:, None, None] - mean).abs() <= step).to(shares.dtype)
        both = torch.cat([mean, (shares * near).sum(1, keepdim=True)], 1)
        mean, confidence = F.interpolate(both, size, mode="bilinear").unflatten(0, valid.shape).unbind(2)
        return unit[..., None, None] / mean, confidence


class _Weigh(nn.Module):
    """What the pictures and their agreement nearby say of each plane; it begins with nothing to say."""

    def __init__(self, given: int, width: int, planes: int) -> None:
        super().__init__()
        self.enter = _conv(given, width)
        self.down = nn.Sequential(_conv(width, 2 * width, stride=2), _conv(2 * width, 2 * width))
        self.leave = _conv(3 * width, width)
        self.planes = nn.Conv2d(width, planes, 1)
        nn.init.zeros_(self.planes.weight)
        nn.init.zeros_(self.planes.bias)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.enter(x)
        coarse = F.interpolate(self.down(fine), fine.shape[2:], mode="bilinear")
        return self.planes(self.leave(torch.cat([fine, coarse], 1)))


def _conv(given: int, width: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(given, width, 3, stride, 1), nn.GroupNorm(_NORMED, width), nn.GELU())
