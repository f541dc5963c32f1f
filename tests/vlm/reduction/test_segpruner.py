"""SeGPruner: points on a line, meaning alone, saliency alone, rigid motion and scale, and no points at all."""

import pytest
import torch
from torch import Tensor

from gnomon.vlm.reduction.base import ReduceContext, top
from gnomon.vlm.reduction.segpruner import SeGPruner


def context(xyz: Tensor, feats: Tensor | None = None, saliency: Tensor | None = None) -> ReduceContext:
    count = xyz.shape[1]
    feats = torch.ones(1, count, 2) if feats is None else feats
    # the first token is the most salient
    saliency = torch.arange(count, 0, -1.0)[None] if saliency is None else saliency
    cell = torch.zeros(len(xyz), count, 2, dtype=torch.long)
    return ReduceContext(feats, ["a"] * len(xyz), cell, cell[..., 0], saliency=saliency, xyz=xyz)


def random(count: int = 50) -> ReduceContext:
    draw = torch.Generator().manual_seed(0)
    xyz, feats = torch.randn(2, count, 3, generator=draw), torch.randn(2, count, 6, generator=draw)
    return context(xyz, feats, torch.rand(2, count, generator=draw))


def kept(ctx: ReduceContext, ratio: float, **options: float) -> list[list[int]]:
    return SeGPruner(ratio, **options).plan(ctx).index[..., 0].tolist()


def test_points_on_a_line():
    xyz = torch.zeros(1, 4, 3)
    xyz[0, :, 0] = torch.tensor([0.0, 1.0, 2.0, 10.0])
    # from the seed at 0 the order is 10, 2, 1
    found = [kept(context(xyz), ratio, share=0.0, lam=1.0)[0] for ratio in (0.25, 0.5, 0.75, 1.0)]
    assert found == [[0], [0, 3], [0, 2, 3], [0, 1, 2, 3]]


def test_without_space_it_is_meaning_alone():
    ctx = random()
    other = context(torch.randn(2, 50, 3), ctx.feats, ctx.saliency)
    assert kept(ctx, 0.4, share=0.0, lam=0.0) == kept(other, 0.4, share=0.0, lam=0.0)
    for group, picks, saliency in zip(ctx.feats, kept(ctx, 0.2, share=0.0, lam=0.0), ctx.saliency):
        distance = 1 - torch.nn.functional.cosine_similarity(group[:, None], group[None], dim=2)
        expected = [int(saliency.argmax())]
        while len(expected) < 10:
            rest = [i for i in range(50) if i not in expected]
            expected.append(max(rest, key=lambda i: min(float(distance[i, j]) for j in expected)))
        assert picks == sorted(expected)


def test_saliency_alone():
    ctx = random()
    assert kept(ctx, 0.3, share=1.0) == top(ctx.saliency, 15).tolist()


def test_the_most_salient_are_always_in():
    ctx = random()
    for picks, salient in zip(kept(ctx, 0.4, share=0.35), ctx.saliency.topk(7).indices.tolist()):
        assert set(salient) <= set(picks) and len(picks) == 20


def test_where_the_world_stands_and_its_unit_do_not_matter():
    ctx = random()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))
    for moved in (ctx.xyz + 7, ctx.xyz @ turn, ctx.xyz * 1000):
        assert kept(context(moved, ctx.feats, ctx.saliency), 0.4) == kept(ctx, 0.4)


def test_a_token_without_a_point_is_judged_by_meaning():
    xyz = torch.zeros(1, 4, 3)
    xyz[0, :, 0] = torch.tensor([0.0, float("nan"), 1.0, float("inf")])
    assert kept(context(xyz), 0.5, share=0.0, lam=1.0) == [[0, 2]]


def test_no_points_is_one_clear_line(tiny):
    model = tiny()
    model.reducers = [SeGPruner(0.5)]
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="SeGPruner needs xyz, which the model or the data does not give"):
        model.connect(model.see([image])[0], ["a"], torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("options", [{"share": 1.5}, {"lam": -0.1}])
def test_options_out_of_range(options: dict[str, float]):
    with pytest.raises(ValueError, match=r"is not in \[0, 1\]"):
        SeGPruner(0.5, **options)
