"""Survey: the geometry encoder's look at a batch's scenes, and which image gets which of its tokens.

Shapes: B scenes, S views, N cells, C width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.layout import Features, Views
from gnomon.vlm.multiview.align import pool


@dataclass
class Survey:
    """outputs: one per size of views. scenes: which scenes are an output's rows. layer: whose tokens are meant."""

    outputs: list[GeometryOutput]
    scenes: list[list[int]]
    where: dict[int, tuple[int, int, int]]
    layer: int | None = None

    def tokens(self, number: int) -> Tensor:
        output = self.outputs[number]
        return output.tokens if self.layer is None else output.layers[self.layer]

    def of(self, images: Sequence[int]) -> list[tuple[Tensor, Features]]:
        """Places in `images` of those that are views, and their geometry; one pair per grid."""
        found = []
        for number, output in enumerate(self.outputs):
            seen = [
                (k, *self.where[i][1:]) for k, i in enumerate(images) if i in self.where and self.where[i][0] == number
            ]
            if not seen:
                continue
            places, scene, view = torch.tensor(seen, device=output.tokens.device).T
            found.append((places, self.view(number, scene, view)))
        return found

    def view(self, number: int, scene: Tensor | int, view: Tensor | int) -> Features:
        """What is known of views of scenes of one output."""
        output, one = self.outputs[number], (torch.as_tensor(scene).reshape(-1), torch.as_tensor(view).reshape(-1))
        features = Features(self.tokens(number)[one], [output.grid] * len(one[0]))
        if output.special is not None:
            features.camera = output.special[one]
        if output.points is not None:
            certain = output.points_confidence if output.points_confidence is not None else output.points.new_ones(())
            certain = certain.expand(output.points.shape[:-1])[one]
            features.xyz, features.confidence = per_cell(output.points[one], certain, output.grid)
        return features

    def whole(self, number: int) -> tuple[Tensor, Tensor]:
        """(B,S*N,C) all tokens of each scene, and (B,S*N) which of them are real."""
        tokens = self.tokens(number)
        valid = self.outputs[number].valid[..., None].expand(tokens.shape[:3])
        return tokens.flatten(1, 2), valid.flatten(1, 2)


def survey(
    encoder: GeometryEncoder, scenes: Sequence[Views], *, layer: int | None = None, heads: Collection[str] = ()
) -> Survey:
    """All scenes of a batch, those whose views have one size together."""
    device = next((p.device for p in encoder.parameters()), scenes[0].pixels.device)
    sizes: dict[tuple[int, ...], list[int]] = {}
    for i, scene in enumerate(scenes):
        sizes.setdefault(tuple(scene.pixels.shape[2:]), []).append(i)
    outputs, where = [], {}
    for number, members in enumerate(sizes.values()):
        given = GeometryInput.stack([scenes[i] for i in members], device)
        outputs.append(encoder.measure(given, layers=() if layer is None else (layer,), heads=heads))
        for row, i in enumerate(members):
            where.update({image: (number, row, view) for view, image in enumerate(scenes[i].image) if image >= 0})
    return Survey(outputs, list(sizes.values()), where, layer)


def per_cell(points: Tensor, certain: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(I,H,W,3) to (I,N,3): each cell's mean point by confidence, and its mean confidence (I,N); 0 for none."""
    known = certain * torch.isfinite(points).all(-1) * (points != 0).any(-1)
    flat = torch.where(torch.isfinite(points), points, 0).flatten(1, 2)
    size = tuple(points.shape[1:3])
    return pool(flat, size, grid, known.flatten(1)), pool(known.flatten(1)[..., None], size, grid)[..., 0]
