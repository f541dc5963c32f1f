"""The Trainer of one stage, with what a user may get wrong about devices and loggers told in one line."""

from __future__ import annotations

import difflib
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from gnomon.train.parsing import FitCLI
from gnomon.train.precision import check, keep_inputs
from gnomon.train.rundir import RunDir
from gnomon.train.strategies import NAMES, register

_LOGGERS = ("tensorboard", "wandb", "wandb_offline")


def make_trainer(cli: FitCLI, run: RunDir, callbacks: list[Callback], loggers: list[Logger]) -> Trainer:
    """From the `trainer` section; counting steps, evaluating, saving and logging are ours."""
    options = cli.config_init.trainer
    _check(options)
    own = options.callbacks or []
    try:
        made = cli.instantiate_trainer(
            callbacks=[*(own if isinstance(own, list) else [own]), *callbacks],
            logger=[*loggers, *_given(options.logger)],
            default_root_dir=run.path,
            max_epochs=-1,
            max_steps=-1,
            limit_val_batches=0,
            val_check_interval=None,
            check_val_every_n_epoch=None,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ImportError, ModuleNotFoundError) as error:
        raise ValueError(f"trainer: {' '.join(str(error).split())}") from error
    return keep_inputs(made)


def extra_loggers(names: list[str], run: RunDir, stage: str) -> list[Logger]:
    """Those that `loggers` names, beside the run's own log."""
    return [_logger(name, run, stage) for name in names]


def _logger(name: str, run: RunDir, stage: str) -> Logger:
    try:
        if name == "tensorboard":
            from lightning.pytorch.loggers import TensorBoardLogger

            return TensorBoardLogger(run.path, name="tensorboard", version=stage)
        if name in ("wandb", "wandb_offline"):
            from lightning.pytorch.loggers import WandbLogger

            # no id: offline segments that share one overwrite each other when they are synchronised
            offline = {"mode": "offline", "offline": True} if name == "wandb_offline" else {}
            return WandbLogger(
                name=f"{run.path.name}-{stage}", save_dir=run.path, project="gnomon", group=run.path.name, **offline
            )
    except ModuleNotFoundError as error:
        raise ValueError(f"logger {name!r} is not installed; run: pip install gnomon[loggers]") from error
    raise ValueError(f"logger {name!r} is unknown; use {', '.join(_LOGGERS)}")


def _given(logger: Any) -> list[Logger]:
    """What `trainer.logger` adds."""
    if isinstance(logger, bool) or logger is None:
        return []
    return list(logger) if isinstance(logger, list) else [logger]


def _check(options: Any) -> None:
    register()
    name, precision, clip = options.strategy, options.precision, options.gradient_clip_algorithm
    if isinstance(name, str) and name not in NAMES and name not in StrategyRegistry:
        near = difflib.get_close_matches(name, NAMES, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"use {', '.join(NAMES)}"
        raise ValueError(f"trainer.strategy {name!r} is unknown; {remedy}")
    check(precision, option="trainer.precision")
    if clip not in (None, "norm"):
        raise ValueError(f"trainer.gradient_clip_algorithm {clip!r} does not work on shards; use norm")
