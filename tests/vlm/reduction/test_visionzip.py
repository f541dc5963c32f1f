"""VisionZip: the sheet's split, a merge worked out by hand, and what stands in for a class token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.fastervlm import FasterVLM
from gnomon.vlm.reduction.visionzip import VisionZip


def context(saliency: Tensor, keys: Tensor, feats: Tensor, cls: Tensor | None = None) -> ReduceContext:
    cell = torch.zeros(*saliency.shape, 2, dtype=torch.long)
    return ReduceContext(feats, ["a"] * len(saliency), cell, cell[..., 0], saliency=saliency, keys=keys, cls=cls)


def drawn(length: int = 576, cls: bool = True) -> ReduceContext:
    torch.manual_seed(length)
    return context(
        torch.rand(2, length),
        torch.randn(2, length, 4),
        torch.randn(2, length, 6),
        torch.randn(2, 6) if cls else None,
    )


@pytest.mark.parametrize("total, contextual, step", [(64, 10, 52), (128, 20, 23), (192, 30, 13)])
def test_the_papers_splits(total: int, contextual: int, step: int):
    ctx = drawn()
    anchor = VisionZip(total / 576).plan(ctx).anchor
    assert anchor.shape == (2, total) and anchor[:, 0].tolist() == [576, 576]
    dominant = ctx.saliency[1].topk(total - contextual - 1).indices
    assert anchor[1, 1 : total - contextual].tolist() == dominant.sort().values.tolist()
    rest = sorted(set(range(576)) - set(dominant.tolist()))
    assert anchor[1, total - contextual :].tolist() == rest[::step][:contextual]


def hand_made(cls: bool = True) -> ReduceContext:
    """Eight tokens with features 1, 10, 100 ...; token 2 and, without a class token, token 5 are dominant."""
    saliency = torch.tensor([[0.0, 0, 0.9, 0, 0, 0.5 if not cls else 0, 0, 0]])
    angle = torch.tensor([0.0, 10, 45, 80, 90, 45, 85, 7]).deg2rad()
    # lengths of keys do not matter
    keys = torch.stack([angle.cos(), angle.sin()], 1) * torch.arange(1.0, 9)[:, None]
    feats = 10.0 ** torch.arange(8)[None, :, None].double()
    return context(saliency, keys[None], feats, torch.full((1, 1), -1.0).double() if cls else None)


def test_a_merge_by_hand():
    # T = 4: class token, token 2, and of 0 1 3 4 5 6 7 the targets 0 and 4 (step 3); the others go by angle:
    # 1 (10 deg), 7 (7 deg) to 0 (0 deg); 3, 6 to 4 (90 deg); 5 (45 deg) ties and goes to the first
    plan = VisionZip(0.5, contextual=0.5).plan(hand_made())
    tokens = plan.apply(hand_made().feats)[0, :, 0].tolist()
    first = 1 + (1e1 + 1e5 + 1e7) / 3
    assert plan.anchor[0].tolist() == [8, 2, 0, 4]
    assert tokens == pytest.approx([-1, 1e2, first, 1e4 + (1e3 + 1e6) / 2], rel=1e-6)


def test_average_divides_by_all_that_it_stands_for():
    tokens = VisionZip(0.5, contextual=0.5, average=True).plan(hand_made()).apply(hand_made().feats)[0, :, 0]
    expected = [-1, 1e2, (1 + 1e1 + 1e5 + 1e7) / 4, (1e4 + 1e3 + 1e6) / 3]
    assert tokens.tolist() == pytest.approx(expected, rel=1e-6)


def test_without_a_class_token_a_patch_has_its_place():
    plan = VisionZip(0.5, contextual=0.5).plan(hand_made(cls=False))
    assert plan.extra is None and plan.anchor[0].tolist() == [2, 5, 0, 4]


def test_a_target_that_gets_nothing_stays_as_it_is():
    ctx = drawn(40)
    ctx.keys = torch.ones_like(ctx.keys)
    plan = VisionZip(0.5, contextual=0.5).plan(ctx)
    tokens, targets = plan.apply(ctx.feats)[0, 10:], plan.anchor[0, 10:]
    # all keys are equal, so everything goes to the first target
    torch.testing.assert_close(tokens[1:], ctx.feats[0, targets[1:]])
    assert not torch.allclose(tokens[0], ctx.feats[0, targets[0]])


def test_no_contextual_tokens_is_fastervlm_and_the_class_token():
    ctx = drawn(40)
    plan = VisionZip(0.5, contextual=0).plan(ctx)
    kept = plan.apply(ctx.feats)
    faster = FasterVLM(19 / 40).plan(ctx).apply(ctx.feats)
    assert torch.equal(kept, torch.cat([ctx.cls[:, None], faster], 1))


def test_a_single_token_is_a_patch():
    ctx = drawn(40)
    assert VisionZip(1 / 40).plan(ctx).anchor.tolist() == ctx.saliency.argmax(1, keepdim=True).tolist()


def test_shares_outside_zero_to_one_are_refused():
    with pytest.raises(ValueError, match=r"contextual 1 is not in \[0, 1\)"):
        VisionZip(0.5, contextual=1)
