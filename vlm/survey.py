"""Survey: the geometry encoder's look at a batch's scenes, and which image gets which of its tokens.

Shapes: B scenes, S views, N cells, C width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gnomon.vlm.fusion.base import Told
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.layout import Features, Views
from gnomon.vlm.multiview.align import interp, pool
from gnomon.vlm.multiview.rays import compose, invert, moved

_LENGTHS = {
    "depth": slice(None),
    "points": slice(None),
    "pose": slice(3),
    "rays": slice(3, None),
    "extrinsics": slice(3, None),
}
"""Which of an output's last axis are lengths."""


@dataclass
class Survey:
    """outputs: one per size of views and kind of what is known of them, in metres where scales are known. tokens
    (B,S,N,C): of each output, as they are to be read. scenes: which ones are an output's rows. where: output, row and
    view of each image that shows one. told: what the fusion makes of each.
    """

    outputs: list[GeometryOutput]
    tokens: list[Tensor]
    scenes: list[list[int]]
    where: dict[int, tuple[int, int, int]]
    told: list[Told] = field(default_factory=list)

    def of(self, images: Sequence[int]) -> list[tuple[Tensor, Features]]:
        """Places in `images` of those that are views, and their geometry; one pair per grid."""
        found = []
        for number, output in enumerate(self.outputs):
            seen = [(k, *self.where[i]) for k, i in enumerate(images) if i in self.where and self.where[i][0] == number]
            if seen:
                places, *where = torch.tensor(seen, device=output.tokens.device).T
                found.append((places, self.view(torch.stack(where, 1))))
        return found

    def locate(self, features: Features, images: Sequence[int]) -> Features:
        """With the tokens' places in space, where the geometry encoder says them for all of these images; nan where
        nothing is known.
        """
        for places, known in self.of(images):
            if len(places) == len(images) and known.xyz is not None:
                certain = known.confidence[..., None]
                both = pool(torch.cat([known.xyz * certain, certain], -1), known.grid[0], features.grid[0])
                both = both if features.plan is None else features.plan.average(both)
                return replace(features, xyz=both[..., :3] / both[..., 3:])
        return features

    def view(self, where: Tensor) -> Features:
        """What is known of views (I,3) of one output."""
        number, one = int(where[0, 0]), (where[:, 1], where[:, 2])
        output = self.outputs[number]
        features = Features(self.tokens[number][one], [output.grid] * len(where), where=where)
        if output.special is not None:
            features.camera = output.special[one]
        if output.points is not None:
            certain = output.points_confidence if output.points_confidence is not None else output.points.new_ones(())
            certain = certain.expand(output.points.shape[:-1])[one]
            features.xyz, features.confidence = per_cell(output.points[one], certain, output.grid)
        return features

    def beside(self, where: Tensor) -> Features | None:
        """What the fusion made of the scenes of views (I,3), at these views."""
        told, one = self.told[int(where[0, 0])], (where[:, 1], where[:, 2])
        if told.beside is None:
            return None
        scores = None if told.scores is None else told.scores[one]
        return Features(told.beside[one], [told.grid] * len(where), saliency=scores)

    @property
    def loss(self) -> Tensor | float:
        """The sum of the fusion's own losses, mean over the scenes."""
        whole = sum(map(len, self.scenes))
        pairs = zip(self.told, self.scenes)
        return sum(loss * len(scenes) / whole for told, scenes in pairs for loss in told.losses.values())

    def vision(self, number: int, groups: Sequence[tuple[list[int], Features]], width: int) -> tuple[Tensor, Tensor]:
        """(B,S,N,E) the vision encoder's features of an output's views on geometry's grid; (B,S) whose there are."""
        output = self.outputs[number]
        shape, like = output.tokens.shape[:3], output.tokens
        tokens = like.new_zeros(*shape, width)
        if torch.is_grad_enabled():
            # what no image shows has a gradient too, so that ZeRO-3's hooks run in backward as they do with images; of
            # one element, since a sum overflows in half precision
            tokens = tokens + 0 * groups[0][1].tokens[:1, :1, :1].to(like.dtype)
        shown = torch.zeros_like(output.valid)
        for images, features in groups:
            for places, known in self.of(images):
                if int(known.where[0, 0]) != number:
                    continue
                if features.plan is not None:
                    raise ValueError(
                        "the fusion reads all cells of the vision encoder, but a reducer inside it leaves some out; "
                        "let it act behind the encoder (inside: false)"
                    )
                one = known.where[:, 1], known.where[:, 2]
                onto = interp(features.tokens[places], features.grid[0], output.grid)
                tokens = tokens.index_put(one, onto.to(tokens.dtype))
                shown[one] = True
        return tokens, shown


def survey(
    encoder: GeometryEncoder,
    scenes: Sequence[Views],
    *,
    layers: Sequence[int] = (),
    frames: int = 1,
    heads: Collection[str] = (),
) -> Survey:
    """All scenes of a batch; together those whose views have one size, and of which as much is known.

    layers, frames: what stands side by side in a view's tokens, see Fusion. Points come in the first camera's frame.
    """
    # in which frame an encoder's points are shows when they are there; bringing them into another takes its cameras
    asked = {*heads, *({"camera"} & encoder.heads if "points" in heads else ())}
    device = next((p.device for p in encoder.parameters()), scenes[0].pixels.device)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, scene in enumerate(scenes):
        known = (getattr(scene, name) is not None for name in sorted(encoder.reads))
        groups.setdefault((*scene.pixels.shape[2:], *known), []).append(i)
    outputs, tokens, where = [], [], {}
    for number, members in enumerate(groups.values()):
        given = GeometryInput.stack([scenes[i] for i in members], device)
        output = in_metres(encoder.measure(given, layers=layers, heads=asked))
        output.points, output.frame = in_first(output, given, name=type(encoder).__name__), "ref_camera"
        read = torch.cat([output.layers[layer] for layer in layers], -1) if layers else output.tokens
        outputs.append(output)
        tokens.append(together(read, output.valid, frames))
        for row, i in enumerate(members):
            where.update({image: (number, row, view) for view, image in enumerate(scenes[i].image) if image >= 0})
    return Survey(outputs, tokens, list(groups.values()), where)


def in_metres(output: GeometryOutput) -> GeometryOutput:
    """All lengths times the scale; the same where that is not known."""
    if output.scale is None:
        return output
    found = {name: value for name in _LENGTHS if (value := getattr(output, name)) is not None}
    for name, values in found.items():
        factor = torch.ones_like(values[:, :1])
        factor[..., _LENGTHS[name]] = output.scale.to(values).view(-1, *[1] * (values.ndim - 1))
        found[name] = values * factor
    # what came before the last round is for losses
    return replace(output, **found, rounds=None, scale=torch.ones_like(output.scale))


def in_first(output: GeometryOutput, given: GeometryInput, *, name: str) -> Tensor | None:
    """(B,S,H,W,3) the output's points in the frame of each scene's first camera; what is unknown, zero, stays zero.

    Predicted cameras fit predicted points, whatever their unit is. Cameras known beforehand fit points in metres alone,
    and have no place in a world that the encoder made up.
    """
    points, cameras = output.points, output.extrinsics
    own = output.frame == "own_camera"
    # the first camera's own frame is the first camera's frame
    if points is None or output.frame == "ref_camera" or (own and not bool(output.valid[:, 1:].any())):
        return points
    if cameras is None and own and output.scale is not None:
        cameras = given.extrinsics
    if cameras is None:
        where = "in a world of its own in which it places no camera; build it with its camera head"
        if own and output.scale is None:
            where = "in each camera's own frame at a scale of its own; use an encoder of metric depth, or one view"
        elif own:
            where = "in each camera's own frame and poses are unknown; give extrinsics of every view, or one view"
        raise ValueError(f"{name} has its points {where}")
    moves = compose(cameras[:, :1], invert(cameras)) if own else cameras[:, :1]
    return torch.where((points != 0).any(-1, keepdim=True), moved(points, moves.to(points.dtype)), 0)


def together(tokens: Tensor, valid: Tensor, frames: int) -> Tensor:
    """(B,S,N,frames*C): at each view the tokens of its run of `frames` views; the last view fills up what lacks."""
    if frames == 1:
        return tokens
    views = torch.arange(tokens.shape[1], device=tokens.device)
    last = (valid.sum(1) - 1).clamp_min(0)
    run = views[:, None] // frames * frames + torch.arange(frames, device=tokens.device)
    run = torch.minimum(run[None], last[:, None, None])
    rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    return tokens[rows, run].transpose(2, 3).flatten(3)


def per_cell(points: Tensor, certain: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(I,H,W,3) to (I,N,3): each cell's mean point by confidence, and its mean confidence (I,N); 0 for none."""
    known = certain * torch.isfinite(points).all(-1) * (points != 0).any(-1)
    flat = torch.where(torch.isfinite(points), points, 0).flatten(1, 2)
    size = tuple(points.shape[1:3])
    return pool(flat, size, grid, known.flatten(1)), pool(known.flatten(1)[..., None], size, grid)[..., 0]
