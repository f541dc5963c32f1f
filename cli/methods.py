"""`gnomon methods`: what is in the box, read from the files' headers without importing any of them."""

from __future__ import annotations

import argparse
import ast
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FAMILIES = {
    "geometry": "vlm/geometry",
    "crossview": "vlm/crossview",
    "connectors": "vlm/connectors",
    "encoders": "vlm/encoders",
    "reduction": "vlm/reduction",
    "compute": "vlm/compute",
    "fusion": "vlm/fusion",
    "auxiliary": "vlm/auxiliary",
    "mixers": "vlm/mixers",
    "heads": "vlm/heads",
    "softmax": "kernels/softmax",
    "linear": "kernels/linear",
    "sparse": "kernels/sparse",
    "recipes": "train/recipes",
    "benchmarks": "eval/benchmarks",
}
FIELDS = ("Paper", "Origin", "Rule", "Where", "Differs")
HELPERS = {"base"}
"""Files of a family's folder that are no method."""
OPERATORS = tuple(family for family, folder in FAMILIES.items() if folder.startswith("kernels/"))


@dataclass(frozen=True)
class Method:
    family: str
    file: str
    title: str
    paper: str
    origin: str
    rule: str
    where: str
    differs: str


def header(text: str) -> dict[str, str]:
    """The fields of a method file's docstring; `title` is its first line."""
    doc = ast.get_docstring(ast.parse(text)) or ""
    found = {"title": doc.split("\n", 1)[0]}
    pattern = re.compile(rf"^({'|'.join(FIELDS)}):\s+(.*?)(?=^(?:{'|'.join(FIELDS)}):|^\S|\Z)", re.M | re.S)
    for match in pattern.finditer(doc):
        found[match[1].lower()] = " ".join(match[2].split())
    return found


def files(family: str) -> list[Path]:
    folder = ROOT / FAMILIES[family]
    return sorted(f for f in folder.glob("*.py") if f.stem not in HELPERS)


def methods(family: str) -> list[Method]:
    rows = []
    for file in files(family):
        found = header(file.read_text(encoding="utf-8"))
        rows.append(
            Method(
                family=family,
                file=f"{FAMILIES[family]}/{file.name}",
                title=found["title"],
                paper=found.get("paper", ""),
                origin=found.get("origin", ""),
                rule=found.get("rule", ""),
                where=found.get("where", ""),
                differs=found.get("differs", ""),
            )
        )
    return rows


def patterns(family: str | None, *, as_json: bool = False) -> str:
    """What the attention operators support; of one family, or of all."""
    if family is not None and family not in OPERATORS:
        raise ValueError(f"--patterns of {family!r}, which has no attention operators; use {', '.join(OPERATORS)}")
    # here and not above: the records import torch, which a list of the files does not need
    from gnomon.kernels.analysis.coverage import coverage, markdown
    from gnomon.kernels.members import members
    from gnomon.kernels.op import PATTERNS

    rows = [row for row in coverage(members()) if family in (None, row.family)]
    if as_json:
        return json.dumps([{**asdict(row), "patterns": sorted(row.patterns)} for row in rows], indent=2)
    return f"{markdown(rows)}\n{', '.join(f'{short}: {long}' for short, long in PATTERNS.items())}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gnomon methods", description=__doc__)
    parser.add_argument("family", nargs="?", help=f"one of {', '.join(FAMILIES)}; all when left out")
    parser.add_argument("--long", action="store_true", help="print rule and differences too")
    parser.add_argument(
        "--patterns",
        action="store_true",
        help="instead, which attention operator takes self- and cross-attention, causal or not, any mask, a state, "
        f"packed sequences, a grid (families {', '.join(OPERATORS)})",
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = parser.parse_args(argv)
    if args.family is not None and args.family not in FAMILIES:
        from gnomon.cli.main import nearest

        raise ValueError(f"family {args.family!r} is unknown{nearest(args.family, list(FAMILIES))}")
    if args.patterns:
        print(patterns(args.family, as_json=args.json))
        return 0
    rows = [m for family in ([args.family] if args.family else FAMILIES) for m in methods(family)]
    if args.json:
        print(json.dumps([asdict(m) for m in rows], indent=2))
        return 0
    for row in rows:
        print(f"{row.family:<11} {row.title}")
        details = [("paper", row.paper) if row.paper else ("origin", row.origin), ("where", row.where)]
        if args.long:
            details += [("rule", row.rule), ("differs", row.differs)]
        for name, text in [*details, ("file", row.file)]:
            print(f"{'':<11}   {name:<8}{text}")
    print(f"{len(rows)} methods")
    return 0
