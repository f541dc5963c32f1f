"""SparseVLM: raters, the released settings' counts, clusters, and the correction for distance."""

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.sparsevlm import SparseVLM, density_peaks


def context(
    count: int, words: int = 3, *, groups: int = 1, full: int | None = None, step: int = 0, **given
) -> ReduceContext:
    """Visual tokens first, then text."""
    draw = torch.Generator().manual_seed(0)
    cell = torch.zeros(groups, count, 2, dtype=torch.long)
    rows = torch.rand(groups, words, count, generator=draw)
    at = torch.arange(count + words).expand(groups, -1)
    values = {"feats": torch.randn(groups, count, 6, generator=draw), "rows": rows, **given}
    return ReduceContext(
        names=["a"] * groups, cell=cell, image=cell[..., 0], full=full or count, step=step,
        visual=at[:, :count], text_at=at[:, count:], **values,
    )  # fmt: skip


def test_raters_are_the_words_that_the_image_concerns():
    visual, words = torch.eye(2)[None], torch.tensor([[[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]]])
    # softmax over the words of (2, 0, 0) and (0, 0, 2), averaged: .447, .107, .447; above .333: the outer two
    ctx = context(2, first=visual, text=words)
    assert SparseVLM(0.5).queries(ctx).tolist() == [[2, 4]]
    # words before the image do not count
    ctx.text_at = torch.tensor([[-1, 0, 3]])
    ctx.visual = torch.tensor([[1, 2]])
    assert SparseVLM(0.5).queries(ctx).tolist() == [[]]


@pytest.mark.parametrize(
    ("version", "target", "counts"),
    [
        ("v1", 192, [309, 204, 113]),
        ("v1", 128, [312, 117, 39]),
        ("v1", 64, [82, 32, 18]),
        ("v2", 192, [300, 200, 118]),
        ("v2", 64, [66, 34, 20]),
    ],
)
@pytest.mark.parametrize("scale", [1, 2])
def test_the_released_settings(version, target, counts, scale):
    reducer, length = SparseVLM(target=target, version=version), 576 * scale
    found = []
    for step in range(3):
        ctx = context(length, full=576 * scale, step=step)
        ctx.head_rows, ctx.asking = ctx.rows[:, None], ctx.text_at
        ctx.rotary = torch.ones(1, length + 3, 4)
        length = reducer.plan(ctx).length
        found.append(length)
    if scale == 1:
        assert found == counts
    assert all(abs(n - scale * expected) <= scale for n, expected in zip(found, counts))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_ratio_counts_merged_tokens_too(version):
    reducer, length = SparseVLM(0.2, version=version), 100
    for step, expected in enumerate([59, 35, 20]):
        ctx = context(length, full=100, step=step)
        ctx.head_rows, ctx.asking, ctx.rotary = ctx.rows[:, None], ctx.text_at, torch.ones(1, length + 3, 4)
        plan = reducer.plan(ctx)
        length = plan.length
        assert length == expected
        if version == "v1":
            assert plan.weight is not None and torch.allclose(plan.weight.sum(2), torch.ones(1, length))


def test_what_is_merged_comes_behind_what_stays():
    ctx = context(30, feats=torch.randn(1, 30, 6, generator=torch.Generator().manual_seed(3)))
    plan = SparseVLM(0.5, layers=[1]).plan(ctx)
    # 15: 14 stay, and of the other 16 the best five become one
    order = ctx.rows.sum(1)[0].argsort(descending=True).tolist()
    tokens = plan.apply(ctx.feats)[0]
    torch.testing.assert_close(tokens[:14], ctx.feats[0][sorted(order[:14])])
    torch.testing.assert_close(tokens[14], ctx.feats[0][order[14:19]].mean(0))


def test_clusters_of_far_apart_groups():
    draw = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    group = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 1, 2])
    tokens = centres[group] + 0.1 * torch.randn(12, 2, generator=draw)
    member = density_peaks(tokens[None], 3)[0]
    assert all(len(set(member[group == g].tolist())) == 1 for g in range(3)) and len(set(member.tolist())) == 3


def test_the_papers_rule_drops_what_the_rank_leaves_free():
    # two equal rows and one of their own: rank 2 of 20 tokens; and three rows of rank 3
    rows = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(0))
    rows[0, 1] = rows[0, 0]
    plan = SparseVLM(prune=0.5, version="v1", layers=[1]).plan(context(20, groups=2, rows=rows))
    # 9 and 8 go; one cluster comes back
    assert plan.counts.tolist() == [11 + 1, 12 + 1]


def test_attention_is_divided_by_that_of_ones():
    draw = torch.Generator().manual_seed(0)
    length, width = 12, 8
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(4) / 4)
    cos, sin = angle.repeat(1, 2).cos()[None], angle.repeat(1, 2).sin()[None]
    ones = torch.ones(1, 1, length, width)
    queries, keys = apply_rotary_pos_emb(ones, ones, cos, sin)
    alone = (queries @ keys.transpose(2, 3))[0, 0] * width**-0.5
    heads = torch.rand(1, 4, 2, 9, generator=draw)
    ctx = context(
        9, head_rows=heads, asking=torch.tensor([[10, 11]]), rotary=torch.cat([cos, sin], 2), rows=heads.mean(1)
    )
    divided = heads[0] / alone[10:12, :9]
    best = divided.sum((1, 2)).topk(2).indices
    expected = divided[best].mean((0, 1)).topk(3).indices.sort().values.tolist()
    plan = SparseVLM(1 / 3, version="v2", heads=2, layers=[1]).plan(ctx)
    assert plan.index[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 100}, "192, 128, 96 or 64"),
        ({"target": 64, "layers": [2, 3]}, "in 2 stages"),
        ({"version": "v3"}, "v1 or v2"),
        ({"prune": 0}, "prune 0"),
        ({"ratio": 0.5, "target": 64}, "give one"),
        ({"ratio": 0.5, "layers": [0, 3]}, "rise from 1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SparseVLM(**options)


def test_only_a_ratio_of_one_alone_is_idle():
    assert SparseVLM(1.0).idle() and not SparseVLM(target=192).idle() and not SparseVLM(prune=0.5).idle()
