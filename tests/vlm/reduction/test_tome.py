"""ToMe: pairs worked out by hand, the schedule, size-weighted means, and where it acts."""

import pytest
import torch

from gnomon.vlm.blocks import reduced
from gnomon.vlm.connectors.mlp import MLP
from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import ReduceContext
from gnomon.vlm.reduction.tome import ToMe, match

NETWORKS = {
    "vit": lambda: Timm(
        "vit_tiny_patch16_224", args={"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}
    ),
    "convolutions": lambda: Timm("resnet18", layer=3),
}


def image(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def directions(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees) * torch.pi / 180
    return torch.stack([angle.cos(), angle.sin()], 1)[None]


def test_the_best_pairs_across_the_two_sets_merge():
    # with a class token before them, tokens 1, 3 and 5 are A and 0, 2 and 4 are B; 1 and 3 are equal but both in A
    keys = directions(0, 50, 58, 50, 170, 175)
    # best partners: 1 -> 2 (8 degrees), 3 -> 2 (8 degrees), 5 -> 4 (5 degrees)
    assert match(keys, 1, prefix=1).tolist() == [[2, 0, 3, 1, 4, 4]]
    assert match(keys, 3, prefix=1).tolist() == [[0, 1, 1, 1, 2, 2]]
    # without one, 0, 2 and 4 are A and 1, 3 and 5 are B; what stays of A comes by falling similarity: 2, then 0
    assert match(keys, 1, prefix=0).tolist() == [[1, 2, 0, 3, 4, 4]]


def test_means_are_weighted_by_size():
    keys, feats = directions(0, 90, 90, 20), torch.tensor([[0.0], [10.0], [40.0], [7.0]])[None]
    cell = torch.zeros(1, 4, 2, dtype=torch.long)
    size = torch.tensor([[1.0, 1.0, 2.0, 1.0]])
    ctx = ReduceContext(feats, ["a"], cell, cell[..., 0], keys=keys, layer=0, steps=1, full=5, size=size, prefix=1)
    plan = ToMe(0.6).plan(ctx)
    # A is tokens 1 and 3; the best pair is 1 and 2, which stands for two cells; then comes what is left of A, then B
    assert plan.apply(feats)[0, :, 0].tolist() == pytest.approx([7, 0, (10 + 2 * 40) / 3])
    assert plan.size.tolist() == [[1, 1, 3]]


@pytest.mark.parametrize(
    "inflect, expected", [(0.0, [90, 80, 70, 60]), (-1.0, [83, 70, 63, 60]), (1.0, [98, 90, 78, 60])]
)
def test_the_schedule(inflect: float, expected: list[int]):
    reducer = ToMe(0.6, inflect=inflect)
    assert [reducer.left(100, step, 4) for step in range(4)] == expected


@pytest.mark.parametrize("ratio", [0.03, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("merge", [1, 2])
@torch.no_grad()
def test_the_kept_share_is_met_everywhere(tiny, network: str, merge: int, ratio: float):
    size = (32, 32) if network == "vit" else (64, 64)
    model = tiny(encoder=NETWORKS[network](), connector=MLP() if merge == 1 else PixelShuffle(merge), image_size=size)
    reducer = ToMe(ratio)
    model.reducers = [reducer]
    assert model.in_encoder(reducer) == (network == "vit" and merge == 1)
    seen = model.see([torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)])[0]
    found = model.connect(seen, ["a", "b"], torch.zeros(2, dtype=torch.long))
    h, w = model.image.grid(*size)
    assert found.counts == [reducer.budget(h * w)] * 2
    # every cell is in one token, and tokens come in the order of their first cells
    assert bool((found.plan.owner(h * w) >= 0).all())
    first = found.plan.anchor
    assert bool((first[:, 1:] > first[:, :-1]).all())


def test_equal_neighbours_merge_to_themselves():
    """Behind the encoder, in raster order, neighbours are always in different sets."""
    feats = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 1)
    cell = torch.zeros(1, 16, 2, dtype=torch.long)
    plan = ToMe(0.5).plan(ReduceContext(feats, ["a"], cell, cell[..., 0]))
    torch.testing.assert_close(plan.apply(feats), feats[:, ::2])
    assert plan.anchor.tolist() == [list(range(0, 16, 2))]


class Watched(ToMe):
    """Remembers its plans."""

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        self.plans = [*getattr(self, "plans", []), super().plan(ctx)]
        return self.plans[-1]


@pytest.mark.parametrize("ratio", [0.3, 0.6])
@torch.no_grad()
def test_merged_tokens_act_like_as_many_copies_in_timms_own_blocks(ratio: float):
    """Nothing leaves: after each attention, all cells that merged so far get their plain mean."""
    torch.manual_seed(0)
    encoder = NETWORKS["vit"]().eval()
    model, pixels, reducer = encoder.model, torch.randn(1, 3, 32, 32), Watched(ratio)
    found = reduced(encoder, pixels, pixels, [reducer])
    x = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
    owner = torch.arange(16)
    for block, plan in zip(model.blocks, reducer.plans):
        x = x + block.attn(block.norm1(x))
        owner = plan.owner(int(owner.max()) + 1)[0][owner]
        for token in owner.unique():
            mine = 1 + (owner == token).nonzero()[:, 0]
            x[:, mine] = x[:, mine].mean(1, keepdim=True)
        x = x + block.mlp(block.norm2(x))
    expected = model.norm(x)[:, 1:][:, found.plan.anchor[0]]
    torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=1e-4)
    for token, sources in enumerate(found.plan.index[0][:, :1]):
        cells = (owner == owner[sources]).nonzero()[:, 0].tolist()
        assert sorted(set(found.plan.index[0, token][found.plan.weight[0, token] > 0].tolist())) == cells


@torch.no_grad()
def test_merging_in_the_encoder_is_not_merging_behind_it(tiny):
    model = tiny()
    results = []
    for inside in (None, True, False):
        model.reducers = [ToMe(0.5, inside=inside)]
        seen = model.see([image()])[0]
        results.append(model.connect(seen, ["a"], torch.zeros(1, dtype=torch.long)).tokens)
    assert torch.equal(results[0], results[1]) and not torch.allclose(results[0], results[2], atol=1e-4)


def test_what_cannot_be_is_refused_before_any_work(tiny):
    with pytest.raises(ValueError, match="ToMe with inside: true"):
        tiny(encoder=NETWORKS["convolutions"](), image_size=(64, 64), reducers=[ToMe(0.5, inside=True)])
    with pytest.raises(ValueError, match="inflect 2"):
        ToMe(0.5, inflect=2)
    with pytest.raises(ValueError, match="0 rounds"):
        ToMe(0.5, rounds=0)


def test_a_gradient_flows_through_merges():
    encoder = NETWORKS["vit"]()
    pixels = torch.randn(2, 3, 32, 32)
    reduced(encoder, pixels, pixels, [ToMe(0.4)]).tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
