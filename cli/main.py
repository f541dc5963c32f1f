"""`gnomon`: one command, its sub-commands imported only when called."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

COMMANDS = {
    "fit": ("gnomon.train.cli", "main", "train a model: stages, many GPUs, exact resume"),
    "fit-geometry": ("gnomon.cli.fit_geometry", "main", "train a geometry encoder on posed views with depth"),
    "evaluate": ("gnomon.eval.cli", "evaluate", "measure a model on benchmarks, with intervals and baselines"),
    "ask": ("gnomon.eval.cli", "ask", "ask a model one question about an image"),
    "calibrate": ("gnomon.eval.cli", "calibrate", "find the heads of a model that do not look at images"),
    "report": ("gnomon.eval.cli", "report", "one self-contained HTML page from run directories"),
    "export": ("gnomon.cli.export", "main", "write a model for other software, reload it and compare"),
    "import": (
        "gnomon.cli.importing",
        "main",
        "make a model of a Hugging Face checkpoint: LLaVA, LLaVA-NeXT, Qwen2.5-VL",
    ),
    "bench": ("gnomon.cli.bench", "main", "speed side by side: decode, kernels"),
    "data": ("gnomon.cli.data", "main", "make shards of procedural data, or look at samples"),
    "methods": ("gnomon.cli.methods", "main", "list what is in the box: title, paper, where it acts"),
}
INTERRUPTED, MISTAKE = 130, 2
UNREAD = 141
"""What a shell calls a program that writes to a closed pipe."""


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gnomon [--traceback] COMMAND ...",
            "",
            "Train, slim down and measure vision-language models that have to see geometry.",
            "",
            "commands:",
            *lines,
            "",
            "  gnomon COMMAND --help   what a command takes",
            "  gnomon --version        the version",
            "  --traceback             show where an error came from instead of one line",
        ]
    )


def nearest(word: str, known: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def complain(message: str) -> int:
    print(f"gnomon: {' '.join(message.split())}", file=sys.stderr)
    return MISTAKE


def _unread() -> bool:
    """Whether nobody reads what we print any more, as behind `| head`; what is left of it then goes nowhere."""
    import select

    # a pipe's end that cannot be written to is reported whatever one asks about
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)
    if not pipe.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def main(argv: list[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    show = bool(argv) and argv[0] == "--traceback"
    if show:
        del argv[0]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"gnomon {version('gnomon')}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        return complain(f"command {name!r} is unknown{nearest(name, list(COMMANDS))}")
    module, function, _ = COMMANDS[name]
    try:
        code = getattr(importlib.import_module(module), function)(rest) or 0
        sys.stdout.flush()
        return code
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _unread():
            return UNREAD
        # ValueError is how every part of gnomon reports a user's mistake; OSError names its file itself
        if show:
            traceback.print_exc()
            return MISTAKE
        return complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
