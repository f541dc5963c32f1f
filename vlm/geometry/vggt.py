"""VGGT: cameras, depth and points of one to hundreds of views in one pass.

Paper:   VGGT: Visual Geometry Grounded Transformer. arXiv:2503.11651
Rule:    DINOv2 ViT-L/14 patches, a camera token and 4 registers per view, 24 blocks within a view and 24 across views
         in turns (2-D RoPE of base 100, normed queries and keys, LayerScale 0.01); tokens = both blocks' states side by
         side. Camera in 4 rounds; DPT on layers 4, 11, 17, 23: depth = exp, points = sign(y) (e^|y| - 1), confidence =
         1 + exp
Where:   the geometry encoder
Differs: views that are missing are left out of attention, and the first view that is there is the reference; the
         tracking head is not built, its weights are passed over
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from gnomon.vlm.multiview.aggregator import Aggregator
from gnomon.vlm.multiview.alternating import AlternatingEncoder
from gnomon.vlm.multiview.camera_head import CameraHead
from gnomon.vlm.multiview.cross import CrossView
from gnomon.vlm.multiview.dinov2 import DINOv2
from gnomon.vlm.multiview.dpt import DPT, checked


class VGGT(AlternatingEncoder):
    """weights: a file or directory of facebook/VGGT-1B, or of the state of one that was trained here.

    heads: those of depth, points and camera to be built; without any, a quarter of the parameters is left.
    What follows is the published configuration: width, depth of the patch embedding and of either kind of blocks,
    attention heads of all of these and of the camera head, picture side of the learned positions, DPT's layers,
    features and channels.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        heads: Collection[str] = ("depth", "points", "camera"),
        frozen: bool = True,
        cross: CrossView | dict[str, Any] | None = None,
        width: int = 1024,
        embed_depth: int = 24,
        depth: int = 24,
        attention_heads: int = 16,
        trained_at: int = 518,
        taps: Sequence[int] = (4, 11, 17, 23),
        features: int = 256,
        channels: Sequence[int] = (256, 512, 1024, 1024),
    ) -> None:
        patch = 14
        if {"depth", "points"} & set(heads):
            taps = checked(taps, depth, name="VGGT")
        dpt = partial(DPT, 2 * width, patch=patch, features=features, channels=channels)
        # what is going to be loaded need not be made up before
        with torch.device("meta") if weights else nullcontext():
            embed = DINOv2(width, embed_depth, attention_heads, patch=patch, trained_at=trained_at)
            super().__init__(
                Aggregator(embed, width=width, depth=depth, heads=attention_heads),
                patch=patch,
                taps=taps,
                heads=heads,
                depth_head=partial(dpt, 2),
                point_head=partial(dpt, 4),
                camera_head=partial(CameraHead, 2 * width, heads=attention_heads),
                cross=cross,
            )
        if weights is not None:
            self.fill(weights, ignore=["track_head."])
        self.freeze(frozen)
