"""Scenes of the fusion proof in files: what takes longest to make is made once and read by every run.

Shapes: I items, S views, N cells, C width.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator

from gnomon.data.sample import IMAGE_MARK, Geometry, Sample, Turn
from gnomon.data.sources.scenes.source import Scenes
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.layout import Views

AXES = ((1, "high"), (1, "low"), (2, "left"), (2, "right"))
SIZE, VIEWS, GRID = (64, 64), 3, 8
_ARRAYS = ("pixels", "depth", "extrinsics", "intrinsics")
_CHUNK = 200


@dataclass(frozen=True)
class Text:
    """A question about space with its answer. where: the objects, each with row and column of its middle in the
    picture, and its distance from the camera.
    """

    task: str
    question: str
    answer: str
    where: tuple[tuple[str, float, float, float], ...]

    def distances(self, generator: Generator) -> tuple[str, str]:
        """All that there is to know of depth, in one answer."""
        things = [self.where[k] for k in generator.permutation(len(self.where))]
        return "How far is what?", ", ".join(f"{name} {far:.1f}" for name, *_, far in things)

    @property
    def asked(self) -> tuple[str, str]:
        return self.question, self.answer

    def places(self, generator: Generator) -> tuple[str, str]:
        """Where everything is in the picture, in any order."""
        things = [self.where[k] for k in generator.permutation(len(self.where))]
        return "Where in the picture is what?", ", ".join(f"{name} {int(y)} {int(x)}" for name, y, x, _ in things)

    def places_or_order(self, generator: Generator) -> tuple[str, str]:
        """That, or how two or three objects lie to each other in the picture."""
        things = [self.where[k] for k in generator.permutation(len(self.where))]
        axis, first = AXES[generator.integers(len(AXES))]
        # by a cell at least, so that the answer is clear
        apart = [thing for k, thing in enumerate(things) if all(abs(thing[axis] - o[axis]) > 1 for o in things[:k])][:3]
        if generator.random() < 1 / 3 or len(apart) < 2:
            return self.places(generator)
        order = sorted(apart, key=lambda thing: thing[axis], reverse=first in ("right", "low"))
        names = [name for name, *_ in apart]
        if len(apart) == 2:
            return f"Which is more {first} in the picture, the {names[0]} or the {names[1]}?", order[0][0]
        listed = f"the {names[0]}, the {names[1]} and the {names[2]}"
        return f"Put {listed} in order, the most {first} first.", ", ".join(name for name, *_ in order)


class Stock:
    """`count` training items of the generator's seed, in a directory; made if they are not there."""

    def __init__(self, folder: Path, *, count: int, seed: int, tasks: list[str], jobs: int) -> None:
        self.folder, self.count = folder, count
        self.source = Scenes(count=count, seed=seed, tasks=tasks, views=VIEWS, size=SIZE, prompt="words")
        marker = folder / "texts.json"
        if not marker.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            marker.write_text(json.dumps(self._make(jobs)))
        self.texts = [Text(t, q, a, tuple(map(tuple, w))) for t, q, a, w in json.loads(marker.read_text())]
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}

    def _make(self, jobs: int) -> list[tuple]:
        shapes = {
            "pixels": (VIEWS, 3, *SIZE),
            "depth": (VIEWS, *SIZE),
            "extrinsics": (VIEWS, 3, 4),
            "intrinsics": (VIEWS, 3, 3),
        }
        kinds = {"pixels": np.uint8, "depth": np.float16}
        files = {
            name: np.lib.format.open_memmap(
                self.folder / f"{name}.npy", "w+", kinds.get(name, np.float32), (self.count, *shape)
            )
            for name, shape in shapes.items()
        }
        texts = []
        starts = range(0, self.count, _CHUNK)
        deaf = (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(jobs, get_context("spawn"), signal.signal, deaf) as pool:
            for start, (told, arrays) in zip(starts, pool.map(_render, [self.source] * len(starts), starts)):
                texts += told
                for name, array in arrays.items():
                    files[name][start : start + len(array)] = array
        for file in files.values():
            file.flush()
        return texts

    def sample(self, item: int, said: Sequence[tuple[str, str]]) -> Sample:
        """The item's first view, and questions with their answers one after the other."""
        bare = [(asked.removeprefix(f"{IMAGE_MARK}\n"), reply) for asked, reply in said]
        turns = [turn for asked, reply in bare for turn in (Turn("user", asked), Turn("assistant", reply))]
        turns[0] = Turn("user", f"{IMAGE_MARK}\n{turns[0].text}")
        # whoever wants depth takes it from `views`: here it would be checked against the cameras, item by item
        known = Geometry(tuple(self.arrays["pixels"][item].transpose(0, 2, 3, 1)))
        return Sample(f"{item}", tuple(turns), known.views[:1], geometry=known)

    def views(self, item: int) -> Views:
        pixels, depth, extrinsics, intrinsics = (torch.from_numpy(self.arrays[n][item].copy()) for n in _ARRAYS)
        return Views(pixels, [0, *[-1] * (VIEWS - 1)], intrinsics, extrinsics, depth.float())

    def remember(self, encoder: GeometryEncoder, file: Path) -> Remembered:
        """A frozen encoder's tokens of all items; looked at once."""
        if not file.is_file():
            draft = file.with_suffix(".part")
            # few at a time stay in the cache
            for start in range(0, self.count, 8):
                items = range(start, min(start + 8, self.count))
                tokens = encoder.measure(GeometryInput.stack([self.views(item) for item in items], "cpu")).tokens
                if start == 0:
                    shape = (self.count, *tokens.shape[1:])
                    held = np.lib.format.open_memmap(draft, "w+", np.float16, shape)
                held[start : start + len(tokens)] = tokens.numpy()
            held.flush()
            draft.rename(file)
        return Remembered(file)


class Remembered:
    """A frozen encoder's tokens of the stock's items, (I,S,N,C)."""

    def __init__(self, file: Path) -> None:
        self.tokens = np.load(file, mmap_mode="r")

    def output(self, items: list[int]) -> GeometryOutput:
        tokens = torch.from_numpy(self.tokens[items]).float()
        side = math.isqrt(tokens.shape[2])
        return GeometryOutput(tokens, (side, side), torch.ones(tokens.shape[:2], dtype=torch.bool))


def _render(source: Scenes, start: int) -> tuple[list[tuple], dict[str, np.ndarray]]:
    texts, arrays = [], {name: [] for name in _ARRAYS}
    for index in range(start, min(start + _CHUNK, len(source))):
        sample = source[index]
        known = sample.geometry
        texts.append((sample.meta["task"], sample.turns[0].text, sample.turns[1].text, _where(sample)))
        arrays["pixels"].append(np.stack(known.views).transpose(0, 3, 1, 2))
        arrays["depth"].append(known.depth)
        arrays["extrinsics"].append(known.extrinsics)
        arrays["intrinsics"].append(known.intrinsics)
    return texts, {name: np.stack(values) for name, values in arrays.items()}


def _where(sample: Sample) -> list[tuple[str, float, float, float]]:
    """Each object's name, the middle of it in the first picture, in cells down and across, and its distance."""
    known, found = sample.geometry, []
    for thing in sample.meta["objects"]:
        camera = known.extrinsics[0] @ np.append(thing["centre"], 1.0)
        column, row, depth = known.intrinsics[0] @ camera
        place = np.clip(np.array([row, column]) / depth / SIZE * GRID, 0, GRID - 0.01)
        found.append((thing["name"], *place.tolist(), float(np.linalg.norm(camera))))
    return found
