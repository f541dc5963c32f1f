"""The journal of an evaluation: what every item was answered, kept line by line so that nothing is lost or repeated.

A run directory holds

    header.json     what was measured and how: the identity, which later runs must share; each session's surroundings
    items.jsonl     one line per answered item, appended and synced; the model's raw text, its tokens and its time
    scores.jsonl    one line per item, made from items.jsonl at any time; equal texts give equal bytes
    summary.json    the table
    geometry/       what a model with a geometry encoder saw of the first scenes; see sight.py
    reduced/        the same of its variants, each in a directory of its own
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

HEADER, ITEMS, SCORES, SUMMARY = "header.json", "items.jsonl", "scores.jsonl", "summary.json"
GEOMETRY = "geometry"
REDUCED = "reduced"
"""Where, below a run, its variants are: with token reduction, or with other geometry."""


class Key(NamedTuple):
    task: str
    sample: str
    prompt: str
    decode: str


@dataclass(frozen=True)
class Record:
    """One answered item. `prompt` is the text the model saw, `item` the question as the scorer wants it.

    visual_kept, kept   visual tokens at the last layer, and the cells that they stand for (see runner.kept_text); None
                        where nothing was reduced
    """

    task: str
    sample: str
    prompt_sha256: str
    decode_sha256: str
    benchmark: str
    item: dict[str, Any]
    prompt: str
    image_sha256: list[str]
    raw: str
    finish: str
    prompt_tokens: int
    visual_tokens: int
    generated_tokens: int
    seconds_prefill: float
    seconds_decode: float
    batch_size: int
    visual_kept: int | None = None
    kept: list[str] | None = None

    @property
    def key(self) -> Key:
        return Key(self.task, self.sample, self.prompt_sha256, self.decode_sha256)


def digest(value: Any) -> str:
    """SHA-256 of bytes, of text, or of plain data in canonical JSON."""
    if not isinstance(value, bytes):
        value = (value if isinstance(value, str) else json.dumps(value, sort_keys=True)).encode()
    return hashlib.sha256(value).hexdigest()


@dataclass
class Journal:
    """Append-only records under one directory, open to continue as long as the identity is the same."""

    folder: Path
    header: dict[str, Any]
    records: dict[Key, Record] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, *, identity: dict[str, Any], session: dict[str, Any], fresh: bool = False) -> Journal:
        """Start a directory or continue it; another model or setting in it is refused."""
        # through JSON and back, so that a tuple compares equal to the list it is stored as
        identity = json.loads(json.dumps(identity))
        check_place(folder / HEADER)
        if fresh:
            for name in (HEADER, ITEMS, SCORES, SUMMARY):
                (folder / name).unlink(missing_ok=True)
            for path in (folder / GEOMETRY).glob("*.npz"):
                path.unlink()
            if (folder / REDUCED).exists():
                shutil.rmtree(folder / REDUCED)
        if (folder / ITEMS).exists() and not (folder / HEADER).exists():
            raise ValueError(
                f"{folder} holds answers of unknown origin ({HEADER} is gone); choose another --out, or --fresh"
            )
        header = read_header(folder) if (folder / HEADER).exists() else {"identity": identity, "sessions": []}
        other = sorted(_differences(header["identity"], identity))
        if other:
            raise ValueError(
                f"{folder} holds results of another setting ({'; '.join(other)}); "
                "choose another --out, or --fresh to discard them"
            )
        header["sessions"].append(session)
        write_json(folder / HEADER, header)
        drop_torn_line(folder / ITEMS)
        return cls(folder, header, {record.key: record for record in read_items(folder)})

    def append(self, records: Iterable[Record]) -> None:
        """Write whole lines and wait until the disk has them."""
        records = list(records)
        lines = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
        path = self.folder / ITEMS
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ValueError(
                f"{path} cannot be written ({error.strerror}); make room and repeat the command, it continues"
            ) from error
        self.records.update((record.key, record) for record in records)


def drop_torn_line(path: Path) -> None:
    """Cut off what a kill left of the last line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); name a directory that `gnomon evaluate` wrote") from error


def read_items(folder: Path) -> list[Record]:
    """All whole records; a damaged line in the middle is an error, the torn last one is not."""
    path = folder / ITEMS
    if not path.exists():
        return []
    # split as bytes: a kill can cut a character in two
    lines = path.read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} line {number} is damaged ({error}); delete the line to have it answered again"
            ) from error
    return records


def check_place(path: Path, *, option: str = "--out") -> None:
    """A ValueError, before any work, where this file cannot be written; its folder is made."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path)
        draft.touch()
        draft.unlink()
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another {option}") from error


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Whole or not at all: a kill never leaves half a file."""
    draft = _draft(path)
    draft.write_bytes(content)
    draft.replace(path)


def _draft(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterable[str]:
    for key in old.keys() | new.keys():
        was, now = old.get(key), new.get(key)
        if was != now:
            yield f"{key} {_short(was)}, now {_short(now)}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 40 else text[:37] + "..."
