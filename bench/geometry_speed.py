"""How long geometry encoders take on the CPU with the ways to attend across views, and how far tokens move by them.

Weights are random, unless --weights gives TinyGeo's: times do not depend on them, differences do. Pictures are windows
that move over one texture, so that neighbouring views overlap. Layers of Good Token Hunting are those of its paper,
scaled from 24 to the encoder's number. All ways take turns; times are medians: of the process's own time with one
thread, so that other work on the machine does not count, and by the clock with more.

    python bench/geometry_speed.py [--views 16 64 200] [--threads 1] [--repeat 5] [--weights runs/tinygeo/encoder]
                                   [--out bench/results/geometry_speed]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from data_diagrams import processor
from torch.nn import functional as F

from gnomon.vlm.crossview.fastvggt import FastVGGT
from gnomon.vlm.crossview.gotohunt import GoodTokenHunting
from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.geometry.vggt import VGGT
from gnomon.vlm.multiview.alternating import AlternatingEncoder
from gnomon.vlm.multiview.cross import CrossView

ENCODERS: dict[str, tuple[Callable[..., AlternatingEncoder], tuple[int, int]]] = {
    "TinyGeo xs": (TinyGeo, (64, 64)),
    "VGGT 192 wide, 6 layers": (
        lambda **_: VGGT(heads=[], width=192, embed_depth=2, depth=6, attention_heads=3, trained_at=112, taps=()),
        (84, 112),
    ),
}


def ways(layers: int) -> dict[str, CrossView]:
    local, sample = math.ceil(2 / 24 * layers), math.ceil(9 / 24 * layers)
    return {
        "dense": CrossView(),
        "FastVGGT 0.5": FastVGGT(0.5),
        "FastVGGT 0.9": FastVGGT(0.9),
        f"Good Token Hunting, 25 views, {local} local, {sample - local} strided": GoodTokenHunting(
            25, local=local, sample=sample
        ),
    }


def pan(views: int, size: tuple[int, int]) -> GeometryInput:
    """Of each view to the next the window moves by a tenth of its width, and turns back at the texture's ends."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    grains = (torch.rand(1, 3, side, 8 * side, generator=generator) for side in (8, 32))
    texture = sum(F.interpolate(g, (height, 8 * width), mode="bicubic") for g in grains) / 2
    room = 7 * width
    starts = [room - abs(room - view * width // 10 % (2 * room)) for view in range(views)]
    images = torch.stack([texture[0, ..., start : start + width] for start in starts])[None].clamp(0, 1)
    return GeometryInput(images, torch.ones(1, views, dtype=torch.bool))


def measure(
    encoder: AlternatingEncoder, given: GeometryInput, repeat: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """By way: seconds, how many times as fast as dense, and how far its tokens are from the dense ones."""
    times: dict[str, list[float]] = {}
    tokens = {}
    for _ in range(repeat):
        for name, way in ways(encoder.layer_count).items():
            encoder.cross = way
            start = clock()
            tokens[name] = encoder.measure(given).tokens
            times.setdefault(name, []).append(clock() - start)
    dense = tokens["dense"]
    return {
        name: {
            "seconds": median(taken),
            "fastest": min(taken),
            "speed": median(times["dense"]) / median(taken),
            "difference": ((tokens[name] - dense).norm() / dense.norm()).item(),
        }
        for name, taken in times.items()
    }


def table(result: dict) -> str:
    heads = [f"{views} views" for views in result["views"]]
    lines = [
        "# Geometry encoders: ways to attend across views",
        "",
        f"`python bench/geometry_speed.py --threads {result['threads']} --repeat {result['repeat']}`: median seconds "
        "of a pass, all ways in turn, times as fast as dense, and the relative distance of its tokens from dense ones.",
        "",
        f"{result['device']}, {result['threads']} of its threads, {result['clock']}, torch {result['torch']}, "
        f"{result['weights'] or 'random'} weights. Load average {result['load']:.1f} on {result['cores']} cores.",
    ]
    for encoder, runs in result["encoders"].items():
        lines += ["", f"## {encoder}, {runs['size']}", "", "| way | " + " | ".join(heads) + " |"]
        lines.append("|---" * (len(heads) + 1) + "|")
        for way in runs["runs"][str(result["views"][0])]:
            cells = [runs["runs"][str(views)][way] for views in result["views"]]
            shown = [f"{c['seconds']:.2f} s, {c['speed']:.2f}x, {c['difference']:.1e}" for c in cells]
            lines.append(f"| {way} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, nargs="+", default=[16, 64, 200])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--weights", help="of TinyGeo xs")
    parser.add_argument("--out", type=Path, help="directory for the JSON and the table; left out: only printed")
    options = parser.parse_args()
    try:
        for name in ("threads", "repeat"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name} is {getattr(options, name)}; give 1 or more")
        if min(options.views) < 1:
            raise ValueError(f"{min(options.views)} views show nothing; give 1 or more")
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(options.threads)
        clock = time.process_time if options.threads == 1 else time.perf_counter
        encoders = {}
        for name, (make, size) in ENCODERS.items():
            torch.manual_seed(0)
            encoder = make(heads=[], weights=options.weights)
            # the first pass is slower
            encoder.measure(pan(2, size))
            runs = {}
            for views in options.views:
                runs[str(views)] = measure(encoder, pan(views, size), options.repeat, clock)
                for way, found in runs[str(views)].items():
                    shown = f"{found['seconds']:8.3f} s {found['speed']:6.2f}x {found['difference']:9.1e}"
                    print(f"{name}, {views} views: {shown}  {way}", flush=True)
            encoders[name] = {"size": f"{size[0]}x{size[1]} pixels", "runs": runs}
    except (ValueError, OSError) as error:
        sys.exit(f"geometry_speed: {error}")
    result = {
        "device": processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": clock.__name__,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "repeat": options.repeat,
        "weights": options.weights,
        "views": options.views,
        "encoders": encoders,
    }
    if options.out is not None:
        (options.out / "geometry_speed.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "geometry_speed.md").write_text(table(result))


if __name__ == "__main__":
    main()
