"""`gnomon bench`: speed side by side. Options here, work elsewhere, torch only after parsing."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

BENCHES = {
    "decode": ("gnomon.cli.bench", "decode", "prefill and decoding of a model under token reduction"),
    "kernels": ("gnomon.cli.bench", "kernels", "attention operators, beside dense attention and others' kernels"),
}

DTYPE_HELP = "auto: bfloat16 on a GPU that has it, else float32 (default: auto)"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon bench",
        description="Speed, side by side in one run: "
        + "; ".join(f"{name}: {text}" for name, (_, _, text) in BENCHES.items()),
        epilog="gnomon bench NAME --help tells what a bench takes",
    )
    parser.add_argument("bench", choices=list(BENCHES))
    args = parser.parse_args(argv[:1])
    module, function, _ = BENCHES[args.bench]
    return getattr(importlib.import_module(module), function)(argv[1:])


def decode(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon bench decode",
        description="A model without and with token reduction, on prompts of random features, behind the encoder: "
        "time, memory, arithmetic, and how much of the speed-up that the arithmetic promises is realised.",
    )
    parser.add_argument(
        "model", help="model directory, name of a shipped one, YAML preset, or name of a preset (smollm2)"
    )
    parser.add_argument(
        "--reduce",
        action="append",
        default=[],
        metavar="NAME[:RATIO][,OPTION=VALUE]",
        help="a reduction; repeat for several",
    )
    parser.add_argument(
        "--kept", type=float, nargs="+", default=[], metavar="R", help="shares for every reduction that names no ratio"
    )
    parser.add_argument(
        "--visual",
        type=_positive,
        nargs="+",
        default=[576],
        metavar="N",
        help="visual tokens of a prompt (default: 576)",
    )
    parser.add_argument("--text", type=_positive, default=64, metavar="N", help="text tokens around them (default: 64)")
    parser.add_argument("--new", type=_positive, default=16, metavar="N", help="tokens to generate (default: 16)")
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help="prompts at once (default: 1)")
    parser.add_argument(
        "--repeats", type=_positive, default=5, metavar="N", help="interleaved repetitions (default: 5)"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.add_argument(
        "--device", default="auto", help="auto (a GPU when there is one), cpu, cuda or cuda:N (default: auto)"
    )
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for decode.json and decode.md")
    args = parser.parse_args(argv)

    import torch

    from gnomon.eval import names
    from gnomon.eval.bench import models, table
    from gnomon.eval.bench.decode import measure
    from gnomon.eval.record import check_place, write_text

    if args.threads:
        torch.set_num_threads(args.threads)
    settings = {text: names.reducers(text) for text in _spread(args.reduce, args.kept)}
    model = models.open_model(args.model, device=args.device, dtype=args.dtype)
    for reducers in settings.values():
        model.check(reducers)
    if args.out is not None:
        check_place(args.out / "decode.json")
    about = {
        "model": args.model,
        "dtype": str(next(model.lm.parameters()).dtype).removeprefix("torch."),
        "attention": model.lm.attention,
        **table.surroundings(model.mean.device),
    }
    parts, data = (
        [f"# gnomon bench decode: {args.model}\n\n{', '.join(f'{k} {v}' for k, v in about.items())}\n\n{table.NOTE}"],
        [],
    )
    print(parts[0])
    for visual in args.visual:
        results = measure(
            model, settings, visual=visual, text=args.text, new=args.new, rows=args.batch, repeats=args.repeats
        )
        data += table.plain(results)
        title = f"## {visual} visual and {args.text} text tokens, batch {args.batch}, {args.new} new, "
        title += f"{args.repeats} repetitions"
        parts.append(f"{title}\n\n{table.markdown(results)}")
        print(f"\n{parts[-1]}")
        sys.stdout.flush()
    if args.out is not None:
        write_text(args.out / "decode.json", json.dumps({**about, "results": data}, indent=1) + "\n")
        write_text(args.out / "decode.md", "\n\n".join(parts) + "\n")
    return 0


def kernels(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon bench kernels",
        description="Attention operators at growing lengths, forward and forward with backward, outputs and gradients "
        "compared with the float64 reference first, beside dense attention, FlexAttention and, where installed, "
        "flash-linear-attention and NATTEN, on the same machine in the same run.",
    )
    parser.add_argument("--ops", nargs="+", default=[], metavar="NAME", help="operators or families (default: all)")
    parser.add_argument(
        "--lengths",
        type=_positive,
        nargs="+",
        default=[576, 2304, 9216, 36864, 65536],
        metavar="T",
        help="tokens (default: 576 2304 9216 36864 65536; --patience ends a row that becomes too slow)",
    )
    parser.add_argument("--batch", type=_positive, default=1, metavar="N", help="sequences at once (default: 1)")
    parser.add_argument("--heads", type=_positive, default=8, metavar="N", help="heads of attention (default: 8)")
    parser.add_argument("--width", type=_positive, default=64, metavar="N", help="of a head (default: 64)")
    parser.add_argument("--impl", default="auto", help="implementation of every operator (default: auto)")
    parser.add_argument("--forward-only", action="store_true", help="without the backward pass")
    parser.add_argument("--alone", action="store_true", help="beside dense attention only, without others' kernels")
    parser.add_argument(
        "--patience", type=_seconds, default=5.0, metavar="S", help="longer calls end an operator's row of lengths"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="auto", help="auto (a GPU when there is one), cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help=DTYPE_HELP)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for kernels.json and kernels.md")
    args = parser.parse_args(argv)

    import torch

    from gnomon.eval.bench import table
    from gnomon.eval.bench.kernel_calls import Setting
    from gnomon.eval.bench.kernel_table import Report
    from gnomon.eval.bench.kernels import ceilings, run
    from gnomon.eval.names import operators
    from gnomon.eval.session import DTYPES, place

    found = operators(args.ops)
    known = {name for member in found for name in member.op.impls}
    if args.impl != "auto" and args.impl not in known:
        raise ValueError(f"--impl {args.impl}: none of these operators has it; use auto or {', '.join(sorted(known))}")
    if args.threads:
        torch.set_num_threads(args.threads)
    device, dtype = place(args.device, args.dtype)
    setting = Setting(args.batch, args.heads, args.width, DTYPES[dtype], device, not args.forward_only, args.patience)
    peak = ceilings(device, setting.dtype)
    about = {
        "dtype": dtype, "batch": args.batch, "heads": args.heads, "width": args.width, **table.surroundings(device)
    }  # fmt: skip
    report = Report(args.out, about, peak)
    print(report.head)
    try:
        for timing in run(found, args.lengths, setting, impl=args.impl, device=peak, others=not args.alone):
            print(report.add(timing), flush=True)
    except KeyboardInterrupt:
        where = "above; --out DIR would have kept them" if args.out is None else f"in {args.out}"
        print(f"gnomon: stopped; the {len(report.timings)} lines measured so far are {where}", file=sys.stderr)
        raise
    finally:
        report.close()
    return 0


def _spread(reduce: list[str], kept: list[float]) -> list[str]:
    """Every reduction with every share, in the order of the shares; one that names a ratio stands as it is."""
    wanted = [text for text in reduce if all(map(_has_ratio, text.split("+")))]
    open_ = [text for text in reduce if text not in wanted]
    if not kept:
        return wanted + open_
    if not open_:
        shares = " ".join(f"{share:g}" for share in kept)
        raise ValueError(f"--kept {shares}: no --reduce is without a ratio of its own; add one or leave --kept out")
    for share in kept:
        for text in open_:
            parts = [part.strip().partition(",") for part in text.split("+")]
            named = [(name if _has_ratio(name) else f"{name}:{share:g}", *options) for name, *options in parts]
            wanted.append("+".join(map("".join, named)))
    return wanted


def _has_ratio(reduction: str) -> bool:
    return ":" in reduction.partition(",")[0]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)
