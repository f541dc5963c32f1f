"""One stage: a model, its data and a Trainer with the callbacks that make the run exact, from start to hand-off."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from lightning import Callback, Trainer
from torch import nn

from gnomon.data.module import DataModule
from gnomon.data.processor import Processor
from gnomon.train.callbacks.budget import ENDLESS, TIMED, Budget
from gnomon.train.callbacks.checkpoint import Checkpoint, newest
from gnomon.train.callbacks.gauge import Gauge
from gnomon.train.callbacks.guard import Guard
from gnomon.train.callbacks.handoff import HandOff
from gnomon.train.callbacks.interrupt import Interrupt
from gnomon.train.callbacks.meter import Columns, Meter
from gnomon.train.callbacks.progress import Progress
from gnomon.train.callbacks.validate import Validate
from gnomon.train.feed import Feed
from gnomon.train.module import StageModule
from gnomon.train.parsing import FitCLI
from gnomon.train.recipes.base import Stage
from gnomon.train.rundir import RunDir
from gnomon.train.runlog import RunLog
from gnomon.train.schedule import Schedule, warmup_steps
from gnomon.train.throughput import Flops
from gnomon.train.trainer import extra_loggers, make_trainer
from gnomon.vlm.auxiliary.base import AuxLoss
from gnomon.vlm.compute.base import VisualCompute
from gnomon.vlm.freeze import Group, freeze
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.mixers.base import Mixer
from gnomon.vlm.model import VLM
from gnomon.vlm.part import build
from gnomon.vlm.reduction.base import TokenReducer
from gnomon.vlm.save import from_config, load


@dataclass(frozen=True)
class Place:
    """Where a stage stands in its run.

    share   its part of the steps or minutes of the whole run
    start   the model that it begins with; None: the configured one
    target  where its own model goes
    first   whether no other stage was run in this process
    """

    run: RunDir
    index: int
    share: float
    start: Path | None
    target: Path
    first: bool


def run_stage(cli: FitCLI, place: Place, *, deadline: float | None) -> str | None:
    """Train it to its end; returns why it ended early, if it did."""
    if not place.first:
        # fresh objects: nothing but the model directory passes from stage to stage
        cli.instantiate()
    options, run = cli.config, place.run
    stages: list[Stage] = cli.config_init.recipe.stages()
    stage = stages[place.index]
    data: DataModule = cli.config_init.data
    data.train_source = stage.data or data.train_source
    data.batch_size = stage.batch_size or data.batch_size
    # the parts may come in several dtypes; trained are float32 weights, which `precision` may lower
    vlm = _model(cli, place.start).float()
    stages = [fitting(each, vlm) for each in stages]
    stage = stages[place.index]
    if place.start is None:
        given = cli.plain()["model"]
        new = vlm.mixers[len(vlm.mixers) - len(given["mixers"]) :]
        _check_taught(vlm, new, vlm.fusion if given["fusion"] else None, list(vlm.aux), stages)
    if stage.check is not None:
        stage.check(vlm)
    table = freeze(vlm, list(stage.rates))
    _check_sharding(vlm, options.trainer.strategy)

    checkpoint = Checkpoint(run.checkpoints(stage.name), every=options.checkpoint.every, keep=options.checkpoint.keep)
    interrupt = Interrupt(checkpoint, deadline=deadline)
    log = RunLog(run.path, stage.name)
    callbacks = _callbacks(cli, place, stage, Flops(vlm), checkpoint, interrupt)
    trainer = make_trainer(cli, run, callbacks, [log, *extra_loggers(options.loggers, run, stage.name)])
    data.attach(
        Processor(vlm.tokenizer, stage.template or vlm.template, vlm.image, views=vlm.views),
        world=trainer.world_size,
        rank=trainer.global_rank,
        accumulate=trainer.accumulate_grad_batches,
        reduce=_adder(trainer),
    )
    steps = _steps(cli, place, stage, data)
    trainer.fit_loop.epoch_loop.max_steps = -1 if steps == ENDLESS else steps
    module = _module(cli, stage, vlm, data, steps)

    last = newest(checkpoint.folder) if options.resume else None
    if trainer.is_global_zero:
        # only now: nothing that a user can get wrong is left
        if place.first:
            run.begin(cli.plain(), resume=options.resume)
        log.rewind(0 if last is None else int(last.name.removeprefix("step-")))
        _announce(stage, steps, data, table, last, limit=options.trainer.max_steps)
    trainer.fit(module, ckpt_path=last, weights_only=True)
    return interrupt.reason


def _model(cli: FitCLI, start: Path | None) -> VLM:
    """The previous stage's model, or the configured one."""
    given = cli.plain()["model"]
    checkpoint = given.pop("checkpoint")
    if start is not None or checkpoint is not None:
        # within a run the losses go on; a checkpoint's own are over
        model = load(start or checkpoint, aux=start is not None)
        if given["reducers"]:
            model.reducers = [build(spec, TokenReducer) for spec in given["reducers"]]
        # an earlier stage's model has it already, with what was trained of it
        if start is None:
            if given["compute"]:
                model.use(build(given["compute"], VisualCompute))
            if given["geometry"] or given["fusion"]:
                parts = zip(("geometry", "fusion"), (GeometryEncoder, Fusion))
                model.join(*(build(given[name], family) if given[name] else None for name, family in parts))
            model.mix([build(spec, Mixer) for spec in given["mixers"]])
            model.teach([build(spec, AuxLoss) for spec in given["aux"]])
        return model
    return from_config(given)


def fitting(stage: Stage, vlm: VLM) -> Stage:
    """The stage with the rates of those parts beside that this model has."""
    names = [name for name, _ in vlm.named_parameters()]
    there = {glob: rate for glob, rate in stage.beside.items() if any(fnmatchcase(name, glob) for name in names)}
    return replace(stage, rates={**stage.rates, **there})


def _check_taught(
    vlm: VLM, new: Sequence[Mixer], fusion: Fusion | None, aux: Sequence[AuxLoss], stages: Sequence[Stage]
) -> None:
    """A ValueError for what is new and trained by no stage: its random parameters would stay as they are."""
    patterns = [pattern for stage in stages for pattern in stage.rates]
    names = {parameter: name for name, parameter in vlm.named_parameters()}

    def untaught(part: nn.Module) -> list[str]:
        own = [names[parameter] for parameter in part.parameters()]
        return [] if any(fnmatchcase(name, pattern) for name in own for pattern in patterns) else own

    for index in sorted(index for mixer in new for index in mixer.places(len(vlm.lm.layers))):
        if own := untaught(vlm.lm.layers[index].self_attn.mixer):
            raise ValueError(
                f"the mixer of layer {index} is new and no stage trains any of its {len(own)} parameters, such as "
                f"{own[0]}; add lm.* to the recipe's rates"
            )
    # one that begins as the plain model does no harm
    if fusion is not None and not fusion.zero and (own := untaught(fusion)):
        raise ValueError(
            f"the fusion {type(fusion).__name__} is new and no stage trains any of its {len(own)} parameters, such as "
            f"{own[0]}; add fusion.* to the recipe's rates"
        )
    for loss in aux:
        if own := untaught(loss):
            raise ValueError(
                f"the auxiliary loss {type(loss).__name__} is new and no stage trains any of its {len(own)} parameters"
                "; add aux.* to the recipe's rates (those of SFT are free)"
            )


def _check_sharding(vlm: VLM, strategy: object) -> None:
    if vlm.compute is not None and strategy in ("zero3", "fsdp2"):
        raise ValueError(
            f"trainer.strategy {strategy} shards the weights of layers that {type(vlm.compute).__name__} takes "
            "apart; use ddp, zero1 or zero2"
        )


def _callbacks(
    cli: FitCLI, place: Place, stage: Stage, flops: Flops, checkpoint: Checkpoint, interrupt: Interrupt
) -> list[Callback]:
    """What a step changes comes before its checkpoint, what ends the run after it."""
    options, run, data = cli.config, place.run, cli.config_init.data
    own = [Gauge(), *stage.callbacks()]
    beside = [callback for callback in own if isinstance(callback, Columns)]
    meter = Meter(flops, every=options.trainer.log_every_n_steps, beside=beside)
    callbacks = [Guard(checkpoint, run.path / "failure.json"), *own, meter]
    if _budgeted(cli, stage):
        minutes = place.share * options.budget.minutes
        callbacks.append(Budget(60 * minutes, run.stage(stage.name) / "plan.json"))
    if data.val_source is not None:
        every = options.trainer.val_check_interval
        if not isinstance(every, int):
            raise ValueError(f"trainer.val_check_interval {every} with data.val: give a number of steps, such as 500")
        callbacks.append(Validate(every=every))
    hand_off = HandOff(run, stage.name, place.target, meter)
    return [*callbacks, checkpoint, interrupt, Progress(meter, stage.name), hand_off]


def _module(cli: FitCLI, stage: Stage, vlm: VLM, data: DataModule, steps: int) -> StageModule:
    optim = stage.optim
    warmup = TIMED if steps == ENDLESS else warmup_steps(optim.warmup, steps)
    return StageModule(
        vlm,
        Feed(data),
        groups=[Group(match, lr, optim.weight_decay) for match, lr in stage.rates.items()],
        schedule=Schedule(steps, warmup, optim.schedule, optim.floor),
        betas=optim.betas,
        eps=optim.eps,
        seed=int(cli.config.seed_everything),
        compile_blocks=cli.config.compile,
    )


def _steps(cli: FitCLI, place: Place, stage: Stage, data: DataModule) -> int:
    trainer = cli.config.trainer
    for name in ("max_steps", "max_epochs"):
        # -1 and None: not given
        if (count := getattr(trainer, name)) not in (-1, None) and count < 1:
            raise ValueError(f"trainer.{name} {count} trains nothing; set trainer.{name} to 1 or more")
    if stage.steps is not None:
        return stage.steps
    if _budgeted(cli, stage):
        return ENDLESS
    if trainer.max_steps > 0:
        return max(1, round(place.share * trainer.max_steps))
    epochs = 1 if trainer.max_epochs in (-1, None) else trainer.max_epochs
    return math.ceil(epochs * data.steps_per_epoch)


def _budgeted(cli: FitCLI, stage: Stage) -> bool:
    return cli.config.budget.minutes is not None and stage.steps is None


def _adder(trainer: Trainer) -> Callable[[int], int]:
    def add_up(count: int) -> int:
        mine = torch.tensor(count, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="sum"))

    return add_up


def _announce(stage: Stage, steps: int, data: DataModule, table: str, last: Path | None, *, limit: int) -> None:
    size = data.order.step_size
    split = f"{data.batch_size} x {data.accumulate} micro-batches x {data.world} processes"
    passed_over = f", whatever trainer.max_steps {limit} says," if limit > 0 else ""
    count = f"as many steps as the budget allows{passed_over}" if steps == ENDLESS else f"{steps} steps"
    begun = "" if last is None else f", resumed from {last.name}"
    print(f"stage {stage.name}: {count} of {size} samples ({split}){begun}\n{table}", file=sys.stderr)
