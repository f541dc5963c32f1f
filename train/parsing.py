"""The command line and configuration files of `gnomon fit`, on Lightning's CLI."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from gnomon.data.module import DataModule
from gnomon.data.sample import Source
from gnomon.train.recipes.base import Recipe
from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.model import VLM

_PARTS = {"encoder": Encoder, "connector": Bridge, "lm": CausalLM}
_DEFAULTS = {"gradient_clip_val": 1.0, "log_every_n_steps": 10}

# What of the Trainer is ours to decide, or would change a run without being part of it.
_OURS = {
    "barebones", "check_val_every_n_epoch", "default_root_dir", "enable_autolog_hparams", "enable_checkpointing",
    "enable_model_summary", "enable_progress_bar", "fast_dev_run", "inference_mode", "limit_predict_batches",
    "limit_test_batches", "limit_train_batches", "limit_val_batches", "max_time", "min_epochs", "min_steps",
    "model_registry", "num_sanity_val_steps", "overfit_batches", "reload_dataloaders_every_n_epochs", "sync_batchnorm",
    "use_distributed_sampler",
}  # fmt: skip

# How a run is invoked; not part of what it is.
_INVOCATION = ("config", "out", "resume", "overwrite", "accept_changes")


class FitCLI(LightningCLI):
    """Parses; classes are made later, freshly for each stage, by `instantiate`."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(
            save_config_callback=None,
            trainer_defaults=_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"prog": "gnomon fit", "exit_on_error": False, "allow_abbrev": False, "description": __doc__},
            args=argv,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        unknown = _OURS - set(inspect.signature(self.trainer_class.__init__).parameters)
        parser.add_class_arguments(self.trainer_class, "trainer", instantiate=False, skip=_OURS - unknown)
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_class_arguments(VLM, "model", instantiate=False, skip={*_PARTS})
        for name, family in _PARTS.items():
            parser.add_subclass_arguments(family, f"model.{name}", instantiate=False, required=False)
        parser.add_argument(
            "--model.checkpoint", type=str | None, help="a model directory to start from, instead of parts"
        )
        parser.add_subclass_arguments(Recipe, "recipe", required=False)
        parser.set_defaults({"recipe": {"class_path": "gnomon.train.recipes.sft.SFT"}})
        parser.add_class_arguments(DataModule, "data", skip={"train"})
        parser.add_subclass_arguments(Source, "data.train", required=True)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--out", type=str, required=True, help="the run's directory")
        parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
        parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
        parser.add_argument("--accept_changes", action="store_true", help="resume although the configuration changed")
        parser.add_argument("--budget.minutes", type=float | None, help="train for so long: the steps follow from it")
        parser.add_argument("--max_minutes", type=float | None, help="save and end after so long; resume to go on")
        parser.add_argument("--checkpoint.every", type=int, default=500, help="optimizer steps between checkpoints")
        parser.add_argument("--checkpoint.keep", type=int, default=2, help="how many are kept")
        parser.add_argument("--compile", type=bool, default=False, help="torch.compile each block")
        parser.add_argument("--loggers", type=list[str], default=[], help="tensorboard, wandb; CSV is always written")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise ValueError(condense(str(error), parser)) from error

    def instantiate_classes(self) -> None:
        """Nothing yet: a run may be refused before anything is made."""

    def instantiate(self) -> None:
        """Make fresh objects of everything but the model, into `config_init`."""
        try:
            with same_in_all_versions():
                self.config_init = self.parser.instantiate_classes(self.config)
        except ValueError as error:
            raise ValueError(condense(str(error), self.parser)) from error

    def plain(self) -> dict[str, Any]:
        """The resolved configuration in plain types, without what concerns this invocation alone."""
        with same_in_all_versions():
            config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        return {key: value for key, value in config.items() if key not in _INVOCATION}


@contextmanager
def same_in_all_versions() -> Iterator[None]:
    """Newer versions of jsonargparse have other names for what older ones only know by these."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*(instantiate_classes|skip_none|JSONARGPARSE_DEPRECATION)")
        yield


def condense(message: str, parser: LightningArgumentParser) -> str:
    """jsonargparse's report in one line, with the nearest right name where one was wrong."""
    noise = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Given value type",
        "Expected a <class 'NoneType'>",
        "Expected a path",
    )
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    kept = [line for line in lines if line and not line.startswith(noise)]
    line = "; ".join(line for line in kept if not line.startswith(("Given value: {", "Given value: Nested")))
    # what a part's own constructor says is enough: behind it comes all that it was given
    line = re.sub(r"(; expected dict)?; Given value: Namespace\(.*", "", line)
    line = re.sub(r"Parser key \"([^\"]+)\":;?", r"\1:", line)
    line = re.sub(r"Problem with given class_path '([^']+)':;?", r"\1:", line)
    line = re.sub(r"Expected a (?:<class '(\w+)'>|typing\.)", r"expected \1", line)
    return line + _suggest(line, parser)


def _suggest(line: str, parser: LightningArgumentParser) -> str:
    match = re.search(r"[Oo]ption '([^']+)'|unrecognized arguments: --([\w.]+)", line)
    if match is None:
        return ""
    wrong = match[1] or match[2]
    owner = re.search(r"([\w.]+): [Oo]ption", line)
    group = re.search(r"Group '([^']+)'", line)
    if owner:
        module, _, name = owner[1].rpartition(".")
        known = list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
    else:
        every = list(parser.get_defaults().keys(branches=True))
        prefix = f"{group[1]}." if group else ""
        known = [key.removeprefix(prefix) for key in every if key.startswith(prefix)]
    close = difflib.get_close_matches(wrong, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]!r}?" if close else "; see gnomon fit --help"
