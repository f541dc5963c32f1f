"""Shards: webdataset tar files with random access.

An item is `KEY.json` ({"id", "turns": [{"role", "text"}], "answer", "meta"}) and its images `KEY.png` or `KEY.0.png`,
`KEY.1.jpg`, ... With `KEY.npz` (see data/geometry.py; without arrays where only the pictures are known) these are the
views of a scene, and "images" in the JSON says how many of them the conversation has. The tars must not be compressed.
Nothing is ever extracted, and members that are not plain files with plain relative names are refused. Where each member
lies is looked up once and kept beside the shard.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
import zipfile
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np

from gnomon.data.errors import BadSample
from gnomon.data.geometry import unpack
from gnomon.data.sample import Sample, Source, Turn

IMAGE_TYPES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")

# webdataset's rule: the key ends at the first dot of the file's name
_NAME = re.compile(r"((?:.*/)?[^./]+)\.(?:(\d+)\.)?([^/.]+)")
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class Index:
    """Where the items of a shard lie; arrays, so that millions of items stay small and are shared by forked workers.

    keys     (items,) str
    members  (members,4) int64    item, number of the image (-1: the JSON, -2: the geometry), offset, size; sorted
    """

    keys: np.ndarray
    members: np.ndarray

    def __post_init__(self) -> None:
        self._starts = np.searchsorted(self.members[:, 0], np.arange(len(self.keys) + 1))

    def of(self, item: int) -> list[list[int]]:
        """Number, offset and size of an item's members."""
        return self.members[self._starts[item] : self._starts[item + 1], 1:].tolist()


class Shards(Source):
    """All items of some shards.

    urls  files, or patterns with * and {000..012}; one or a list. Patterns are sorted, lists keep their order.
    """

    def __init__(self, urls: str | Path | Sequence[str | Path]) -> None:
        urls = [urls] if isinstance(urls, (str, Path)) else urls
        self.paths = [path for url in urls for path in expand(str(url))]
        if not self.paths:
            raise ValueError("no shard was given; give at least one")
        self._indexes = [index(path) for path in self.paths]
        self._ends = list(accumulate(len(found.keys) for found in self._indexes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect_right(self._ends, index)
        found = self._indexes[shard]
        item = index - self._ends[shard] + len(found.keys)
        content: dict[int, bytes] = {}
        # opened anew each time: threads and forked workers would share a file position
        with self.paths[shard].open("rb") as file:
            for number, offset, size in found.of(item):
                file.seek(offset)
                content[number] = file.read(size)
        where = f"shard {self.paths[shard]} member {found.keys[item]}"
        if -1 not in content:
            raise BadSample(f"{where}.json: is missing; write the shard again")
        geometry = content.pop(-2, None)
        return _sample(content.pop(-1), tuple(content.values()), geometry, where)


def _sample(content: bytes, images: tuple[bytes, ...], arrays: bytes | None, where: str) -> Sample:
    geometry = None if arrays is None else unpack(arrays, images, name=f"{where}.npz")
    try:
        record = json.loads(content)
        turns = tuple(Turn(str(turn["role"]), str(turn["text"])) for turn in record["turns"])
        meta = {**(record.get("meta") or {}), "where": where}
        images = images[: record.get("images")] if geometry else images
        return Sample(str(record["id"]), turns, images, record.get("answer"), meta, geometry)
    except json.JSONDecodeError as error:
        raise BadSample(f"{where}.json: is not JSON ({error}); write the shard again") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadSample(f"{where}.json: has no id, turns, role or text where they belong ({error!r})") from error


def expand(url: str) -> list[Path]:
    """The files that a name or pattern stands for; each must exist."""
    braces = _BRACES.search(url)
    if braces:
        first, last = braces.groups()
        width = len(first) if first.startswith("0") else 1
        numbers = range(int(first), int(last) + 1)
        return [p for n in numbers for p in expand(f"{url[: braces.start()]}{n:0{width}}{url[braces.end() :]}")]
    paths = [Path(path) for path in sorted(glob.glob(url))] or [Path(url)]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"shard {path}: no such file; correct the name or pattern")
    return paths


def index(path: Path) -> Index:
    """The shard's index, from the note beside it if that is of this very file."""
    note, stat = path.with_name(path.name + ".index.npz"), path.stat()
    stamp = np.asarray([stat.st_size, stat.st_mtime_ns])
    try:
        with np.load(note, allow_pickle=False) as known:
            if (known["stamp"] == stamp).all():
                return Index(known["keys"], known["members"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # missing, of an older form, or damaged: make it again
        pass
    found = _scan(path)
    draft = note.with_name(f".{os.getpid()}.{note.name}")
    try:
        np.savez(draft, stamp=stamp, keys=found.keys, members=found.members)
        draft.replace(note)
    except OSError:
        # a read-only or full folder only costs the next run another look-up
        draft.unlink(missing_ok=True)
    return found


def _scan(path: Path) -> Index:
    keys: dict[str, int] = {}
    members = []
    size, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                _check(path, member, size)
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                match = _NAME.fullmatch(str(PurePosixPath(member.name))) if member.isreg() else None
                kind = match[3].lower() if match else ""
                if kind in ("json", "npz") or kind in IMAGE_TYPES:
                    number = {"json": -1, "npz": -2}.get(kind, int(match[2] or 0))
                    members.append((keys.setdefault(match[1], len(keys)), number, member.offset_data, member.size))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"shard {path}: is not an uncompressed tar ({error}); write it again") from error
    with path.open("rb") as file:
        # tarfile takes a broken header in the middle for the end of the archive; a real end is zeros or nothing
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise ValueError(f"shard {path}: is damaged at byte {end}, after {len(keys)} items; write it again")
    if not keys:
        raise ValueError(f"shard {path}: holds no item; remove it from the list")
    return Index(np.asarray(list(keys)), np.asarray(sorted(members)))


def _check(path: Path, member: tarfile.TarInfo, size: int) -> None:
    name = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()) or name.is_absolute() or ".." in name.parts:
        raise ValueError(f"shard {path}: member {member.name!r} is a link or leads out of it; make the shard again")
    if member.offset_data + member.size > size:
        raise ValueError(f"shard {path}: ends within member {member.name!r}; copy or write it again")
