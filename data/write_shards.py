"""Write a source's samples as webdataset shards that data/sources/shards.py and webdataset itself read.

A shard is written under a passing name and renamed when it is whole, so what is there is complete: a second call with
the same arguments writes only what is missing. shards.json says what decided about the samples. Equal samples make
equal bytes.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from gnomon.data.errors import BadImage
from gnomon.data.geometry import pack
from gnomon.data.sample import Image, Source

# An item as files: name and content of each.
Members = list[tuple[str, bytes]]


def write(
    source: Source,
    out: str | Path,
    *,
    count: int | None = None,
    shard_size: int = 1000,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write samples 0 to count-1 into `out`/000000.tar, ...; `on_progress` gets (samples done, samples in all)."""
    count = len(source) if count is None else count
    if not 0 < count <= len(source):
        raise ValueError(f"count {count} does not fit a source of {len(source)} samples; use 1 to {len(source)}")
    if shard_size < 1:
        raise ValueError(f"shard_size {shard_size} is too small; use 1 or more")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    first = hashlib.sha256(repr(members(source, 0)).encode()).hexdigest()
    plan = {"count": count, "shard_size": shard_size, "of": len(source), "first": first}
    if settings := source.settings():
        plan["source"] = {"class_path": f"{type(source).__module__}.{type(source).__qualname__}", **settings}
    _agree(out / "shards.json", plan)

    def done(samples: int) -> None:
        if on_progress is not None:
            on_progress(samples, count)

    paths = []
    with _mapper(source, workers) as make:
        for start in range(0, count, shard_size):
            ids = range(start, min(start + shard_size, count))
            paths.append(out / f"{start // shard_size:06d}.tar")
            if paths[-1].exists():
                done(ids.stop)
            else:
                _shard(paths[-1], make(ids), lambda written, start=start: done(start + written))
    return paths


def members(source: Source, index: int) -> Members:
    """What sample `index` is in a shard: its JSON, its geometry if it has one, then its images (or all views)."""
    sample, key = source[index], f"{index:09d}"
    record = {
        "id": sample.id,
        "turns": [{"role": turn.role, "text": turn.text} for turn in sample.turns],
        "answer": sample.answer,
        "meta": sample.meta,
    }
    images = sample.images
    if sample.geometry is not None:
        # the images are the first of the views
        record["images"], images = len(sample.images), sample.geometry.views
    try:
        files = [(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())]
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample {sample.id!r} cannot be written as JSON: {error}; use plain types") from error
    if sample.geometry is not None:
        files.append((f"{key}.npz", pack(sample.geometry)))
    for k, image in enumerate(images):
        content, extension = _encode(image, f"image {k} of sample {sample.id!r}")
        files.append((f"{key}.{k}.{extension}", content))
    return files


def _encode(image: Image, name: str) -> tuple[bytes, str]:
    """Pixels become PNG; what is encoded already is copied as it is."""
    if isinstance(image, np.ndarray):
        buffer = io.BytesIO()
        Pillow.fromarray(image).save(buffer, "PNG")
        return buffer.getvalue(), "png"
    content = image if isinstance(image, bytes) else image.read_bytes()
    try:
        with Pillow.open(io.BytesIO(content)) as opened:
            kind = (opened.format or "").lower()
    except UnidentifiedImageError as error:
        raise BadImage(f"{name}: is not an image; replace or remove it") from error
    return content, {"jpeg": "jpg"}.get(kind, kind)


def _shard(path: Path, items: Iterable[Members], on_progress: Callable[[int], None]) -> None:
    draft = path.with_name(f".{path.name}.draft")
    try:
        with tarfile.open(draft, "w") as tar:
            for written, files in enumerate(items, 1):
                for name, content in files:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                on_progress(written)
        draft.replace(path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"no space left while writing {path}; free some and run again, finished shards are kept"
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def _agree(note: Path, plan: dict[str, Any]) -> None:
    """Refuse to mix the shards of two different calls in one folder."""
    if not note.exists():
        note.write_text(json.dumps(plan))
        return
    held, before = note.read_text(), {name: value for name, value in plan.items() if name != "source"}
    if "source" in plan and held == json.dumps(before):
        raise ValueError(
            f"{note} does not say what its shards were drawn with; read them as they are, or use an empty folder"
        )
    if held != json.dumps(plan):
        raise ValueError(
            f"{note.parent} holds shards of other samples, or of another count or size; use an empty folder"
        )


@contextmanager
def _mapper(source: Source, workers: int) -> Iterator[Callable[[range], Iterable[Members]]]:
    """A function that makes the items of some ids, in order, in this process or in workers."""
    if not workers:
        yield lambda ids: map(partial(members, source), ids)
        return
    pool = ProcessPoolExecutor(workers, initializer=_adopt, initargs=(source,))
    try:
        yield lambda ids: pool.map(_adopted_members, ids, chunksize=max(1, min(16, len(ids) // workers)))
    finally:
        pool.shutdown(cancel_futures=True)


# In a worker process: the source, which may be large, so that it travels once and not with every task.
_adopted: list[Source] = []


def _adopt(source: Source) -> None:
    _adopted[:] = [source]


def _adopted_members(index: int) -> Members:
    return members(_adopted[0], index)
