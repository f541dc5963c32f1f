"""SLA: exact softmax over the few critical blocks of keys, linear attention over the marginal ones.

Paper:   SLA: Beyond Sparsity in Diffusion Transformers via Fine-Tunable Sparse-Linear Attention. arXiv:2509.24006
Rule:    blocks of queries and keys are averaged; of each row of softmax(q k) the top share is critical, the bottom
         share negligible, the others marginal;  o = softmax over critical + W (f(q) S) / (f(q) z) + b,  S = sum
         f(k)^T v and z = sum f(k) over marginal
Where:   vision and multi-view encoders, video generators; after a short fine-tuning in which W starts at zero
Differs: the marginal sums are formed from the map directly and not as totals minus the others, which would cancel; at
         least one block is critical
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import elu, pad, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State, triton
from gnomon.kernels.sparse.base import twin_refuses
from gnomon.kernels.typed import typed

FEATURES = {
    "softmax": lambda x: x.softmax(-1),
    "elu": lambda x: elu(x) + 1,
    "relu": torch.relu,
}


@dataclass(frozen=True)
class Plan:
    """How the blocks are made and shared out.

    critical, negligible  shares of the blocks of keys
    """

    block_q: int
    block_k: int
    critical: float
    negligible: float


@typed
def sla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    critical: float = 0.05,
    negligible: float = 0.1,
    block_q: int = 64,
    block_k: int = 64,
    feature: str = "softmax",
    mask: Mask = None,
    scale: float | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V) -> o (B,Q,H,V).

    weight, bias  (V,V) and (V) of the projection behind the linear branch, x W^T + b; no weight: no branch
    feature       of q and k in the linear branch: softmax (over the width), elu (+ 1) or relu
    """
    if not (0 < critical <= 1 and 0 <= negligible < 1 and critical + negligible <= 1) or min(block_q, block_k) < 1:
        raise refuse(
            "sla", f"critical {critical}, negligible {negligible}, blocks {block_q} and {block_k}",
            "let the shares be positive and sum to at most 1, and blocks have at least 1 token",
        )  # fmt: skip
    if feature not in FEATURES:
        raise refuse("sla", f"feature {feature!r} does not exist", f"use one of {list(FEATURES)}")
    if weight is not None and tuple(weight.shape) != (v.shape[-1], v.shape[-1]):
        raise refuse("sla", f"weight of {tuple(weight.shape)}", f"values are {v.shape[-1]} wide: give a square of that")
    if weight is None and bias is not None:
        raise refuse("sla", "a bias without a weight", "give both or none")
    if bias is not None and tuple(bias.shape) != (v.shape[-1],):
        raise refuse("sla", f"bias of {tuple(bias.shape)}", f"values are {v.shape[-1]} wide: give ({v.shape[-1]},)")
    plan = Plan(block_q, block_k, critical, negligible)
    options = {"weight": weight, "bias": bias, "plan": plan, "feature": feature}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens, options=options)


def classify(q: Tensor, k: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Critical blocks (B,H,M,c), ascending, and marginal ones (B,H,M,N) bool. No gradient."""
    with torch.no_grad():
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        q, k = q.to(wide), k.to(wide)
        # a constant in all keys moves every score of a row alike, and is better gone before rounding
        k = k - k.mean(1, keepdim=True)
        scores = pooled(q, plan.block_q) @ pooled(k, plan.block_k).mT
        many = scores.shape[-1]
        critical, negligible = max(int(plan.critical * many), 1), int(plan.negligible * many)
        # stable: of equal scores the first, everywhere
        order = scores.argsort(dim=-1, descending=True, stable=True)
        marginal = torch.zeros_like(scores, dtype=torch.bool)
        marginal.scatter_(-1, order[..., critical : max(many - negligible, critical)], True)
        return order[..., :critical].sort(-1).values, marginal


def pooled(x: Tensor, block: int) -> Tensor:
    """Means of blocks of tokens, (B,H,M,D); the last block may be short."""
    sums = blocked(x, block).sum(3)
    size = torch.full((sums.shape[2], 1), block, device=x.device)
    size[-1] -= -x.shape[1] % block
    return sums / size


def blocked(x: Tensor, block: int) -> Tensor:
    """(B,T,H,D) to (B,H,M,block,D), with zeros at the end."""
    return pad(x, (0, 0, 0, 0, 0, -x.shape[1] % block)).unflatten(1, (-1, block)).permute(0, 3, 1, 2, 4)


def dense(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, weight: Tensor | None,
    bias: Tensor | None, plan: Plan, feature: str,
) -> Result:  # fmt: skip
    """The specification: two masked matrices of all pairs."""
    critical, marginal = classify(q, k, plan)
    chosen = torch.zeros_like(marginal).scatter_(-1, critical, True)

    def pairs(blocks: Tensor) -> Tensor:
        whole = blocks.repeat_interleave(plan.block_q, 2).repeat_interleave(plan.block_k, 3)
        return whole[:, :, : q.shape[1], : k.shape[1]]

    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    fine_q, fine_k, fine_v = (x.to(wide) for x in (q, k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", fine_q, fine_k) * scale
    weights = scores.masked_fill(~pairs(chosen), -torch.inf).softmax(-1)
    o = torch.einsum("bhqk,bkhv->bqhv", weights, fine_v)
    if weight is not None:
        kernel = FEATURES[feature]
        products = torch.einsum("bqhd,bkhd->bhqk", kernel(fine_q), kernel(fine_k)) * pairs(marginal)
        below = products.sum(-1, keepdim=True)
        linear = torch.einsum("bhqk,bkhv->bqhv", products / below.masked_fill(below == 0, 1), fine_v)
        o = o + linear @ weight.to(wide).T + (0 if bias is None else bias.to(wide))
    return o.to(q.dtype), None


def chunk(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, weight: Tensor | None,
    bias: Tensor | None, plan: Plan, feature: str,
) -> Result:  # fmt: skip
    """Only the critical blocks are read, and sums of the marginal ones.

    What is read at once is as much as all keys, whose gradient it needs: with less, most of the backward pass would be
    zeros. It is read again there: kept, it would be the critical share of all pairs of blocks.
    """
    critical, marginal = classify(q, k, plan)
    strip = max(marginal.shape[3] // critical.shape[3], 1)
    rows, keys, values = (blocked(x, size) for x, size in ((q, plan.block_q), (k, plan.block_k), (v, plan.block_k)))
    place = torch.arange(keys.shape[2] * plan.block_k, device=q.device).reshape(-1, plan.block_k)
    # a row for each block of each head
    begins = torch.arange(0, len(q) * q.shape[2] * keys.shape[2], keys.shape[2], device=q.device)
    begins, keys, values = begins.view(len(q), -1, 1, 1), keys.flatten(0, 2), values.flatten(0, 2)
    outputs = []
    for here, index in zip(rows.split(strip, 2), critical.split(strip, 2)):
        allowed = place[index] < k.shape[1] if k.shape[1] % plan.block_k else None
        read = keys, values, (begins + index).flatten(), allowed, scale
        outputs.append(checkpoint(_read, here, *read, use_reentrant=False, preserve_rng_state=False))
    o = torch.cat(outputs, 2)
    if weight is not None:
        features, moment, norm = moments(q, k, v, marginal, weight, plan, feature)
        features = blocked(features, plan.block_q)
        below = features @ norm[..., None]
        o = o + (features @ moment / below.masked_fill(below == 0, 1)).to(o.dtype)
    o = o.flatten(2, 3).transpose(1, 2)[:, : q.shape[1]]
    return o if bias is None else o + bias.to(o.dtype), None


def _read(q: Tensor, keys: Tensor, values: Tensor, index: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """(B,H,s,block,V) of s blocks of queries for each head, over rows of keys and values, a small attention each."""
    each = q.flatten(0, 2)[:, None]
    near, worth = (x.index_select(0, index).view(len(each), 1, -1, x.shape[2]) for x in (keys, values))
    if allowed is not None:
        allowed = allowed.view(len(each), 1, 1, -1).expand(-1, -1, each.shape[2], -1)
    o = scaled_dot_product_attention(each, near, worth, attn_mask=allowed, scale=scale)
    return o[:, 0].unflatten(0, q.shape[:3])


def moments(
    q: Tensor, k: Tensor, v: Tensor, marginal: Tensor, weight: Tensor, plan: Plan, feature: str
) -> tuple[Tensor, Tensor, Tensor]:
    """f(q) (B,Q,H,D), and per block of queries S (B,H,M,D,V), already projected, and z (B,H,M,D)."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    features, keys = (FEATURES[feature](x.to(wide)) for x in (q, k))
    # features first, blocks then: what fills the last block must add nothing, and f(0) is not 0
    keys, values = blocked(keys, plan.block_k), blocked(v.to(wide) @ weight.to(wide).T, plan.block_k)
    # means and not sums, which changes no quotient and keeps float16 in its range
    share = marginal.to(wide) / k.shape[1]
    each = keys.mT @ values
    return features, (share @ each.flatten(3)).unflatten(3, each.shape[3:]), share @ keys.sum(3)


def cost(shape: Shape) -> Cost:
    """At the default shares and blocks, in the order of the chunked algorithm."""
    blocks_q, blocks_k = -(-shape.queries // 64), -(-shape.keys // 64)
    rows = shape.batch * shape.heads
    pairs = 0.05 * shape.queries * shape.keys
    select = 2 * blocks_q * blocks_k * shape.width
    linear = 2 * shape.width * shape.value_width * (shape.queries + shape.keys + blocks_q * blocks_k)
    operations = rows * (2 * pairs * (shape.width + shape.value_width) + select + linear)
    tokens = shape.heads * shape.queries + shape.key_heads * shape.keys
    size = torch.finfo(shape.dtype).bits // 8
    return Cost(operations, size * shape.batch * tokens * (shape.width + shape.value_width), rows * pairs)


def _example(sizes: Sizes, **options: object) -> Example:
    small = {"block_q": 3, "block_k": 2, "critical": 0.3, "negligible": 0.3, **options}
    weight = {"weight": sizes.randn(sizes.value_width, sizes.value_width), "bias": sizes.randn(sizes.value_width)}
    return Example(parameters=weight, options=small)


OP = Op(
    name="sla",
    impls={
        "reference": Impl(dense),
        "chunk": Impl(chunk),
        "triton": triton("sparse.sla:run", refuses=twin_refuses),
    },
    auto=("triton", "chunk"),
    patterns=frozenset({"NS", "NC"}),
    handmade=frozenset({"triton"}),
    cost=cost,
    # a pass for the means, one for all the rest; B stands for the choice of blocks
    cascade="""
        KC[e,m1]        = sum(K[e,m1,m0])
        QC[e,p1]        = sum(Q[e,p1,p0])
        CS[m1,p1]       = QC[e,p1] * KC[e,m1]
        TOP[p1]         = max(CS[m1,p1])
        B[m1,p1]        = max(CS[m1,p1], TOP[p1])
        QK[m1,m0,p1,p0] = B[m1,p1] * Q[e,p1,p0] * K[e,m1,m0]
        GM[p1,p0]       = max(QK[m1,m0,p1,p0])
        SN[m1,m0,p1,p0] = exp(QK[m1,m0,p1,p0] - GM[p1,p0])
        SD[p1,p0]       = sum(SN[m1,m0,p1,p0])
        AV[f,p1,p0]     = SN[m1,m0,p1,p0] * V[f,m1,m0]
        S[e,f,p1]       = B[m1,p1] * FK[e,m1,m0] * V[f,m1,m0]
        Z[e,p1]         = B[m1,p1] * FK[e,m1,m0]
        Y[f,p1,p0]      = FQ[e,p1,p0] * S[e,f,p1]
        C[p1,p0]        = FQ[e,p1,p0] * Z[e,p1]
        O[f,p1,p0]      = AV[f,p1,p0] / SD[p1,p0] + Y[f,p1,p0] / C[p1,p0]
    """,
    example=_example,
    variants={
        "elu": lambda sizes: _example(sizes, feature="elu", negligible=0),
        "no marginal block": lambda sizes: _example(sizes, critical=0.7, feature="relu"),
        "no branch": lambda sizes: Example(options={"block_q": 3, "block_k": 2, "critical": 0.3}),
    },
)
