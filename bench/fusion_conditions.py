"""What the fusion proof compares: which fusion, told of which geometry, beside which picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.fusion.geosr import GeoSR
from gnomon.vlm.layout import Features
from gnomon.vlm.part import build

WIDTH = 64
"""Of the small model."""

FUSIONS = "gnomon.vlm.fusion."
PREDICTED = {
    "add": "add.Add",
    "GeoSR: masking alone": "MaskedAdd",
    "GeoSR: gate alone": "gated.Gated",
    "GeoSR": "geosr.GeoSR",
    "concat": "concat.Concat",
}


class MaskedAdd(GeoSR):
    """GeoSR's masking with plain addition in place of its gate: one of its two parts alone."""

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        return g + (torch.where(self.kept(parts)[..., None], v, 0) if self.training else v)


@dataclass(frozen=True)
class Condition:
    """predicted: tokens of a trained encoder, else of exact points. scene: whose. blind: black pictures."""

    fusion: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    predicted: bool = False
    scene: str = "own"
    blind: bool = False

    def make(self, cells: int) -> Fusion | None:
        """cells: of a trained encoder under a visual token, per side."""
        if self.fusion is None:
            return None
        options = dict(self.options) | ({"merge": cells} if self.predicted else {})
        if self.fusion == "MaskedAdd":
            return MaskedAdd(**options)
        return build({"class_path": FUSIONS + self.fusion, "init_args": options}, Fusion)


def _fused(path: str, **options: Any) -> Condition:
    return Condition(path, tuple(options.items()))


GATED = {"class_path": f"{FUSIONS}gated.Gated", "init_args": {"merge": 2}}
CONDITIONS: dict[str, Condition] = {
    "2-D alone": Condition(),
    "add": _fused("add.Add", merge=2),
    "add, another scene's": replace(_fused("add.Add", merge=2), scene="other"),
    "add, geometry alone": replace(_fused("add.Add", merge=2), blind=True),
    "GeoSR: masking alone": _fused("MaskedAdd", merge=2),
    "GeoSR: gate alone": _fused("gated.Gated", merge=2),
    "GeoSR": _fused("geosr.GeoSR", merge=2),
    "GeoSR cross": _fused("geosr_cross.GeoSRCross", merge=2, heads=4),
    "GeoSR dynamic": _fused("geosr_dynamic.GeoSRDynamic", merge=2, heads=4, queries=8, hidden=192),
    "residual gate": _fused("residual_gate.ResidualGate", fusion=GATED),
    "weighted": _fused("weighted.Weighted", merge=2),
    "concat": _fused("concat.Concat", merge=2),
    "concat, MLP": _fused("concat_mlp.ConcatMLP", align="merge", merge=2),
    "concat, attention": _fused("concat_attention.ConcatAttention", align="merge", merge=2, heads=4),
    "cross-attention (VLM-3R)": _fused("cross.Cross", heads=4),
    "transformer": _fused("transformer.Transformer", heads=4),
    "Spatial-MLLM": _fused("spatial_mllm.SpatialMLLM", merge=2),
    "SVE-Math": _fused("sve_math.SVEMath", layers=(-3, -2, -1)),
    "coordinates, MLP": _fused("coordinate_embedding.CoordinateEmbedding"),
    "coordinates, sines": _fused("sinusoidal_coordinates.SinusoidalCoordinates", voxel=0.05),
    "GST-VLA": _fused("gst_vla.GSTVLA", tokens=16, width=WIDTH, heads=4),
    **{f"predicted, {name}": replace(_fused(path), predicted=True) for name, path in PREDICTED.items()},
}
