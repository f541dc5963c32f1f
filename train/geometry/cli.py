"""`gnomon fit-geometry`: train a geometry encoder on posed views with depth, and save it for use in a model."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from jsonargparse import ArgumentParser
from lightning import Callback, LightningModule, Trainer, seed_everything

from gnomon.data.order import Order
from gnomon.data.sample import Source
from gnomon.train.callbacks.checkpoint import Checkpoint, newest
from gnomon.train.callbacks.progress import clock
from gnomon.train.cli import quiet
from gnomon.train.geometry.feed import Feed
from gnomon.train.geometry.module import GeometryModule
from gnomon.train.parsing import same_in_all_versions
from gnomon.train.runlog import RunLog
from gnomon.train.schedule import Schedule
from gnomon.vlm.directory import whole
from gnomon.vlm.geometry.base import GeometryEncoder
from gnomon.vlm.layout import ViewsSpec

_LOG_EVERY = 20
_LINE_SECONDS = 30.0


def main(argv: list[str]) -> int:
    parser = _parser()
    config = parser.parse_args(argv)
    seed_everything(config.seed, verbose=False)
    with same_in_all_versions():
        given = parser.instantiate_classes(config)
    encoder: GeometryEncoder = given.encoder
    out = Path(config.out)
    if out.exists() and any(out.iterdir()) and not config.resume:
        raise ValueError(f"{out} is not empty; go on with --resume, or choose another --out")
    if encoder.frozen:
        raise ValueError(f"{type(encoder).__name__} is frozen; set encoder.init_args.frozen to false")
    out.mkdir(parents=True, exist_ok=True)
    quiet()
    plain = parser.dump(config)
    (out / "config.yaml").write_text(plain)

    checkpoint = Checkpoint(out / "checkpoints", every=config.checkpoint_every)
    log = RunLog(out, "geometry")
    last = newest(checkpoint.folder) if config.resume else None
    start = 0 if last is None else int(last.name.removeprefix("step-"))
    log.rewind(start)
    size = None if config.size is None else (config.size[0], config.size[1])
    feed = Feed(
        given.data,
        ViewsSpec(encoder.multiple, encoder.max_views, size=size),
        Order(len(given.data), seed=config.seed, batch=config.batch),
        config.steps,
        recolour=config.recolour,
    )
    schedule = Schedule(config.steps, warmup=config.warmup)
    module = GeometryModule(encoder, lr=config.lr, decay=config.decay, schedule=schedule)
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=1,
        precision=config.precision,
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=config.clip,
        callbacks=[checkpoint, _Lines(config.steps, start)],
        logger=[log],
        default_root_dir=out,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    count = sum(p.numel() for p in encoder.parameters())
    print(
        f"{type(encoder).__name__}, {count:,} parameters; {config.steps} steps of {config.batch} scenes",
        file=sys.stderr,
    )
    trainer.fit(module, feed.loader(start=start, workers=config.workers), ckpt_path=last, weights_only=True)
    checkpoint.save(trainer)
    save(encoder, out / "encoder")
    print(f"encoder: {out / 'encoder'}", file=sys.stderr)
    return 0


def save(encoder: GeometryEncoder, path: Path) -> None:
    """A directory that the encoder's `weights` option takes, with how it was made beside it."""
    with whole(path, ours=lambda place: (place / "encoder.json").is_file()) as draft:
        save_torch_state_dict(encoder.state_dict(), draft)
        (draft / "encoder.json").write_text(json.dumps(encoder.spec(), indent=2) + "\n")


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


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="gnomon fit-geometry", description=__doc__, exit_on_error=True)
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    parser.add_subclass_arguments(GeometryEncoder, "encoder", required=True)
    parser.add_subclass_arguments(Source, "data", required=True)
    parser.add_argument("--out", type=str, required=True, help="directory of the run; the encoder comes to OUT/encoder")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32, help="scenes a step")
    parser.add_argument("--size", type=list[int] | None, default=None, help="height and width of views; as they are")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--decay", type=float, default=0.05, help="of weights, not of biases, norms and scales")
    parser.add_argument("--warmup", type=int, default=500, help="steps until the learning rate is reached")
    parser.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    parser.add_argument("--recolour", type=bool, default=True, help="vary colours, brightness and contrast")
    parser.add_argument("--workers", type=int, default=1, help="processes that make scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", type=str, default="32-true")
    parser.add_argument("--accelerator", type=str, default="auto")
    parser.add_argument("--checkpoint_every", type=int, default=500)
    return parser
