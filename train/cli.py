"""`gnomon fit`: from an argument list to an exit code."""

from __future__ import annotations

import logging
import sys
import warnings

# The exit code of a process that Ctrl-C ended, by the shell's convention.
_INTERRUPTED = 130


def main(argv: list[str]) -> int:
    """Train. A user's mistake is a ValueError; a run that cannot go on ends with 1 and one line."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from gnomon.train.errors import Stopped
    from gnomon.train.fit import fit
    from gnomon.train.parsing import FitCLI

    quiet()
    cli = FitCLI(argv)
    again = f"gnomon fit --config {cli.config.out}/config.resolved.yaml --out {cli.config.out} --resume"
    first = rank_zero_only.rank == 0
    try:
        reason = fit(cli)
    except Stopped as stopped:
        # ranks that Lightning launched must not fail first: it would kill the one that has something to say
        return _tell(f"gnomon: {stopped}", 1) if first else 0
    if not first:
        return 0
    if reason == "signal":
        return _tell(f"stopped and saved; to go on: {again}", _INTERRUPTED)
    if reason == "time":
        return _tell(f"time is up, saved; to go on: {again}", 0)
    return _tell(f"model: {cli.config.out}/model", 0)


def _tell(line: str, code: int) -> int:
    print(" ".join(line.split()), file=sys.stderr)
    return code


def quiet() -> None:
    """Leave out what Lightning says about itself; warnings of ours and of the data stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    # of one-element dimensions, whose strides mean nothing
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    warnings.filterwarnings("ignore", module="jsonargparse.*")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
