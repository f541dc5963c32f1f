"""What it costs a trained geometry encoder to attend across views in cheaper ways: its errors on held-out scenes.

    python bench/geometry_accuracy.py --weights runs/tinygeo/encoder [--views 16 64 200] [--scenes 40]
                                      [--out bench/results/geometry_accuracy]

All ways see the same scenes of the test split. Times are in bench/results/geometry_speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from data_diagrams import processor
from geometry_speed import ways

from gnomon.data.sources.scenes.source import Scenes
from gnomon.eval.geometry.measure import measured
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.layout import ViewsSpec

SIZE = (64, 64)
COLUMNS = {
    "depth AbsRel": "AbsRel",
    "delta1": "delta1",
    "points AbsRel": "AbsRel of points",
    "points Chamfer": "Chamfer of points",
    "AUC@30": "AUC@30",
}


def table(result: dict) -> str:
    lines = [
        "# Geometry encoders: what cheaper ways to attend across views cost in accuracy",
        "",
        f"`python bench/geometry_accuracy.py --weights {result['weights']} --scenes {result['scenes']}`: TinyGeo xs on "
        f"scenes of the test split, {SIZE[0]}x{SIZE[1]} pixels; the change against dense attention in brackets. "
        f"{result['device']}, torch {result['torch']}.",
    ]
    for views, runs in result["runs"].items():
        dense = runs["dense"]
        lines += ["", f"## {views} views", "", "| way | " + " | ".join(COLUMNS) + " |"]
        lines.append("|---" * (len(COLUMNS) + 1) + "|")
        for way, found in runs.items():
            cells = [
                f"{found[name]:.3f}" + ("" if way == "dense" else f" ({found[name] - dense[name]:+.4f})")
                for name in COLUMNS.values()
            ]
            lines.append(f"| {way} | " + " | ".join(cells) + " |")
        flat = [f"{dense[name]:.3f}" for name in ("AbsRel of the median depth", "delta1 of the median depth")]
        lines.append("| one depth everywhere, the median | " + " | ".join(flat) + " | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="of TinyGeo xs, of `gnomon fit-geometry`")
    parser.add_argument("--views", type=int, nargs="+", default=[16, 64, 200])
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--out", type=Path, help="directory for the JSON and the table; left out: only printed")
    options = parser.parse_args()
    runs: dict[str, dict[str, dict[str, float]]] = {}
    try:
        if options.scenes < 1:
            raise ValueError(f"{options.scenes} scenes have no errors; measure 1 or more")
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        encoder = TinyGeo(weights=options.weights)
        spec = ViewsSpec(encoder.multiple, max(options.views))
        for views in options.views:
            scenes = Scenes(count=options.scenes, split="test", tasks=["nearer"], views=views, size=SIZE)
            for way, cross in ways(encoder.layer_count).items():
                encoder.cross = cross
                found = runs.setdefault(str(views), {})[way] = measured(encoder, scenes, spec)
                shown = "  ".join(f"{name} {found[key]:.4f}" for name, key in COLUMNS.items())
                print(f"{views} views, {way}: {shown}", flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"geometry_accuracy: {error}")
    result = {
        "device": processor(),
        "torch": torch.__version__,
        "weights": options.weights,
        "scenes": options.scenes,
        "runs": runs,
    }
    print(table(result))
    if options.out is not None:
        (options.out / "geometry_accuracy.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "geometry_accuracy.md").write_text(table(result))


if __name__ == "__main__":
    main()
