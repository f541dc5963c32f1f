"""Plans against loops over their entries."""

import pytest
import torch

from gnomon.vlm.plan import ReductionPlan


def random_plan(length: int, out: int, sources: int, *, extra: int = 0, counts=None, seed: int = 0) -> ReductionPlan:
    draw = torch.Generator().manual_seed(seed)
    return ReductionPlan(
        torch.randint(0, length + extra, (2, out, sources), generator=draw),
        torch.rand(2, out, sources, generator=draw),
        torch.randn(2, extra, 3, generator=draw) if extra else None,
        None if counts is None else torch.tensor(counts),
    )


def by_loops(plan: ReductionPlan, tokens: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(tokens), plan.length, tokens.shape[2])
    for g in range(len(tokens)):
        every = list(tokens[g]) + ([] if plan.extra is None else list(plan.extra[g]))
        for t in range(int(plan.counts[g])):
            for s, index in enumerate(plan.index[g, t].tolist()):
                out[g, t] += every[index] * (1.0 if plan.weight is None else plan.weight[g, t, s])
    return out


PLANS = {
    "keep": ReductionPlan.keep(torch.tensor([[0, 3, 4], [1, 2, 5]])),
    "ragged": ReductionPlan.keep(torch.tensor([[0, 3, 4], [1, 2, 5]]), torch.tensor([1, 3])),
    "merge": random_plan(6, 3, 4),
    "extra": random_plan(6, 3, 2, extra=2, counts=[3, 2]),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_apply(plan):
    tokens = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plan.apply(tokens), by_loops(plan, tokens))


@pytest.mark.parametrize("second", [random_plan(3, 2, 2, seed=5), random_plan(3, 2, 2, extra=1, counts=[2, 1], seed=6)])
@pytest.mark.parametrize("first", PLANS.values(), ids=PLANS)
def test_two_plans_are_one(first, second):
    tokens = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))
    # a plan may not build on another's padding, which is no token
    if first.count is not None:
        second = ReductionPlan(second.index.clamp(max=0), second.weight, None, second.count)
    expected = by_loops(second, by_loops(first, tokens))
    torch.testing.assert_close(first.then(second, 6).apply(tokens), expected)


def test_survivors_are_the_strongest_sources():
    plan = ReductionPlan(torch.tensor([[[0, 2], [3, 1], [4, 0]]]), torch.tensor([[[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]]))
    # token 4 of 4 is an extra one; of equal weights the first counts
    assert plan.anchor.tolist() == [[2, 3, 4]]
    assert plan.survivors(4).tolist() == [[False, False, True, True]]


def test_keep_where_keeps_order_and_counts():
    plan = ReductionPlan.keep_where(torch.tensor([[True, False, True, True], [False, False, True, False]]))
    assert plan.counts.tolist() == [3, 1] and plan.real.sum(1).tolist() == [3, 1]
    assert plan.index[0, :, 0].tolist() == [0, 2, 3] and int(plan.index[1, 0, 0]) == 2


def test_average_of_what_tokens_carry():
    plan = ReductionPlan(
        torch.tensor([[[0, 1], [2, 2], [3, 3]]]), torch.tensor([[[3.0, -1.0], [1.0, 0.0], [1.0, 1.0]]])
    )
    carried = torch.tensor([[[0.0], [4.0], [8.0]]])
    # weights count by size; what is made of extra tokens alone stands in the middle
    assert plan.average(carried)[0, :, 0].tolist() == [1.0, 8.0, 4.0]


def test_identity_changes_nothing():
    tokens = torch.randn(2, 5, 3)
    assert torch.equal(ReductionPlan.identity(2, 5).apply(tokens), tokens)


def test_merging_is_the_mean_by_mass():
    owner, mass = torch.tensor([[1, 0, 1, -1, 1], [0, 0, 0, 0, 1]]), torch.tensor([[1.0, 2, 3, 9, 0], [1, 1, 1, 1, 5]])
    tokens = torch.tensor([[1.0, 2, 3, 4, 5], [1, 2, 3, 4, 5]])[..., None]
    plan = ReductionPlan.merge(owner, 2, mass)
    assert plan.apply(tokens)[..., 0].tolist() == [[2, 2.5], [2.5, 5]] and plan.size.tolist() == [[2, 4], [4, 5]]
    plan = ReductionPlan.merge(owner, 2)
    assert plan.apply(tokens)[..., 0].tolist() == [[2, 3], [2.5, 5]]
    assert torch.equal(plan.owner(5), owner) and plan.anchor.tolist() == [[1, 0], [0, 4]]


def test_many_sources_and_few_are_the_same():
    few = random_plan(40, 3, 16)
    many = ReductionPlan(torch.nn.functional.pad(few.index, (0, 4)), torch.nn.functional.pad(few.weight, (0, 4)))
    tokens = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(few.apply(tokens), many.apply(tokens))
    torch.testing.assert_close(few.apply(tokens), by_loops(few, tokens))
