"""How many diagrams one core draws per second, per task and level and all mixed.

python bench/data_diagrams.py [--size 224] [--items 200] [--out bench/results/data_diagrams.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

from gnomon.data.sources.diagrams.source import LEVELS, TASKS, Diagrams


def processor() -> str:
    """The CPU's model name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rate(source: Diagrams, items: int) -> float:
    """Samples per second of one process; process time, so that other work on the machine does not count."""
    source[0]
    start = time.process_time()
    for index in range(1, items + 1):
        source[index]
    return items / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--items", type=int, default=200, help="per task and level")
    parser.add_argument("--out", type=Path, default=Path("bench/results/data_diagrams.json"))
    options = parser.parse_args()
    size, count = (options.size, options.size), options.items + 1
    rates: dict[str, dict[int, float]] = {task: {} for task in TASKS}
    for task in TASKS:
        for level in LEVELS:
            rates[task][level] = rate(Diagrams(count=count, tasks=[task], levels=[level], size=size), options.items)
    mixed = len(TASKS) * options.items
    overall = rate(Diagrams(count=mixed + 1, size=size), mixed)
    print(f"{'task':16}" + "".join(f"level {level:<6}" for level in LEVELS))
    for task, row in rates.items():
        print(f"{task:16}" + "".join(f"{row[level]:<12.0f}" for level in LEVELS))
    print(f"all tasks, all levels: {overall:.0f} samples/s at {size[0]}x{size[1]} on one core of {processor()}")
    result = {
        "device": processor(),
        "python": platform.python_version(),
        "size": size,
        "samples_per_second": overall,
        "by_task_and_level": rates,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
