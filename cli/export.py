"""`gnomon export`: write a model for other software, reload it in a fresh process and compare logits."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gnomon export", description=__doc__)
    parser.add_argument("model", help="model directory, or the name of a shipped one (demo)")
    parser.add_argument("--to", required=True, choices=["hf"], help="hf: a directory that plain transformers loads")
    parser.add_argument("--out", type=Path, help="where to write (default: MODEL-hf in the current directory)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    args = parser.parse_args(argv)
    name = Path(args.model).resolve().name
    out = args.out or Path(f"{name}-{args.to}")
    if out.exists() and not args.overwrite:
        raise ValueError(f"{out} exists; choose another --out or add --overwrite")

    from gnomon.vlm.export.hf import compare, export_hf
    from gnomon.vlm.save import load, resolve

    model = load(resolve(args.model))
    export_hf(model, out)
    difference = compare(out, model)
    print(f"wrote {out}; reloaded by plain transformers, largest logit difference {difference:.2e}")
    return 0
