"""`gnomon data`: make shards of procedural data, or look at samples."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from gnomon.data.sample import Source

# What each source can be told; an option that is not given is left to the source.
SOURCES = {
    "diagrams": ("seed", "tasks", "size", "split", "prompt", "levels", "questions"),
    "scenes": ("seed", "tasks", "size", "split", "prompt", "views", "shown"),
}


def names(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def size(text: str) -> tuple[int, int]:
    """`224` or `160x240` (height x width)."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor HxW; try 224 or 160x240")
    return int(parts[0]), int(parts[-1])


def views(text: str) -> tuple[int, int]:
    """`3` or `2-4`."""
    parts = text.split("-")
    if len(parts) > 2 or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is neither N nor FEWEST-MOST; try 3 or 2-4")
    return int(parts[0]), int(parts[-1])


def told(args: argparse.Namespace, *, allowed: Collection[str]) -> dict[str, Any]:
    """What was given about the samples; a ValueError where the source has no use for it."""
    known = dict.fromkeys(name for options in (*SOURCES.values(), ("images",)) for name in options)
    options = {name: getattr(args, name) for name in known if getattr(args, name, None) is not None}
    for name in options:
        if name not in allowed:
            raise ValueError(f"--{name} says nothing about {args.source}; leave it out")
    return options


def source(args: argparse.Namespace, count: int) -> Source:
    options = told(args, allowed=SOURCES[args.source])
    if args.source == "scenes":
        from gnomon.data.sources.scenes.source import Scenes

        return Scenes(count=count, **options)
    from gnomon.data.sources.diagrams.source import Diagrams

    return Diagrams(count=count, **options)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="gnomon data", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    drawing = argparse.ArgumentParser(add_help=False)
    drawing.add_argument("--seed", type=int, help="stream of figures or scenes (default 0)")
    drawing.add_argument("--tasks", type=names, help="comma-separated; all when left out")
    drawing.add_argument("--size", type=size, help="N or HxW pixels (default 224; scenes 112)")
    drawing.add_argument("--split", choices=["train", "test"], help="default train")
    drawing.add_argument("--prompt", choices=["question", "official", "words"],
                         help="official: with the benchmarks' own answer instructions; words: no choices")  # fmt: skip
    drawing.add_argument("--levels", type=numbers, help="diagrams: difficulty levels (default 1,2,3)")
    drawing.add_argument("--questions", type=int, help="diagrams: questions per figure (default 1)")
    drawing.add_argument("--views", type=views, help="scenes: how many views, N or FEWEST-MOST (default 2-4)")
    drawing.add_argument("--shown", choices=["first", "all"],
                         help="scenes: views that the language model's own encoder sees (default first)")  # fmt: skip

    make = commands.add_parser("make", parents=[drawing], help="write webdataset shards")
    make.add_argument("source", choices=SOURCES)
    make.add_argument("--count", type=int, required=True, help="number of samples")
    make.add_argument("--out", type=Path, required=True, help="directory for the shards")
    make.add_argument("--shard-size", type=int, default=1000, help="samples per shard (default 1000)")
    make.add_argument("--workers", type=int, default=1, help="processes that draw (default 1)")

    words = commands.add_parser("tokenizer", help="train a small tokenizer on a source's questions and answers")
    words.add_argument("source", choices=SOURCES)
    words.add_argument("--count", type=int, default=3000, help="samples to read, of each prompt form (default 3000)")
    words.add_argument("--vocabulary", type=int, default=1024, help="most tokens (default 1024)")
    words.add_argument("--seed", type=int, default=0, help="stream of figures (default 0)")
    words.add_argument("--out", type=Path, required=True, help="directory to write")

    show = commands.add_parser("show", parents=[drawing], help="draw a contact sheet of samples")
    show.add_argument("source", help="diagrams, scenes, a LLaVA .json/.jsonl file, or a directory of shards")
    show.add_argument("--images", type=Path, help="directory that a .json file's image names are relative to")
    show.add_argument("--count", type=int, default=16, help="samples on the sheet (default 16)")
    show.add_argument("--columns", type=int, default=4, help="samples side by side (default 4)")
    show.add_argument("--out", type=Path, default=Path("sheet.png"), help="PNG to write (default sheet.png)")
    return top


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    if args.count < 1:
        raise ValueError(f"--count {args.count} is too small; use 1 or more")
    return {"make": make, "show": show, "tokenizer": tokenizer}[args.command](args)


def make(args: argparse.Namespace) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from gnomon.data.write_shards import write

    # before the bar is drawn: a wrong option is told in one line
    samples = source(args, args.count)
    rate = TextColumn("{task.fields[rate]:.0f}/s")
    with Progress(
        TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), transient=True
    ) as bar:
        task = bar.add_task("drawing", total=args.count, rate=0.0)
        written = write(
            samples,
            args.out,
            count=args.count,
            shard_size=args.shard_size,
            workers=args.workers,
            on_progress=lambda done, _total: bar.update(task, completed=done, rate=bar.tasks[0].speed or 0.0),
        )
    print(f"{args.count} samples in {len(written)} shards under {args.out}")
    return 0


def tokenizer(args: argparse.Namespace) -> int:
    from gnomon.data.tokenizer import save, train

    if args.source == "scenes":
        from gnomon.data.sources.scenes.source import LEAST_SIDE, PROMPTS
        from gnomon.data.sources.scenes.source import Scenes as Drawn
    else:
        from gnomon.data.sources.diagrams.source import LEAST_SIDE, PROMPTS
        from gnomon.data.sources.diagrams.source import Diagrams as Drawn

    size = (LEAST_SIDE, LEAST_SIDE)
    sources = [Drawn(count=args.count, seed=args.seed, size=size, prompt=prompt) for prompt in PROMPTS]
    texts = (turn.text for samples in sources for sample in samples for turn in sample.turns)
    trained = train(texts, size=args.vocabulary)
    save(trained, args.out)
    print(f"{trained.get_vocab_size()} tokens in {args.out}")
    return 0


def show(args: argparse.Namespace) -> int:
    from gnomon.data.sheet import contact_sheet

    if args.columns < 1:
        raise ValueError(f"--columns {args.columns} is too small; use 1 or more")
    if args.source in SOURCES:
        samples = source(args, args.count)
    else:
        rows = args.source.endswith((".json", ".jsonl"))
        told(args, allowed=("images",) if rows else ())
        samples = existing(Path(args.source), args.images)
    chosen = [samples[i] for i in range(min(args.count, len(samples)))]
    # several views side by side need more room than one picture
    width = 360 if any(sample.geometry for sample in chosen) else 260
    contact_sheet(chosen, args.out, columns=args.columns, width=width)
    print(f"{len(chosen)} samples on {args.out}")
    return 0


def existing(path: Path, images: Path | None) -> Source:
    """The user's own data, by what the path is."""
    if path.suffix in (".json", ".jsonl"):
        from gnomon.data.sources.jsonl import LlavaJson

        return LlavaJson(path, images=images or path.parent)
    if path.is_dir() or path.suffix == ".tar":
        from gnomon.data.sources.shards import Shards

        return Shards([str(path)] if path.suffix == ".tar" else [str(path / "*.tar")])
    raise ValueError(f"{path} is neither {', '.join(SOURCES)}, a .json/.jsonl file, nor a directory of .tar shards")
