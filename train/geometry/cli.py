"""`gnomon fit-geometry`: train a geometry encoder on posed views with depth, and save it for use in a model."""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import save_torch_state_dict
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from gnomon.data.errors import BadSample
from gnomon.data.order import Order
from gnomon.data.sample import Source
from gnomon.train.callbacks.checkpoint import Checkpoint, newest
from gnomon.train.callbacks.interrupt import Interrupt
from gnomon.train.callbacks.progress import clock
from gnomon.train.cli import quiet
from gnomon.train.errors import Stopped
from gnomon.train.geometry.feed import Feed
from gnomon.train.geometry.module import TAUGHT, GeometryModule
from gnomon.train.parsing import condense, same_in_all_versions
from gnomon.train.precision import check, keep_inputs
from gnomon.train.rundir import differences
from gnomon.train.runlog import RunLog
from gnomon.train.schedule import Schedule
from gnomon.vlm.directory import whole
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.layout import ViewsSpec

Measure = Callable[[GeometryEncoder, Source, ViewsSpec], dict[str, float]]
"""Metrics of an encoder on scenes."""

_CONFIG = "config.yaml"
_METRICS = "held_out.json"
_INTERRUPTED = 130
_LOG_EVERY = 20
_LINE_SECONDS = 30.0
# How a run is invoked, not what it is.
_FREE = "config", "out", "resume", "accept_changes", "workers", "checkpoint_every", "held_out"


def main(argv: list[str], *, measure: Measure) -> int:
    quiet()
    parser = _parser()
    config, given = _read(parser, argv)
    encoder: GeometryEncoder = given.encoder
    _check_encoder(encoder)
    out, plain = Path(config.out), _plain(parser, config)
    _check_out(out, plain, resume=config.resume, accept_changes=config.accept_changes)
    checkpoint = Checkpoint(out / "checkpoints", every=config.checkpoint_every)
    last = newest(checkpoint.folder) if config.resume else None
    start = 0 if last is None else int(last.name.removeprefix("step-"))
    feed = Feed(
        given.data,
        ViewsSpec(encoder.multiple, encoder.max_views, size=config.size),
        Order(len(given.data), seed=config.seed, batch=config.batch),
        config.steps,
        recolour=config.recolour,
    )
    # here rather than in a worker: a source that teaches nothing is told at once
    feed[start]
    held_out = _held_out(config, given.data)
    schedule = Schedule(config.steps, warmup=config.warmup)
    module = GeometryModule(encoder, lr=config.lr, decay=config.decay, schedule=schedule)
    log, interrupt = RunLog(out, "geometry"), Interrupt(checkpoint)
    trainer = _trainer(config, log, [checkpoint, interrupt, _Lines(config.steps, start)])
    # only now: nothing that a user can get wrong is left
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _CONFIG).write_text(yaml.safe_dump(plain, sort_keys=False))
        log.rewind(start)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    count = sum(p.numel() for p in encoder.parameters())
    begun = "" if last is None else f", resumed from {last.name}"
    _tell(f"{type(encoder).__name__}, {count:,} parameters; {config.steps} steps of {config.batch} scenes{begun}")
    try:
        trainer.fit(module, feed.loader(start=start, workers=config.workers), ckpt_path=last, weights_only=True)
        if interrupt.reason is None:
            checkpoint.save(trainer)
    except Stopped as stopped:
        _tell(f"gnomon: {stopped}")
        return 1
    except BadSample as error:
        # a worker's message is a traceback with the line at its end
        raise ValueError(str(error).strip().splitlines()[-1].partition("BadSample: ")[2] or str(error)) from error
    if interrupt.reason is not None:
        _tell(f"stopped and saved; to go on: gnomon fit-geometry --config {out / _CONFIG} --out {out} --resume")
        return _INTERRUPTED
    save(encoder, out / "encoder")
    _tell(f"encoder: {out / 'encoder'}")
    if held_out is not None:
        _report(out / _METRICS, config.steps, measure(encoder, held_out, feed.spec))
    elif config.held_out:
        _tell(f"not measured: {type(given.data).__name__} has no test split beside what it was trained on")
    return 0


def save(encoder: GeometryEncoder, path: Path) -> None:
    """A directory that the encoder's `weights` option takes, with how it was made beside it."""
    with whole(path, ours=lambda place: (place / "encoder.json").is_file()) as draft:
        save_torch_state_dict(encoder.state_dict(), draft)
        (draft / "encoder.json").write_text(json.dumps(encoder.spec(), indent=2) + "\n")


def _held_out(config: Namespace, source: Source) -> Source | None:
    """As many scenes of the source's test split; None where it has none, or is to teach by it."""
    given = config.data.init_args
    if not config.held_out or given.get("split") != "train" or "count" not in given:
        return None
    return type(source)(**{**given.as_dict(), "split": "test", "count": config.held_out})


def _report(path: Path, steps: int, found: dict[str, float]) -> None:
    told = "  ".join(f"{name} {value:.3f}" for name, value in found.items() if name != "scenes")
    _tell(f"metrics of {found['scenes']} held-out scenes of the test split: {told}")
    # JSON has no word for what is not finite
    values = {name: value if math.isfinite(value) else None for name, value in found.items()}
    path.write_text(json.dumps({"steps": steps, "split": "test", **values}, indent=2) + "\n")
    _tell(f"metrics: {path}")


class _Lines(Callback):
    """One line now and then, and rows for the log."""

    def __init__(self, total: int, first: int) -> None:
        self.total, self.first = total, first
        self.begun = self.shown = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step, now = trainer.global_step, time.monotonic()
        if step % _LOG_EVERY == 0 or step == self.total:
            values = {name: float(value) for name, value in module.latest.items()}
            trainer.logger.log_metrics({**values, "lr": trainer.optimizers[0].param_groups[0]["lr"]}, step)
        if now - self.shown > _LINE_SECONDS or step == self.total:
            self.shown = now
            told = "  ".join(f"{name} {float(value):.3f}" for name, value in module.latest.items())
            left = clock((self.total - step) * (now - self.begun) / max(1, step - self.first))
            print(f"step {step}/{self.total}  {told}  left {left}", file=sys.stderr, flush=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _read(parser: ArgumentParser, argv: list[str]) -> tuple[Namespace, Namespace]:
    """The options, and the same with encoder and data made."""
    try:
        config = parser.parse_args(argv)
        # before the encoder is made: its first weights belong to the run
        seed_everything(config.seed, verbose=False)
        with same_in_all_versions():
            return config, parser.instantiate_classes(config)
    except (ArgumentError, ValueError) as error:
        raise ValueError(condense(str(error), parser)) from error


def _plain(parser: ArgumentParser, config: Namespace) -> dict[str, Any]:
    """In plain types, without what concerns this invocation alone."""
    with same_in_all_versions():
        given = yaml.safe_load(parser.dump(config, skip_none=False))
    return {key: value for key, value in given.items() if key not in ("config", "out", "resume", "accept_changes")}


def _check_encoder(encoder: GeometryEncoder) -> None:
    name = type(encoder).__name__
    if not any(True for _ in encoder.parameters()):
        raise ValueError(f"{name} has no parameters, so there is nothing to train; use an encoder that predicts")
    if encoder.frozen:
        raise ValueError(f"{name} is frozen; set encoder.init_args.frozen to false")
    if "extrinsics" in encoder.reads and ("camera" in encoder.heads or encoder.frame != "ref_camera"):
        remedy = "set encoder.init_args.condition to false" if hasattr(encoder, "condition") else "use another encoder"
        raise ValueError(f"{name} goes by cameras that are known, which it is to be taught; {remedy}")
    if encoder.frame != "ref_camera" and encoder.heads & {"points", "camera"}:
        remedy = "encoder.init_args.reference first" if hasattr(encoder, "reference") else "another encoder"
        raise ValueError(
            f"{name} has points or cameras in no view's frame that is known beforehand, and is taught in the first "
            f"one's; give encoder.init_args.heads depth alone, or use {remedy}"
        )
    if not encoder.heads & TAUGHT.keys():
        raise ValueError(f"{name} has no head to learn by; give encoder.init_args.heads some of {', '.join(TAUGHT)}")


def _check_out(out: Path, plain: dict[str, Any], *, resume: bool, accept_changes: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose another --out")
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty; go on with --resume, or choose another --out")
        return
    if not (out / _CONFIG).is_file():
        raise ValueError(f"{out} holds no run to resume; start one without --resume")
    try:
        begun = yaml.safe_load((out / _CONFIG).read_text())
    except yaml.YAMLError:
        begun = None
    if not isinstance(begun, dict):
        raise ValueError(f"{out / _CONFIG} is damaged; choose another --out")
    before, now = ({key: value for key, value in given.items() if key not in _FREE} for given in (begun, plain))
    changes = list(differences(before, now))
    if changes and not accept_changes:
        raise ValueError(
            f"{out} was begun with another configuration: {'; '.join(changes[:6])}; resume with --accept_changes to "
            "take it"
        )


def _trainer(config: Namespace, log: RunLog, callbacks: list[Callback]) -> Trainer:
    check(config.precision, option="precision")
    try:
        made = Trainer(
            accelerator=config.accelerator,
            devices=1,
            precision=config.precision,
            max_steps=config.steps,
            max_epochs=-1,
            gradient_clip_val=config.clip,
            callbacks=callbacks,
            logger=[log],
            default_root_dir=config.out,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as error:
        raise ValueError(f"accelerator {config.accelerator!r}: {error}") from error
    return keep_inputs(made)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="gnomon fit-geometry", description=__doc__, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    parser.add_subclass_arguments(GeometryEncoder, "encoder", required=True)
    parser.add_subclass_arguments(Source, "data", required=True)
    parser.add_argument("--out", type=str, required=True, help="directory of the run; the encoder comes to OUT/encoder")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--accept_changes", action="store_true", help="resume although the configuration changed")
    parser.add_argument("--steps", type=PositiveInt, default=2000)
    parser.add_argument("--batch", type=PositiveInt, default=32, help="scenes a step")
    size = tuple[PositiveInt, PositiveInt] | None
    parser.add_argument("--size", type=size, default=None, help="height and width of views; as they are")
    parser.add_argument("--lr", type=PositiveFloat, default=3e-4)
    parser.add_argument("--decay", type=NonNegativeFloat, default=0.05, help="of weights, not of biases, norms, scales")
    parser.add_argument("--warmup", type=NonNegativeInt, default=500, help="steps until the learning rate is reached")
    parser.add_argument("--clip", type=NonNegativeFloat, default=1.0, help="largest norm of the gradient; 0: any")
    parser.add_argument("--recolour", type=bool, default=True, help="vary colours, brightness and contrast")
    text = "scenes of the test split to measure the encoder on, where the data has one; 0: none"
    parser.add_argument("--held_out", type=NonNegativeInt, default=200, help=text)
    parser.add_argument("--workers", type=NonNegativeInt, default=1, help="processes that make scenes")
    parser.add_argument("--seed", type=NonNegativeInt, default=0)
    parser.add_argument("--precision", type=str, default="32-true")
    parser.add_argument("--accelerator", type=str, default="auto")
    parser.add_argument("--checkpoint_every", type=PositiveInt, default=500, help="steps between checkpoints")
    return parser
