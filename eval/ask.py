"""One question to a model, its answer token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image as Pillow

from gnomon.data.collate import collate
from gnomon.data.example import Example
from gnomon.data.image import load
from gnomon.data.sample import IMAGE_MARK, Geometry, Sample, Turn
from gnomon.data.views import prepare
from gnomon.eval.session import Loaded
from gnomon.vlm.generate import Generation, generate
from gnomon.vlm.multiview.coverage import choose
from gnomon.vlm.survey import survey

MOST_VIEWS, MOST_FRAMES = 32, 128
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer shows for a character of which only some bytes have come."""


class Stream:
    """Token ids to text as they come; `push` yields only what is certain and new."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self.decode = decode
        self.ids: list[int] = []
        self.shown = ""

    def push(self, token: int) -> str:
        self.ids.append(token)
        text = self.decode(self.ids)
        return "" if text.endswith(UNFINISHED) else self._new(text)

    def rest(self) -> str:
        """What was held back, at the end."""
        return self._new(self.decode(self.ids))

    def _new(self, text: str) -> str:
        fresh, self.shown = text[len(self.shown) :], text
        return fresh


def read_images(paths: Sequence[Path]) -> list[np.ndarray]:
    """Pixels of all files, or the error of the first that has none; quick, so done before a model is loaded."""
    return [load(path, name=f"image {number}") for number, path in enumerate(paths, 1)]


def read_views(folder: Path, *, most: int = MOST_VIEWS) -> list[np.ndarray]:
    """Pixels of a folder's pictures in the order of their names, all brought to the first one's size."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one with 2 to {most} views of one scene")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir())
    if not 2 <= len(paths) <= most:
        more = f", or let --frames choose among {MOST_FRAMES}" if most < len(paths) <= MOST_FRAMES else ""
        raise ValueError(f"{folder} holds {len(paths)} pictures; give 2 to {most} views of one scene{more}")
    views = [load(path, name=f"view {number}") for number, path in enumerate(paths)]
    height, width = views[0].shape[:2]
    shapes = {view.shape[:2] for view in views}
    if any(abs(h * width - w * height) > 0.02 * h * width for h, w in shapes):
        told = ", ".join(f"{h}x{w}" for h, w in sorted(shapes))
        raise ValueError(f"{folder}: views of sizes {told} are not of one camera's format; crop them to one")
    return [np.asarray(Pillow.fromarray(view).resize((width, height))) for view in views]


@torch.no_grad()
def cover(loaded: Loaded, views: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Those that see most of the scene, by the points that the model's geometry encoder predicts."""
    encoder, spec = loaded.model.geometry, loaded.processor.views
    if encoder is None or spec is None or "points" not in encoder.heads:
        raise ValueError(
            f"--frames goes by points of a geometry encoder, and {loaded.name} has none that predicts any; leave it out"
        )
    known = prepare(Geometry(tuple(views)), replace(spec, most=None), images=(), name="the folder")
    (output,) = survey(encoder, [known], heads={"points"}).outputs
    points, certain = output.points[0], output.points_confidence
    return [
        views[i] for i in choose(points, points.new_ones(points.shape[:3]) if certain is None else certain[0], count)
    ]


def question_of(
    loaded: Loaded,
    question: str,
    images: Sequence[np.ndarray] = (),
    views: Sequence[np.ndarray] = (),
    *,
    shown: Literal["first", "all"] | None = None,
) -> Example:
    """The question as the model reads it, images first.

    views: of one scene. A model with a geometry encoder surveys all of them, and is shown the first one, or (`shown`
    all) every one; any other model is shown every one.
    """
    if IMAGE_MARK in question:
        raise ValueError(f"the question holds {IMAGE_MARK}, which stands for an image; leave it out, images come first")
    geometry = None
    if views and loaded.processor.views is not None:
        if images:
            raise ValueError(
                "images beside views of a scene: which of them are views is not known; give one or the other"
            )
        geometry, images = Geometry(tuple(views)), views if shown == "all" else views[:1]
    elif views:
        if shown == "first":
            raise ValueError(
                "shown first: the model has no geometry encoder, so nothing would see the other views; use all"
            )
        images = [*images, *views]
    text = "".join(f"{IMAGE_MARK}\n" for _ in images) + question
    sample = Sample(id="question", turns=(Turn("user", text),), images=tuple(images), geometry=geometry)
    return loaded.processor.example(sample, train=False)


def ask(
    loaded: Loaded,
    example: Example,
    *,
    show: Callable[[str], None],
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Generation:
    """Put the question; `show` gets the answer piece by piece."""
    batch = collate([example], pad_id=loaded.processor.pad_id, side="left").to(loaded.device)
    stops = loaded.processor.stop_ids
    stream = Stream(lambda ids: loaded.processor.tokenizer.decode(ids, skip_special_tokens=True))

    def on_token(row: int, token: int) -> None:
        if token not in stops:
            show(stream.push(token))

    (given,) = generate(
        loaded.model,
        batch,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        stop=stops,
        on_token=on_token,
    )
    show(stream.rest())
    return given
