"""The parts of a stage on their own: the feed, what is compiled and sharded, what starting up imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml
from torch import nn

from gnomon.data.module import DataModule
from gnomon.data.processor import Processor
from gnomon.data.sources.jsonl import LlavaJson
from gnomon.train.feed import Feed
from gnomon.train.module import blocks
from gnomon.vlm.save import from_config


@pytest.fixture
def vlm(demo):
    return from_config(yaml.safe_load((demo / "config.yaml").read_text())["model"])


@pytest.fixture
def feed(demo, vlm):
    data = DataModule(LlavaJson(demo / "rows.jsonl", demo), batch_size=2)
    data.attach(Processor(vlm.tokenizer, vlm.template, vlm.image), accumulate=2)
    return Feed(data)


def test_feed_goes_on_where_its_state_was_taken(feed):
    batches = iter(feed)
    ids = [next(batches).samples for _ in range(6)]
    feed.load_state_dict({"step": 1})
    again = iter(feed)
    assert [next(again).samples for _ in range(4)] == ids[2:]
    assert feed.state_dict() == {"step": 3}


def test_feed_changes_its_source_between_two_steps(feed, demo, rows):
    batches = iter(feed)
    first = [next(batches) for _ in range(2)]
    feed.use(LlavaJson(rows(demo, "text.jsonl", [False] * 60), demo))
    after = [next(batches) for _ in range(2)]
    assert any(batch.pixels for batch in first) and not any(batch.pixels for batch in after)


def test_feed_normalises_over_the_step(feed):
    batches = iter(feed)
    window = [next(batches) for _ in range(2)]
    assert window[0].targets == window[1].targets == sum(batch.supervised for batch in window) / 2


def test_blocks_are_those_of_encoder_and_language_model(vlm):
    assert blocks(vlm) == [*vlm.encoder.model.blocks, *vlm.lm.layers]


def test_compiled_blocks_train_the_same(fit, metric, monkeypatch, tmp_path):
    # traced as always, but run without the C++ compiler's minute
    compile_, compiled = nn.Module.compile, []
    monkeypatch.setattr(nn.Module, "compile", lambda self: (compiled.append(self), compile_(self, backend="eager")))
    options = ("--trainer.max_steps", "2", "--model.lm.init_args.config.attention_dropout", "0.0")
    fit(tmp_path / "eager", *options)
    assert not compiled
    fit(tmp_path / "compiled", *options, "--compile", "true")
    assert len(compiled) == 4
    assert metric(tmp_path / "compiled") == pytest.approx(metric(tmp_path / "eager"), abs=1e-5)


def test_help_imports_no_engine_and_no_model_zoo():
    heavy = ("deepspeed", "timm", "wandb", "tensorboard")
    code = "import sys, json\nfrom gnomon.train.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--recipe" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []
