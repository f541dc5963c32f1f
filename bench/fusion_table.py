"""The fusion proof as a table and a picture.

A score is a mean over items; beside it is the standard deviation over seeds. A difference is paired: per item the mean
over the seeds of both, then a percentile interval from resampling the items.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from gnomon.data.sources.scenes.source import TASKS
from gnomon.eval.metrics import interval, resampled_means

METRIC = ("distance", "height")
BASELINE, NAIVE = "2-D alone", "add"


def scores(result: dict[str, Any], mode: str = "own") -> dict[str, dict[str, np.ndarray]]:
    """By condition and task: (seeds, items), items in one order; of those that were asked with this geometry."""
    found: dict[str, dict[str, list]] = {}
    for run in result["runs"]:
        items = run["scores"].get(mode, {})
        by_task: dict[str, list[float]] = {}
        for item in sorted(items):
            by_task.setdefault(item.split("/")[0], []).append(items[item])
        for task, values in by_task.items():
            found.setdefault(run["condition"], {}).setdefault(task, []).append(values)
    return {name: {task: np.array(runs) for task, runs in tasks.items()} for name, tasks in found.items()}


def mean(by_task: dict[str, np.ndarray]) -> np.ndarray:
    """(seeds,) of the tasks, each counting alike."""
    return np.mean([runs.mean(1) for runs in by_task.values()], axis=0)


def cell(means: np.ndarray) -> str:
    spread = f" ± {100 * means.std(ddof=1):.1f}" if len(means) > 1 else ""
    return f"{100 * means.mean():.1f}{spread}"


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """Of the unweighted mean over tasks, in points, with its 95 % interval."""
    apart = [100 * (one[task].mean(0) - other[task].mean(0)) for task in one]
    means = sum(resampled_means(values, seed=k) for k, values in enumerate(apart)) / len(apart)
    return float(np.mean([values.mean() for values in apart])), *interval(means)


def markdown(result: dict[str, Any]) -> str:
    found, swapped, quality = scores(result), scores(result, "other"), result["encoder"]
    tasks = list(next(iter(found.values())))
    asked = f" --steps {result['steps'][-1]}"
    if result["seeds"] != [0, 1, 2]:
        asked += " --seeds " + " ".join(map(str, result["seeds"]))
    if result.get("encoder_from"):
        asked += f" --encoder {result['encoder_from']}"
    if result["only"]:
        asked += "".join([" --only", *(f' "{name}"' for name in result["only"])])
    steps, seeds = " + ".join(map(str, result["steps"])), ", ".join(map(str, result["seeds"]))
    lines = [
        "# What a language model makes of geometry tokens",
        "",
        f"`python bench/fusion_proof.py{asked}`: {result['items']} training items, {steps} steps of {result['batch']}, "
        f"of which only the last differ; seeds {seeds}; {result['device']}, torch {result['torch']}. Points of 100: "
        "accuracy, for distance mean relative accuracy; "
        "± is the standard deviation over seeds, brackets are paired 95 % intervals over items. `swapped`: the same "
        "model asked with the geometry of another scene.",
        "",
    ]
    if quality is not None:
        told = ", ".join(f"{name} {value:.3g}" for name, value in quality.items() if name != "scenes")
        name, scenes = result["encoder_name"], quality["scenes"]
        lines += [f"`predicted`: by {name}, of {scenes} held-out scenes {told}; else geometry is exact.", ""]
    lines += [
        "| condition | " + " | ".join(tasks) + f" | mean | over {BASELINE} | over {NAIVE} | swapped |",
        "|---" * (len(tasks) + 5) + "|",
    ]
    guesses = ["" if task in METRIC else f"{100 / TASKS[task].answers:.1f}" for task in tasks]
    lines.append("| a guess among what is named | " + " | ".join(guesses) + " |" * 5)
    for name, by_task in found.items():
        cells = [cell(by_task[task].mean(1)) for task in tasks] + [cell(mean(by_task))]
        for against in (BASELINE, NAIVE):
            same = against not in found or name == against
            cells.append("" if same else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*difference(by_task, found[against])))
        cells.append(cell(mean(swapped[name])) if name in swapped else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(result: dict[str, Any], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = scores(result)
    means = {name: 100 * mean(by_task) for name, by_task in found.items()}
    names = sorted(means, key=lambda name: means[name].mean())
    figure, axes = pyplot.subplots(figsize=(8, 0.28 * len(names) + 1.2), layout="constrained")
    for row, name in enumerate(names):
        axes.plot(means[name], [row] * len(means[name]), "o", color="0.6", markersize=4)
        axes.plot(means[name].mean(), row, "|", color="black", markersize=12, markeredgewidth=2)
    if BASELINE in means:
        axes.axvline(means[BASELINE].mean(), color="tab:red", linewidth=1, linestyle=":")
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("mean score over tasks, points (grey: each seed)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
