"""One run: the recipe's stages in order, each beginning with the model that the one before left."""

from __future__ import annotations

import time
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from gnomon.train.parsing import FitCLI
from gnomon.train.rundir import RunDir
from gnomon.train.stage import Place, run_stage


def fit(cli: FitCLI) -> str | None:
    """Run what is not finished yet; returns why it ended early ("signal" or "time"), if it did."""
    options = cli.config
    run = RunDir(options.out)
    if rank_zero_only.rank == 0:
        if options.resume:
            run.check_resumable(cli.plain(), accept_changes=options.accept_changes)
        else:
            run.check_new(overwrite=options.overwrite)
    deadline = None if options.max_minutes is None else time.monotonic() + 60 * options.max_minutes
    cli.instantiate()
    stages = cli.config_init.recipe.stages()
    shares = sum(stage.share for stage in stages)
    start: Path | None = None
    begun = False
    for index, stage in enumerate(stages):
        target = run.model(stage.name, last=index == len(stages) - 1)
        # without --resume other ranks may still see what rank 0 is about to replace
        if not (options.resume and run.finished(stage.name)):
            place = Place(run, index, share=stage.share / shares, start=start, target=target, first=not begun)
            reason = run_stage(cli, place, deadline=deadline)
            if reason is not None:
                return reason
            begun = True
        start = target
    return None
