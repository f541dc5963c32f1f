"""DART: pivots and what resembles them least, worked out by hand and by a loop over sets."""

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.dart import DART


def context(keys, states, visual: slice, text_at) -> ReduceContext:
    place = torch.arange(visual.start, visual.stop)[None]
    cell = torch.zeros(1, place.shape[1], 2, dtype=torch.long)
    return ReduceContext(
        torch.zeros(1, place.shape[1], 1), ["a"], cell, cell[..., 0],
        visual=place, text_at=torch.tensor([text_at]), lm_keys=keys[None], normed=states[None],
    )  # fmt: skip


def test_by_hand():
    # one text token, four visual ones at 0, 90, 180 and 45 degrees, one text token at 90 degrees
    states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    keys = torch.tensor([[9.0, 9.0], [3.0, -3.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, -8.0]])
    ctx = context(keys, states, slice(1, 5), [0, 5])
    # pivots: visual token 0 and, stronger, the text behind the image, which takes the lowest cosine to 90 degrees: that
    # of 180 is 0 (token 0 is taken), of 90 is 1, of 45 is 0.7. Then token 0 would take the one at 90 degrees
    assert DART(0.5, pivots=(1, 1)).plan(ctx).index[0, :, 0].tolist() == [0, 2]
    assert DART(0.75, pivots=(1, 1)).plan(ctx).index[0, :, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("behind", [0, 2, 9])
def test_against_sets(behind, ratio):
    draw = torch.Generator().manual_seed(behind)
    length = 3 + 40 + behind
    keys, states = torch.randn(length, 8, generator=draw), torch.randn(length, 6, generator=draw)
    text = [0, 1, 2, *range(43, length)]
    found = DART(ratio).plan(context(keys, states, slice(3, 43), text)).index[0, :, 0].tolist()
    norm, total = keys.abs().sum(1), round(40 * ratio)
    visual = (3 + norm[3:43].argsort(descending=True)[:4]).tolist()
    pivots = visual + (43 + norm[43:].argsort(descending=True)[:4]).tolist()
    taken = set(visual[:total])
    spare, shares = total - len(taken), []
    for i in range(len(pivots)):
        shares.append(spare // len(pivots) + (i < spare % len(pivots)))
    for pivot, share in zip(sorted(pivots, key=lambda i: -norm[i]), shares):
        open_ = [i for i in range(3, 43) if i not in taken]
        like = [float(F.cosine_similarity(states[i], states[pivot], dim=0)) for i in open_]
        taken |= {i for _, i in sorted(zip(like, open_))[:share]}
    assert found == sorted(i - 3 for i in taken)
    assert len(found) == total


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="layer 0"):
        DART(0.5, layer=0)
    with pytest.raises(ValueError, match="pivots"):
        DART(0.5, pivots=(4, 0))
