"""`gnomon evaluate`, `gnomon ask` and `gnomon report`: options here, work elsewhere, torch only after parsing."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

INTERRUPTED = 130
DEVICE_HELP = "auto (a GPU when there is one), cpu, cuda or cuda:N (default: auto)"
DTYPE_HELP = "auto (bfloat16 on a GPU, float32 on the CPU), float32, bfloat16 or float16"
BENCHMARK_OPTIONS = (
    *("tasks", "levels", "seed", "prompt", "style", "size"),
    *("views", "shown", "objects", "distances", "focal", "baseline"),
    *("rows", "images", "scenes", "scoring"),
)
MODEL_HELP = "model directory, or the name of a shipped one (demo)"


def evaluate(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon evaluate",
        description="Measure a model: accuracy per task with a 95 % bootstrap interval and the majority baseline "
        "beside it. Every answer is kept as it comes; the same command continues where it was stopped.",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument(
        "--benchmarks", type=_names, default=["diagrams"], metavar="A,B", help="which ones (default: diagrams)"
    )
    parser.add_argument("--tasks", type=_names, metavar="A,B", help="only these tasks (default: all)")
    parser.add_argument("--levels", type=_integers, metavar="1,2", help="only these levels (default: all)")
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="items per task (default: the benchmark's own number)"
    )
    parser.add_argument("--seed", type=int, help="seed of generated items (default: 0)")
    parser.add_argument(
        "--prompt",
        choices=["question", "official", "words"],
        help="the bare question (default), with the published suffix, or multiple choice without its choices",
    )
    parser.add_argument(
        "--style", choices=["default", "held_out", "clean"], help="how figures are drawn (default: default)"
    )
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="pixels of a drawn figure (default: what the model takes)"
    )
    parser.add_argument(
        "--views", type=_counts, metavar="N[-N]", help="of a scene: how many, or the fewest and the most (default: 2-4)"
    )
    parser.add_argument(
        "--shown",
        choices=["first", "all"],
        help="which views of a scene the vision encoder sees; a geometry encoder sees all (default: first)",
    )
    parser.add_argument(
        "--objects", type=_counts, metavar="N[-N]", help="in a scene's first view, fewest and most (default: 4-6)"
    )
    parser.add_argument(
        "--distances",
        type=_range,
        metavar="X-Y",
        help="of objects from a scene's first camera, in metres (default: 2-8)",
    )
    parser.add_argument(
        "--focal", type=_range, metavar="X-Y", help="lengths, in terms of a view's shorter side (default: 0.8-1.4)"
    )
    parser.add_argument(
        "--baseline", type=_range, metavar="X-Y", help="of further cameras from the first, in metres (default: 0.3-1)"
    )
    parser.add_argument(
        "--rows",
        type=_path,
        metavar="FILE",
        help="questions of your own for the benchmark rows: LLaVA's .json or .jsonl, whose last answers are right",
    )
    parser.add_argument(
        "--images", type=_path, metavar="DIR", help="that the rows' image names are relative to (default: the file's)"
    )
    parser.add_argument(
        "--scenes", action="store_true", default=None, help="the images of each row are the views of one scene"
    )
    parser.add_argument(
        "--scoring",
        choices=["auto", "words", "choice", "number"],
        help="of rows (default: auto, what each row's answer looks like)",
    )
    parser.add_argument(
        "--batch-size", type=_positive, default=16, metavar="N", help="answers do not depend on it (default: 16)"
    )
    parser.add_argument(
        "--max-new-tokens", type=_positive, metavar="N", help="longest answer (default: each item's own)"
    )
    parser.add_argument(
        "--reduce",
        action="append",
        default=[],
        metavar="NAME:KEPT[,OPTION=VALUE]",
        help="measure a token reduction beside the model as it is, on the same items; repeat for several, + stacks "
        "them (fastv:0.5, divprune:0.5+fastv:0.5,layer=3; `gnomon methods reduction` lists the names)",
    )
    parser.add_argument(
        "--geometry",
        nargs="+",
        choices=["own", "other", "none"],
        help="measure the model with another scene's geometry, or without any, on the same items, to see whether it "
        "uses its own (default: other, where the model has a fusion and the benchmark has scenes; each is one more "
        "pass over all items, which own leaves out)",
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    parser.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/eval/MODEL-HASH, stable)")
    parser.add_argument("--fresh", action="store_true", help="discard what the directory holds")
    parser.add_argument("--by-level", action="store_true", help="a row per task and level as well")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    args = parser.parse_args(argv)

    if args.geometry is not None and "own" in args.geometry and len(set(args.geometry)) > 1:
        raise ValueError("--geometry own stands for no further pass; leave it out, or the others")

    from gnomon.eval import compare, exchange, names, table
    from gnomon.eval import evaluate as work
    from gnomon.eval.session import open_model

    for name in args.benchmarks:
        names.check("benchmark", name, names.known())
    reductions = {text: names.reducers(text) for text in args.reduce}
    loaded = open_model(args.model, device=args.device, dtype=args.dtype)
    given = {key: getattr(args, key) for key in BENCHMARK_OPTIONS if getattr(args, key) is not None}
    size = loaded.model.image.size
    benchmarks = [
        names.make(name, given, defaults={} if size is None else {"size": _drawn(size)}) for name in args.benchmarks
    ]
    if args.geometry is None:
        geometry = exchange.usual(benchmarks, loaded.model, loaded.processor)
    else:
        geometry = [mode for mode in args.geometry if mode != "own"]
    try:
        result = work.evaluate(
            loaded,
            benchmarks,
            out=args.out,
            batch_size=args.batch_size,
            limit=args.limit,
            max_new_tokens=args.max_new_tokens,
            fresh=args.fresh,
            by_level=args.by_level,
            reductions=reductions,
            geometry=geometry,
        )
    except KeyboardInterrupt:
        print(
            "gnomon: stopped; every finished item is kept, the same command (without --fresh) continues",
            file=sys.stderr,
        )
        return INTERRUPTED
    if args.json:
        print(json.dumps(result.as_dict(), indent=2))
        return 0
    print(f"{loaded.name}, {loaded.dtype} on {loaded.device}")
    for name, protocol in result.protocols.items():
        print(f"{name}: {protocol}")
    print(f"\n{table.text(result.rows)}\n\n{table.cost_line(result.cost, result.memory)}")
    if result.compared:
        base = result.compared[0]
        print(f"\n{table.columns(compare.HEAD, [(compare.cells(one, base), False) for one in result.compared])}\n")
    if result.truncated:
        print(f"{result.truncated:.1%} of the answers were cut at the longest length")
    print(f"records in {result.folder}")
    return 0


def ask(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon ask",
        description="Ask a model one question, about images or without; the answer appears as it is made.",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("question", help="the question; - reads it from the standard input")
    parser.add_argument(
        "--image", action="append", type=Path, default=[], metavar="FILE", help="an image; repeat for several"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="a folder with views of one scene, in the order of their names"
    )
    parser.add_argument(
        "--shown",
        choices=["first", "all"],
        help="with --images: which views the vision encoder sees; a geometry encoder sees all (default: first, and all "
        "where there is no geometry encoder)",
    )
    parser.add_argument(
        "--frames",
        type=_positive,
        metavar="N",
        help="with --images: the N of up to 128 pictures that see most of the scene, as the geometry encoder knows it",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="with --images: a page with the views, the depth and the points that are predicted of them, and where the "
        "fusion's gate opens",
    )
    parser.add_argument(
        "--max-new-tokens", type=_positive, default=256, metavar="N", help="longest answer (default: 256)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default: 0)"
    )
    parser.add_argument(
        "--seed", type=int, help="what is drawn at a temperature above 0 (default: another answer each time)"
    )
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    args = parser.parse_args(argv)
    question = (sys.stdin.read() if args.question == "-" else args.question).strip()
    if not question:
        raise ValueError("the question is empty; write one, or - to read it from the standard input")

    if args.page is not None and args.images is None:
        raise ValueError("--page shows views of a scene, and there are none; give a folder of them with --images")

    if args.shown is not None and args.images is None:
        raise ValueError("--shown says which views of a scene are seen, and there are none; give them with --images")

    if args.frames is not None and args.images is None:
        raise ValueError("--frames chooses among views of a scene, and there are none; give them with --images")

    from gnomon.eval import ask as work
    from gnomon.eval.record import check_place
    from gnomon.eval.session import open_model

    if args.page is not None:
        check_place(args.page, option="--page")
    images = work.read_images(args.image)
    views = (
        ()
        if args.images is None
        else work.read_views(args.images, most=work.MOST_VIEWS if args.frames is None else work.MOST_FRAMES)
    )
    loaded = open_model(args.model, device=args.device, dtype=args.dtype)
    if args.frames is not None:
        views = work.cover(loaded, views, args.frames)
    if args.page is not None and loaded.model.scenery is None:
        raise ValueError(f"--page shows what a geometry encoder predicts, and {args.model} has none; leave it out")
    example = work.question_of(loaded, question, images, views, shown=args.shown)
    given = work.ask(
        loaded,
        example,
        show=lambda piece: print(piece, end="", flush=True),
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )
    print()
    if given.finish == "length":
        print(f"gnomon: cut after {len(given.ids)} tokens; --max-new-tokens allows more", file=sys.stderr)
    if args.page is not None:
        from gnomon.eval import look, report

        seen = look.look(loaded.model, example, pad_id=loaded.processor.pad_id)
        said = {"question": question, "model": given.text.strip() or "nothing"}
        report.scene_page(seen, said, args.page, title=f"{loaded.name}: {args.images.resolve().name}")
        print(f"wrote {args.page}", file=sys.stderr)
    return 0


def calibrate(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon calibrate",
        description="Find the heads of a model that do not look at images, for YOPO: an overlay with lists of heads "
        "that `gnomon fit` and the model's configuration take.",
    )
    parser.add_argument("model", help=MODEL_HELP)
    parser.add_argument("--share", type=float, required=True, metavar="S", help="of all heads to make inactive (0.24)")
    parser.add_argument(
        "--benchmarks", default="diagrams", type=_names, metavar="A,B", help="whose questions are read (diagrams)"
    )
    parser.add_argument("--samples", type=_positive, default=100, metavar="N", help="how many (default: 100)")
    parser.add_argument("--out", type=Path, default=Path("yopo.yaml"), metavar="FILE", help="default: yopo.yaml")
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    args = parser.parse_args(argv)

    from itertools import chain, islice

    import yaml

    from gnomon.eval import calibrate as work
    from gnomon.eval import names
    from gnomon.eval.record import check_place, write_text
    from gnomon.eval.session import open_model

    for name in args.benchmarks:
        names.check_drawn(name)
    check_place(args.out)
    loaded = open_model(args.model, device=args.device, dtype=args.dtype)
    work.check_share(args.share, layers=len(loaded.model.lm.layers))
    size = loaded.model.image.size
    defaults = {} if size is None else {"size": _drawn(size)}
    asked = chain.from_iterable(names.make(name, {}, defaults=defaults).examples() for name in args.benchmarks)
    examples = (loaded.processor.example(sample, train=False) for sample in islice(asked, args.samples))
    found, threshold = work.inactive(*work.attention_shares(loaded.model, examples), share=args.share)
    options = {"class_path": "gnomon.vlm.compute.yopo.YOPO", "init_args": {"inactive": found}}
    write_text(args.out, yaml.safe_dump({"model": {"compute": options}}, default_flow_style=None))
    count, layers = sum(map(len, found)), len(found)
    heads = loaded.model.lm.model.config.num_attention_heads
    print(f"{count} of {layers * heads} heads are inactive at a threshold of {threshold:.4g}; wrote {args.out}")
    return 0


def report(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon report",
        description="One self-contained HTML page from run directories of `gnomon fit` and `gnomon evaluate`: "
        "loss curves, scores with intervals, pictures with what the model answered, and what its geometry encoder and "
        "fusion make of scenes.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN_DIR", help="run directories, or folders that hold some"
    )
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument(
        "--examples", type=_count, default=20, metavar="N", help="items to show per evaluation (default: 20)"
    )
    args = parser.parse_args(argv)

    from gnomon.eval.report import page

    page(args.runs, args.out, examples=args.examples)
    print(f"wrote {args.out}")
    return 0


def _drawn(size: tuple[int, int]) -> tuple[int, int]:
    """A model that takes less than letters can be drawn at gets larger figures, scaled down like any image."""
    from gnomon.data.sources.diagrams.source import LEAST_SIDE

    scale = max(1.0, LEAST_SIDE / min(size))
    return round(size[0] * scale), round(size[1] * scale)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("names nothing; give names with commas between them")
    return names


def _integers(text: str) -> list[int]:
    return [_whole(part, least=1) for part in _names(text)]


def _positive(text: str) -> int:
    return _whole(text, least=1)


def _count(text: str) -> int:
    return _whole(text, least=0)


def _whole(text: str, *, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
    return int(text)


def _path(text: str) -> str:
    """Absolute, so that a report finds it from anywhere."""
    return str(Path(text).resolve())


def _counts(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return _positive(low), _positive(high or low)


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    try:
        return float(low), float(high or low)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no range; give a low and a high number, such as 2-8") from error


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return _positive(height), _positive(width or height)
