"""The report's section on a training run: its loss, its learning rate, how much it saw and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from gnomon.eval.page import curves, svg
from gnomon.eval.page.blocks import big, card, figures, note


def section(metrics: Path) -> str:
    columns = curves.read(metrics)
    head = f"<h2>Training</h2>{note(str(metrics.parent))}"
    loss = curves.pick(columns, "loss", "train_loss")
    if loss is None:
        return head + note(f"{metrics.name} holds no loss, so there is no curve.")
    steps, values = loss
    smoothed = curves.smooth(values, weight=max(0.0, min(0.97, 1 - 30 / len(values))))
    facts = [("steps", f"{steps[-1]:,.0f}"), ("first loss", f"{values[0]:.3f}"), ("last loss", f"{smoothed[-1]:.3f}")]
    if tokens := curves.pick(columns, "tokens"):
        facts.append(("tokens", big(max(tokens[1]))))
    if speed := curves.pick(columns, "tokens_per_s"):
        facts.append(("tokens/s, median", big(median(speed[1]))))
    # a loss that falls over more than a decade looks flat on a linear axis
    log = min(values) > 0 and max(values) / min(values) > 20
    lines = [
        svg.Curve("loss", *curves.thin(loss), faint=True),
        svg.Curve("smoothed loss", *curves.thin((steps, smoothed))),
    ]
    charts = card(svg.line_chart(lines, x_label="optimizer step", y_label="training loss", log=log))
    if rate := curves.pick(columns, "lr", "learning_rate"):
        line = svg.Curve("learning rate", *curves.thin(rate))
        charts += card(svg.line_chart([line], x_label="optimizer step", y_label="learning rate", height=170))
    return head + figures(facts) + charts


def absent(folders: Sequence[Path]) -> str:
    """The sentence in its place when no directory holds a training run."""
    names = ", ".join(str(folder) for folder in folders)
    return "<h2>Training</h2>" + note(f"There are no training metrics in {names}.")
