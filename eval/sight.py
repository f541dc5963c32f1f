"""Sight: what a model with a geometry encoder saw of one item's scene, in a small file beside the record.

Shapes: S views, H,W pixels, h,w visual tokens, P points.
"""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from gnomon.eval.record import GEOMETRY, digest, write_bytes

_GATE = re.compile(r"gate_(\d+)")


@dataclass(frozen=True)
class Facts:
    """What the pictures do not show.

    views     of the scene; those that are kept may be fewer
    shown     which of them the vision encoder sees, too
    metric    the prediction is in metres as it is; else it is up to scale
    factor    that brought predicted depth up to scale to the truth, and likewise the points; None: none did
    abs_rel   mean |d' - d| / d of all views, and by view; nan where no pixel's depth is known
    error     mean |p' - p| / |p| of the points in the first camera's frame
    lent      points of each camera's own frame came together by the true cameras: none are predicted
    adrift    there is no cloud although points are predicted: no camera is placed among them
    """

    encoder: str
    fusion: str
    views: int
    shown: Sequence[int] = ()
    metric: bool = False
    factor: float | None = None
    abs_rel: float | None = None
    by_view: Sequence[float] = ()
    point_factor: float | None = None
    error: float | None = None
    lent: bool = False
    adrift: bool = False


@dataclass(frozen=True)
class Cloud:
    """Points (P,3) in the first camera's frame, their colours (P,3) uint8, and the cameras (S,3,4) in that frame."""

    points: np.ndarray
    colours: np.ndarray
    cameras: np.ndarray | None = None


@dataclass(frozen=True)
class Sight:
    """pixels (S,H,W,3) uint8; depth (S,H,W) along z, 0 where there is none. What is not predicted or known is None.

    gates: how much of each visual token (h,w) comes from geometry, by the view that the image shows.
    """

    facts: Facts
    pixels: np.ndarray
    depth: np.ndarray | None = None
    true_depth: np.ndarray | None = None
    cloud: Cloud | None = None
    true_cloud: Cloud | None = None
    gates: dict[int, np.ndarray] = field(default_factory=dict)


def path_of(folder: Path, task: str, sample: str) -> Path:
    """Where an evaluation keeps what was seen of an item."""
    name = re.sub(r"[^\w.=-]+", "-", sample)[:40]
    # names that are alike in these characters are still of different items
    return folder / GEOMETRY / f"{name}-{digest([task, sample])[:8]}.npz"


def write(path: Path, sight: Sight) -> None:
    """Whole or not at all, in half precision: this is for looking at."""
    arrays = {"pixels": sight.pixels, "depth": _half(sight.depth), "true_depth": _half(sight.true_depth)}
    for name, cloud in (("cloud", sight.cloud), ("true_cloud", sight.true_cloud)):
        if cloud is not None:
            parts = {"points": _half(cloud.points), "colours": cloud.colours, "cameras": cloud.cameras}
            arrays |= {f"{name}.{part}": array for part, array in parts.items()}
    arrays |= {f"gate_{view}": _half(gate) for view, gate in sight.gates.items()}
    buffer = io.BytesIO()
    given = {name: array for name, array in arrays.items() if array is not None}
    np.savez_compressed(buffer, facts=np.array(json.dumps(asdict(sight.facts))), **given)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror}); make room and repeat the command, it continues"
        ) from error


def read(path: Path) -> Sight:
    """What `write` wrote; nothing in the file is ever executed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = Facts(**json.loads(str(arrays.pop("facts"))))
        clouds = {name: _cloud(arrays, name) for name in ("cloud", "true_cloud")}
        gates = {int(found[1]): array for name, array in arrays.items() if (found := _GATE.fullmatch(name))}
        rest = {f.name: arrays.get(f.name) for f in fields(Sight) if f.name in ("pixels", "depth", "true_depth")}
        return Sight(facts, **rest, **clouds, gates=gates)
    except (OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and repeat gnomon evaluate") from error


def _cloud(arrays: dict[str, np.ndarray], name: str) -> Cloud | None:
    if f"{name}.points" not in arrays:
        return None
    return Cloud(arrays[f"{name}.points"], arrays[f"{name}.colours"], arrays.get(f"{name}.cameras"))


def _half(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else np.clip(array, -65000, 65000).astype(np.float16)
