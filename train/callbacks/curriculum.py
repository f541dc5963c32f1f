"""Curriculum: which levels of which tasks the next samples come from, by what the model can do already."""

from __future__ import annotations

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any

from lightning import Callback, LightningModule, Trainer

from gnomon.data.sample import Source
from gnomon.train.evaluate import evaluate

# Scored samples come from the training distribution, under a seed that training does not use.
_SEED_APART = 1_000_003

Mixture = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Competence:
    """The rule, without a model: a state is the index of each task's level; one past the last means finished."""

    tasks: tuple[str, ...]
    levels: tuple[int, ...]
    threshold: float = 0.99
    decay: float = 1.5
    finished: float = 0.4

    def __post_init__(self) -> None:
        if not self.tasks or not self.levels:
            raise ValueError(f"a curriculum of {len(self.tasks)} tasks and {len(self.levels)} levels; give both")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold {self.threshold} is never exceeded by an accuracy; use 0 to below 1")

    def start(self) -> dict[str, int]:
        return dict.fromkeys(self.tasks, 0)

    def advance(self, state: dict[str, int], accuracy: dict[str, float]) -> dict[str, int]:
        return {task: at + (task in accuracy and accuracy[task] > self.threshold) for task, at in state.items()}

    def mixture(self, state: dict[str, int]) -> Mixture:
        """Weight of each level of each task; the weights of a task add up to its share."""
        return {task: self._levels(state[task]) for task in self.tasks}

    def _levels(self, at: int) -> dict[int, float]:
        if at == len(self.levels):
            return dict.fromkeys(self.levels, self.finished / len(self.levels))
        weights = [math.exp(-self.decay * abs(k - at)) for k in range(len(self.levels))]
        return {level: weight / sum(weights) for level, weight in zip(self.levels, weights)}


class Curriculum(Callback):
    """Before the checkpoint of the same step, so that a resumed run has the state that goes with its samples."""

    def __init__(self, competence: Competence, *, every: int, samples: int) -> None:
        if every < 1 or samples < 1:
            raise ValueError(f"scoring {samples} samples every {every} steps: both must be 1 or more")
        self.competence, self.every, self.samples = competence, every, samples
        self.state = competence.start()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._apply(module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if not module.boundary or step % self.every:
            return
        accuracy = {
            task: self._score(trainer, module, task, self.competence.levels[at])
            for task, at in self.state.items()
            if at < len(self.competence.levels)
        }
        self.state = trainer.strategy.broadcast(self.competence.advance(self.state, accuracy))
        self._apply(module)
        metrics = {f"accuracy/{task}": value for task, value in accuracy.items()}
        metrics |= {f"level/{task}": float(at) for task, at in self.state.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"levels": dict(self.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state["levels"])

    def _apply(self, module: LightningModule) -> None:
        module.feed.use(remade(module.feed.data.train_source, mixture=self.competence.mixture(self.state)))

    def _score(self, trainer: Trainer, module: LightningModule, task: str, level: int) -> float:
        source = module.feed.data.train_source
        data = copy.copy(module.feed.data)
        data.val_source = remade(
            source, mixture={task: {level: 1.0}}, count=self.samples, seed=source.seed + _SEED_APART, questions=1
        )
        data.workers, data.pack = 0, None
        return evaluate(trainer, module, data.val_dataloader()).accuracy


def remade(source: Source, **changes: Any) -> Source:
    """A source like this one but for some constructor arguments; those that it keeps as attributes are carried over."""
    names = inspect.signature(type(source)).parameters
    missing = [name for name in changes if name not in names]
    if missing:
        raise ValueError(
            f"a curriculum needs a source with {', '.join(missing)}, {type(source).__name__} has none; use Diagrams"
        )
    kept = {name: getattr(source, name) for name in names if hasattr(source, name)}
    return type(source)(**{**kept, **changes})
