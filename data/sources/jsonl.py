"""LLaVA's JSON: conversations with image files, as one list or a row per line.

A row: {"id": ..., "image": "a.jpg" | ["a.jpg", ...], "conversations": [{"from": ..., "value": ...}]}, where "from" is
human, gpt or system. Rows without "image" are text; "task", a name, is for whoever scores them. JSONL is read row by
row through an index of line starts; a list is held in memory. A row's images may be views of one scene, for models with
a geometry encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gnomon.data.errors import BadSample
from gnomon.data.sample import IMAGE_MARK, Geometry, Sample, Source, Turn

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class LlavaJson(Source):
    """Samples of a LLaVA JSON or JSONL file.

    path    the file; a list when its first character is "[", else a row per line (empty lines do not count)
    images  folder that the rows' image names are relative to; names that lead out of it are refused
    scenes  each row's images, at least two and of one size, are the views of one scene: a geometry encoder sees all of
            them, the vision encoder those with a mark, which are the first (one mark) or all (a mark each)

    A row with exactly one image and no <image> mark gets the mark and a line break before its first human text.
    """

    def __init__(self, path: str | Path, images: str | Path | None = None, *, scenes: bool = False) -> None:
        self.path, self.scenes = Path(path), scenes
        self.images = None if images is None else Path(images).resolve()
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file; correct the path")
        if self.images is not None and not self.images.is_dir():
            raise ValueError(f"{self.images}: no such folder; correct images")
        with self.path.open("rb") as file:
            is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        self._rows = _load_list(self.path) if is_list else None
        self._lines = np.zeros((0, 3), dtype=np.int64) if is_list else _index_lines(self.path)
        if not len(self):
            raise ValueError(f"{self.path}: holds no row; give it at least one")

    def __len__(self) -> int:
        return len(self._lines) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        where, row = self._row(index)
        if not isinstance(row, dict):
            raise BadSample(f"{where}: is {type(row).__name__}, not an object; see LLaVA's format")
        turns = _turns(row.get("conversations"), where)
        names = row.get("image") or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise BadSample(f"{where}: image {names!r} is neither a name nor a list of names")
        images = tuple(self._image(name, where) for name in names)
        geometry = None
        if self.scenes and images:
            geometry, images = Geometry(images), images[: _shown(turns, len(images), where)]
        turns = _mark(turns, len(images), where)
        meta = {"where": where} | ({"task": row["task"]} if isinstance(row.get("task"), str) else {})
        return Sample(str(row.get("id", index)), turns, images, meta=meta, geometry=geometry)

    def _row(self, index: int) -> tuple[str, Any]:
        if self._rows is not None:
            return f"{self.path} row {index}", self._rows[index]
        start, length, number = self._lines[index].tolist()
        where = f"{self.path} line {number}"
        # opened anew each time: threads and forked workers would share a file position
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        try:
            return where, json.loads(content)
        except ValueError as error:
            raise BadSample(f"{where}: is not JSON ({error}); repair or remove it") from error

    def _image(self, name: str, where: str) -> Path:
        if self.images is None:
            raise BadSample(f"{where}: has image {name!r} but no folder of images was given; set images")
        path = (self.images / name).resolve()
        if not path.is_relative_to(self.images):
            raise BadSample(f"{where}: image {name!r} leads out of {self.images}; set images to a folder that holds it")
        return path


def _load_list(path: Path) -> list[Any]:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON ({error}); repair it, or use one row per line") from error


def _index_lines(path: Path) -> np.ndarray:
    """(rows, 3): start, length and number of every line that is not blank."""
    found, start = [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                found.append((start, len(line), number))
            start += len(line)
    return np.asarray(found, dtype=np.int64).reshape(-1, 3)


def _turns(conversation: Any, where: str) -> list[Turn]:
    if not isinstance(conversation, list) or not conversation:
        raise BadSample(f"{where}: has no conversations; give it a list of turns")
    turns = []
    for turn in conversation:
        role = _ROLES.get(turn.get("from")) if isinstance(turn, dict) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise BadSample(f"{where}: turn {turn!r:.80} needs 'from' (human, gpt or system) and 'value' (text)")
        turns.append(Turn(role, turn["value"]))
    return turns


def _shown(turns: list[Turn], views: int, where: str) -> int:
    """How many of a scene's views the conversation has as images."""
    marks = _marks(turns)
    if views == 1:
        raise BadSample(f"{where}: has 1 image, but a scene takes 2 views or more; add some, or leave scenes off")
    if marks not in (1, views):
        raise BadSample(
            f"{where}: has {marks} {IMAGE_MARK} marks and {views} views of a scene; give it 1 mark, which is the first "
            f"view, or {views}"
        )
    return marks


def _marks(turns: list[Turn]) -> int:
    return sum(turn.text.count(IMAGE_MARK) for turn in turns)


def _mark(turns: list[Turn], images: int, where: str) -> tuple[Turn, ...]:
    marks = _marks(turns)
    if images == 1 and marks == 0:
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), 0)
        turns[first] = Turn(turns[first].role, f"{IMAGE_MARK}\n{turns[first].text}")
    elif marks != images:
        scene = ", unless scenes says that they are the views of one" if marks == 1 < images else ""
        raise BadSample(f"{where}: has {marks} {IMAGE_MARK} marks and {images} images; they must be as many{scene}")
    return tuple(turns)
