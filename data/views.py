"""The views of a sample's scene as pixels of one size, with cameras to match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image as Pillow

from gnomon.data.geometry import check
from gnomon.data.image import load
from gnomon.data.sample import Geometry
from gnomon.vlm.layout import Views, ViewsSpec


def prepare(geometry: Geometry, spec: ViewsSpec, *, images: Sequence[int], name: str) -> Views:
    """images: where in the example the sample's images are; image k shows view k, further views are of no image."""
    check(geometry, name=name, max_views=spec.most)
    loaded = [load(view, name=f"view {k} of {name}") for k, view in enumerate(geometry.views)]
    before = loaded[0].shape[:2]
    height, width = spec.target(*before)
    pixels = np.stack([_resized(view, height, width, Pillow.Resampling.BICUBIC) for view in loaded])
    shown = [*images[: len(loaded)], *[-1] * (len(loaded) - len(images))]
    intrinsics = geometry.intrinsics
    if intrinsics is not None:
        # pixel centres lie at halves, so a picture's size scales everything alike
        intrinsics = np.array([width / before[1], height / before[0], 1.0])[:, None] * intrinsics
    depth = geometry.depth
    if depth is not None and before != (height, width):
        depth = np.stack(
            [_resized(view.astype(np.float32), height, width, Pillow.Resampling.NEAREST) for view in depth]
        )
    return Views(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        shown,
        *(
            None if x is None else torch.from_numpy(np.ascontiguousarray(x)).float()
            for x in (intrinsics, geometry.extrinsics, depth)
        ),
    )


def _resized(picture: np.ndarray, height: int, width: int, how: Pillow.Resampling) -> np.ndarray:
    if picture.shape[:2] == (height, width):
        return picture
    return np.array(Pillow.fromarray(picture).resize((width, height), how))
