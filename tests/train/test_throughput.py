"""The count against torch's own counter, and against the rule for what is frozen."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from gnomon.data.collate import collate
from gnomon.data.processor import Processor
from gnomon.data.sample import IMAGE_MARK, Sample, Turn
from gnomon.train.throughput import Flops
from gnomon.vlm.freeze import freeze
from gnomon.vlm.mixers.gla import GLA
from gnomon.vlm.save import from_config


@pytest.fixture
def vlm(demo):
    config = yaml.safe_load((demo / "config.yaml").read_text())["model"]
    # eager attention is two batched products, which the counter sees on every device
    config["lm"]["init_args"]["attention"] = "eager"
    return from_config(config).train()


@pytest.fixture
def batch(vlm):
    """Two rows of one length: nothing is padded."""
    processor = Processor(vlm.tokenizer, vlm.template, vlm.image)
    image = torch.randint(0, 255, (32, 32, 3), dtype=torch.uint8).numpy()
    turns = (Turn("user", f"{IMAGE_MARK} which circle?"), Turn("assistant", "the line A B and the point C 7 4"))
    samples = [Sample(str(i), turns, (image,)) for i in range(2)]
    return collate([processor.example(sample, train=True) for sample in samples], pad_id=0)


def measured(vlm, batch, *, backward: bool) -> float:
    with FlopCounterMode(display=False) as counter:
        loss, _ = vlm.loss(batch)
        if backward:
            loss.backward()
    return counter.get_total_flops()


def dense(parts, batch) -> tuple[float, float]:
    """Causal attention counts a triangle, eager attention computes the square."""
    length = batch.ids.shape[1]
    square = 2 * length / (length + 1)
    forward = sum(cost.forward * (square if name == "attention" else 1) for name, cost in parts.items())
    total = sum(cost.total * (square if name == "attention" else 1) for name, cost in parts.items())
    return forward, total


@pytest.mark.parametrize("train", [["*"], ["connector.*"], ["connector.*", "lm.*"]])
def test_within_two_percent_of_the_counter(vlm, batch, train):
    freeze(vlm, train)
    forward, total = dense(Flops(vlm).parts(batch), batch)
    assert measured(vlm, batch, backward=False) == pytest.approx(forward, rel=0.02)
    assert measured(vlm, batch, backward=True) == pytest.approx(total, rel=0.02)


def test_frozen_with_nothing_trained_upstream_counts_once(vlm):
    freeze(vlm, ["lm.*"])
    cost = Flops(vlm).image(32, 32)
    assert cost.total == cost.forward > 0


def test_packed_documents_see_only_themselves(vlm, batch):
    flops = Flops(vlm)
    alone = flops.parts(batch)["attention"].forward
    batch.layout.document = torch.zeros_like(batch.ids)
    assert flops.parts(batch)["attention"].forward == alone
    half = batch.ids.shape[1] // 2
    batch.layout.document[:, half:] = 1
    batch.layout.position = torch.cat([torch.arange(half), torch.arange(batch.ids.shape[1] - half)]).expand(2, -1)
    assert flops.parts(batch)["attention"].forward < 0.6 * alone


def test_attention_is_that_of_layers_that_have_it(vlm, batch):
    plain = Flops(vlm).parts(batch)["attention"]
    vlm.mix([GLA([0], rank=4)])
    layers = len(vlm.lm.layers)
    assert Flops(vlm).parts(batch)["attention"].total == pytest.approx(plain.total * (layers - 1) / layers)
