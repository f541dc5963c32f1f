"""How many views of scenes one core makes per second, with all that is known about each pixel, per task and mixed.

numpy only, all rays of a scene in one batch. Questions, layouts and candidates are in the time, not just the pictures.

    python bench/data_scenes.py [--sizes 64 112 224] [--items 50] [--out bench/results/data_scenes.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
from data_diagrams import processor

from gnomon.data.sources.scenes.source import TASKS, Scenes


def rate(source: Scenes, items: int) -> tuple[float, float]:
    """Views and scenes per second of one process, the fastest of three runs; process time, without what else runs."""
    source[0]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        views = sum(len(source[index].geometry.views) for index in range(1, items + 1))
        seconds.append(time.process_time() - start)
    return views / min(seconds), items / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 112, 224])
    parser.add_argument("--items", type=int, default=50, help="per task")
    parser.add_argument("--out", type=Path, default=Path("bench/results/data_scenes.json"))
    options = parser.parse_args()
    try:
        if options.items < 1:
            raise ValueError(f"{options.items} items take no time; make 1 or more")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        mixed = len(TASKS) * options.items
        sizes = {}
        for side in options.sizes:
            views, scenes = rate(Scenes(count=mixed + 1, size=(side, side)), mixed)
            sizes[side] = {"views_per_second": views, "scenes_per_second": scenes}
            print(f"{side}x{side}: {views:.0f} views/s, {scenes:.0f} scenes/s of 2 to 4 views, all tasks")
        tasks = {}
        for task in TASKS:
            tasks[task] = rate(Scenes(count=options.items + 1, tasks=[task]), options.items)[0]
            print(f"{task:18}{tasks[task]:6.0f} views/s at 112x112")
    except (ValueError, OSError) as error:
        sys.exit(f"data_scenes: {error}")
    result = {
        "device": processor(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": 1,
        "sizes": sizes,
        "views_per_second_by_task_at_112": tasks,
    }
    print(f"one core of {result['device']}")
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
