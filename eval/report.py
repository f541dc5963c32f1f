"""Report: one HTML page of run directories, with everything in it: no scripts, no files beside it, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from gnomon.eval.page import comparison, curves, evaluation, geometry, training
from gnomon.eval.page.style import CSS, MARK
from gnomon.eval.record import HEADER, REDUCED, check_place, write_text
from gnomon.eval.sight import Sight


def page(run_dirs: Sequence[Path], out: Path, *, examples: int = 20) -> None:
    """Write the page. A run directory holds training metrics, an evaluation, or folders with evaluations."""
    check_place(out)
    trained: dict[Path, str] = {}
    evaluated: dict[Path, evaluation.Evaluation] = {}
    for folder in run_dirs:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a directory; name run directories of gnomon fit or gnomon evaluate")
        metrics = curves.find(folder)
        headers = sorted(folder.rglob(HEADER))
        if not metrics and not headers:
            raise ValueError(f"{folder} holds neither training metrics nor an evaluation; name a run directory")
        for path in metrics:
            trained.setdefault(path.resolve(), training.section(path))
        for header in headers:
            evaluated.setdefault(header.parent.resolve(), evaluation.read(header.parent))
    if not trained and all(not found.records for found in evaluated.values()):
        raise ValueError(f"{next(iter(evaluated))} has {evaluation.EMPTY}")
    sections = list(trained.values()) or [training.absent(run_dirs)]
    for folder, found in evaluated.items():
        if folder.parent.name == REDUCED and folder.parent.parent in evaluated:
            continue
        variants = [other for place, other in evaluated.items() if place.parent == folder / REDUCED]
        sections.append(evaluation.section(found, examples))
        sections.append(geometry.section(found, examples))
        sections.append(comparison.section(found, variants, min(examples, 6)))
    names = [found.model for found in evaluated.values()] or [folder.resolve().name for folder in run_dirs]
    write_text(out, _document(", ".join(dict.fromkeys(names)), sections))


def scene_page(seen: Sight, said: dict[str, str], out: Path, *, title: str) -> None:
    """Write a page of one scene; said: what was asked about it, and answered."""
    write_text(out, _document(title, [geometry.panel(seen, "one scene", said)]))


def _document(title: str, sections: Sequence[str]) -> str:
    return "".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)} · gnomon</title><style>{CSS}</style></head><body><main>",
            f"<header>{MARK}<div><h1>{escape(title)}</h1>",
            '<p class="sub">gnomon report: how it learned, what it sees</p></div></header>',
            *sections,
            "<footer>Made by gnomon report. Everything on this page is in this one file.</footer>",
            "</main></body></html>\n",
        ]
    )
