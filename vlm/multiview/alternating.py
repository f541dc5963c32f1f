"""AlternatingEncoder: what VGGT and its small kin share, from pictures to tokens, depth, points and cameras.

Shapes: B scenes, S views, H,W pixels, N patches, P special tokens, C width of the aggregator, R rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import nn

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.multiview import activate, pose
from gnomon.vlm.multiview import weights as published
from gnomon.vlm.multiview.aggregator import Aggregator
from gnomon.vlm.multiview.cross import CrossView, ViewLayout
from gnomon.vlm.multiview.patches import normalise
from gnomon.vlm.multiview.precise import precisely


class AlternatingEncoder(GeometryEncoder):
    """Tokens are the last layer's, 2C wide: what its frame block puts out beside what its global block does.

    heads: those it has. What makes them is called only for these: depth_head and point_head, (B,S,N,2C) of each layer
    in `taps` to (B,S,H,W,channels); camera_head, (B,S,2C) of the camera tokens to (R,B,S,9).
    """

    def __init__(
        self,
        aggregator: Aggregator,
        *,
        patch: int,
        taps: Sequence[int],
        heads: Collection[str],
        depth_head: Callable[[], nn.Module],
        point_head: Callable[[], nn.Module],
        camera_head: Callable[[], nn.Module],
        cross: CrossView | dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self.aggregator = aggregator
        if unknown := set(heads) - {"depth", "points", "camera"}:
            name = type(self).__name__
            raise ValueError(f"{name} has no head {sorted(unknown)[0]!r}; choose among depth, points and camera")
        self.heads = frozenset(heads)
        self.depth_head = depth_head() if "depth" in heads else None
        self.point_head = point_head() if "points" in heads else None
        self.camera_head = camera_head() if "camera" in heads else None
        self.patch = self.multiple = patch
        self.taps = tuple(taps)
        self.cross = CrossView.of(cross)
        self.layer_count = len(aggregator.frame_blocks)
        self.width = 2 * aggregator.camera_token.shape[-1]

    def fill(self, weights: str, *, ignore: Sequence[str] = ()) -> None:
        """Read all parameters from a file or directory; those of heads that were not built are passed over."""
        absent = [name for name in ("depth_head", "point_head", "camera_head") if getattr(self, name) is None]
        published.load(self, weights, ignore=[*ignore, *(f"{name}." for name in absent)])

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        size = scenes.images.shape[-2:]
        layout = ViewLayout((size[0] // self.patch, size[1] // self.patch), self.aggregator.special, scenes.valid)
        last = self.layer_count - 1
        wanted = {last, *(layer % self.layer_count for layer in layers)}
        if not {"depth", "points"}.isdisjoint(heads):
            wanted |= set(self.taps)
        images = normalise(scenes.images, scenes.valid).to(self.aggregator.camera_token.dtype)
        found, state = self.aggregator(images, layout, layers=wanted, cross=self.cross, memory=scenes.state)
        patches = {layer: tokens[:, :, layout.special :] for layer, tokens in found.items()}
        out = GeometryOutput(
            tokens=scenes.present(patches[last]),
            grid=layout.grid,
            valid=scenes.valid,
            special=scenes.present(found[last][:, :, : layout.special]),
            layers={layer: scenes.present(patches[layer % self.layer_count]) for layer in layers},
            state=state,
        )
        taps = [patches[layer] for layer in self.taps if layer in patches]
        if "depth" in heads:
            out.depth, out.depth_confidence = activate.depth(precisely(self.depth_head, *taps, size=size))
        if "points" in heads:
            out.points, out.points_confidence = activate.points(precisely(self.point_head, *taps, size=size))
        if "camera" in heads:
            out.rounds = precisely(self.camera_head, found[last][:, :, 0], valid=scenes.valid)
            out.pose = out.rounds[-1]
            out.extrinsics, out.intrinsics = pose.decode(out.pose, size=tuple(size))
        return out
