"""InfLLM-v2: the choice of blocks against loops that follow the paper, and its limits."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.sparse.infllm_v2 import Plan, compress, infllm_v2, select

SMALL = {"top": 4, "block": 8, "local": 1, "first": 1, "pool": 4, "stride": 2, "dense_length": 0}
PLAN = Plan(**SMALL)
IMPLS = pytest.mark.parametrize("impl", ["reference", "chunk"])


def qkv(length: int = 61, heads: int = 4, key_heads: int = 2):
    torch.manual_seed(0)
    return [torch.randn(1, length, h, 8, dtype=torch.float64) for h in (heads, key_heads, key_heads)]


def full(q, k, v):
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)


def chosen(q, k, plan=PLAN, past=0):
    """The sets of blocks per key head and query."""
    index, listed = select(q, compress(k, plan), past=past, keys=k.shape[1], scale=0.5, plan=plan)
    return [[set(i[s].tolist()) for i, s in zip(*row)] for row in zip(index[0], listed[0])]


def by_the_paper(q, k, t: int, head: int) -> set[int]:
    """Blocks of query t, with the sizes of SMALL: 4 windows begin in a block and one more reaches into it."""
    windows = [i for i in range((k.shape[1] - 4) // 2 + 1) if 2 * i + 3 <= t]
    total = dict.fromkeys(range(-1, 100), 0.0)
    for h in (2 * head, 2 * head + 1):
        scores = torch.tensor([float(q[0, t, h] @ k[0, 2 * i : 2 * i + 4, head].mean(0)) * 0.5 for i in windows])
        for i, weight in zip(windows, scores.double().softmax(0).tolist()):
            total[i] += weight
    score = {j: max(total[i] for i in range(4 * j - 1, 4 * j + 4)) for j in range(t // 8 + 1)}
    forced = {0, t // 8, max(t // 8 - 1, 0)}
    rest = sorted(set(score) - forced, key=lambda j: -score[j])
    return forced | set(rest[: 4 - len(forced)])


def test_the_choice_is_the_papers():
    q, k, _ = qkv()
    found = chosen(q, k)
    for head in range(2):
        for t in range(61):
            assert found[head][t] == by_the_paper(q, k, t, head), (head, t)


def test_a_window_on_the_edge_raises_both_blocks():
    """Window 4j - 1 begins in block j - 1 and ends in block j; window 4j belongs to block j alone."""
    q, k = torch.zeros(1, 64, 1, 4, dtype=torch.float64), torch.zeros(1, 64, 1, 4, dtype=torch.float64)
    q[..., 0] = 1
    plan = Plan(**{**SMALL, "top": 3, "local": 0})
    # one window of four tokens from 2 * 15 = 30, in blocks 3 and 4
    k[0, 30:34, 0, 0] = 100
    assert chosen(q, k, plan)[0][63] in ({0, 7, 3}, {0, 7, 4})
    index, _ = select(q, compress(k, Plan(**{**SMALL, "top": 4, "local": 0})), past=0, keys=64, scale=1.0,
                      plan=Plan(**{**SMALL, "top": 4, "local": 0}))  # fmt: skip
    assert set(index[0, 0, 63].tolist()) == {0, 7, 3, 4}


def test_heads_of_a_group_choose_together():
    q, k, _ = qkv()
    assert chosen(q[:, :, [1, 0, 3, 2]], k) == chosen(q, k)


@IMPLS
def test_enough_blocks_are_causal_attention(impl):
    q, k, v = qkv()
    o, _ = infllm_v2(q, k, v, mask=CAUSAL, impl=impl, **{**SMALL, "top": 8})
    torch.testing.assert_close(o, full(q, k, v))
    # so is a short sequence, whatever the blocks
    torch.testing.assert_close(
        infllm_v2(q, k, v, mask=CAUSAL, impl=impl, **{**SMALL, "dense_length": 61})[0], full(q, k, v)
    )
    assert not torch.allclose(infllm_v2(q, k, v, mask=CAUSAL, impl=impl, **SMALL)[0], full(q, k, v))


@IMPLS
def test_only_chosen_blocks_are_read(impl):
    q, k, v = qkv()
    mine = chosen(q, k)
    o, _ = infllm_v2(q, k, v, mask=CAUSAL, scale=0.5, impl=impl, **SMALL)
    for t in (0, 5, 30, 60):
        for h in range(4):
            keys = [j for j in range(t + 1) if j // 8 in mine[h // 2][t]]
            weights = (k[0, keys, h // 2] @ q[0, t, h] * 0.5).softmax(0)
            torch.testing.assert_close(o[0, t, h], weights @ v[0, keys, h // 2])


def test_decoding_keeps_the_means():
    q, k, v = qkv()
    whole, final = infllm_v2(q, k, v, mask=CAUSAL, **SMALL)
    o, state = infllm_v2(q[:, :40], k[:, :40], v[:, :40], mask=CAUSAL, **SMALL)
    assert state["means"].shape[1] == (40 - 4) // 2 + 1
    parts = [o]
    for t in range(40, 61):
        o, state = infllm_v2(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], mask=CAUSAL, state=state, **SMALL)
        parts.append(o)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state["means"], final["means"])
    truth = torch.stack([k[:, i : i + 4].mean(1) for i in range(0, 58, 2)], 1)
    torch.testing.assert_close(state["means"], truth)


def test_of_equal_scores_the_first_blocks_are_chosen():
    """Keys that are all alike: every window weighs the same, and blocks of which none is forced tie."""
    q, k = torch.ones(1, 61, 2, 8, dtype=torch.float64), torch.ones(1, 61, 2, 8, dtype=torch.float64)
    index, listed = select(q, compress(k, PLAN), past=0, keys=61, scale=0.5, plan=PLAN)
    assert bool(listed[0, 0, 60].all()) and index[0, 0, 60].tolist() == [0, 1, 6, 7]
    # ascending, and what does not exist yet is not counted
    assert index[0, 0, 9][listed[0, 0, 9]].tolist() == [0, 1]


def test_the_defaults_are_the_released_ones():
    """More than 8192 keys: 64 blocks of 64, of which 33 are local and one the first."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 2, 8), torch.randn(1, 8200, 1, 8), torch.randn(1, 8200, 1, 8)
    o, state = infllm_v2(q, k, v, mask=CAUSAL)
    assert state["means"].shape[1] == (8200 - 32) // 16 + 1
    plan = Plan(top=64, block=64, local=32, first=1, pool=32, stride=16, dense_length=8192)
    index, listed = select(q, state["means"], past=8199, keys=8200, scale=8**-0.5, plan=plan)
    assert bool(listed.all()) and set(range(128 - 32, 129)) | {0} <= set(index.flatten().tolist())
    keys = (index[0, 0, 0][:, None] * 64 + torch.arange(64)).flatten()
    keys = keys[keys < 8200]
    truth = scaled_dot_product_attention(q[0].transpose(0, 1), *(x[0, keys, 0].expand(2, -1, -1) for x in (k, v)))
    torch.testing.assert_close(o[0, 0], truth[:, 0])


def test_strip_after_strip():
    """More tokens than the CPU takes at once, also behind cached ones: values and gradients of the specification."""
    found = {}
    for impl in ("reference", "chunk"):
        q, k, v = (x.requires_grad_() for x in qkv(300))
        first, state = infllm_v2(q[:, :37], k[:, :37], v[:, :37], mask=CAUSAL, impl=impl, **SMALL)
        rest, _ = infllm_v2(q[:, 37:], k[:, 37:], v[:, 37:], mask=CAUSAL, state=state, impl=impl, **SMALL)
        o = torch.cat([first, rest], 1)
        found[impl] = (o, *torch.autograd.grad(o.sin().sum(), (q, k, v)))
    for ours, truth in zip(found["chunk"], found["reference"]):
        torch.testing.assert_close(ours, truth)


def test_refusals():
    q, k, v = qkv(20)
    for how, told in (
        ({"top": 2}, "top 2 is less than the forced blocks; use 3 or more"),
        ({"stride": 3}, "let stride divide block and pool"),
        ({"mask": CAUSAL & ~CAUSAL}, "a mask of And instead of CAUSAL"),
        ({"mask": None}, "noncausal self attention is not defined for it"),
        ({"state": {"k": k}}, "state holds"),
    ):
        with pytest.raises(ValueError, match=rf"^infllm_v2: .*{told}"):
            infllm_v2(q, k, v, **{"mask": CAUSAL, **SMALL, **how})
    with pytest.raises(ValueError, match=r"^infllm_v2: 4, 2 and 1 heads"):
        infllm_v2(q, k, v[:, :, :1], mask=CAUSAL)


def test_what_backward_keeps_grows_with_the_tokens_and_not_with_their_square():
    def kept(length: int) -> int:
        q, k, v = (torch.randn(1, length, 2, 8, requires_grad=True) for _ in range(3))
        held: dict[int, int] = {}

        def hold(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
            # every token sees every block before it
            o, _ = infllm_v2(q, k, v, mask=CAUSAL, top=64, block=32, dense_length=0, impl="chunk")
        o.sum().backward()
        return sum(held.values())

    assert kept(2048) < 3 * kept(1024)
