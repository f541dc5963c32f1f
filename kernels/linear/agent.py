"""Agent: a few agents, pooled from the queries, look at all keys, and the queries look at the agents.

Paper:   Agent Attention: On the Integration of Softmax and Linear Attention. arXiv:2312.08874
Rule:    A = mean of q in each bin of the grid;  v_A = softmax(scale A k^T + bias_k) v;
         o = softmax(scale q A^T + bias_q) v_A
Where:   vision towers (noncausal self), on a grid with `prefix` tokens before it
Differs: biases come as tensors (`table_bias` makes them from tables); the 3 x 3 convolution is a module's
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, scaled_dot_product_attention

from gnomon.kernels.checks import check_qkv, refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Cost, Impl, Op, Result, Shape, State
from gnomon.kernels.typed import typed


@typed
def agent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    grid: tuple[int, int],
    agents: tuple[int, int] = (7, 7),
    prefix: int = 0,
    bias_k: Tensor | None = None,
    bias_q: Tensor | None = None,
    mask: Mask = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,T,H,D), k (B,T,Hk,D), v (B,T,Hv,V), bias_k (1 or H,n,T), bias_q (1 or H,T,n) -> o (B,T,H,V) and None.

    n is the number of agents; the tokens are `prefix` class tokens, which are not pooled, and a grid in raster order.
    """
    check_qkv("agent", q, k, v)
    for name, size in (("grid", grid), ("agents", agents)):
        if len(size) != 2 or min(size) < 1:
            raise refuse("agent", f"{name} {tuple(size)} is impossible", "give two extents of at least 1")
    if prefix < 0:
        raise refuse("agent", f"prefix {prefix} is no number of tokens", "give 0 or more")
    tokens, n = prefix + grid[0] * grid[1], agents[0] * agents[1]
    if q.shape[1] != tokens:
        raise refuse("agent", f"{q.shape[1]} tokens do not fill {prefix} + {grid[0]} x {grid[1]}", f"give {tokens}")
    for name, bias, size in (("bias_k", bias_k, (n, tokens)), ("bias_q", bias_q, (tokens, n))):
        heads = max(x.shape[2] for x in (q, k, v))
        if bias is not None and tuple(bias.shape) not in ((1, *size), (heads, *size)):
            raise refuse("agent", f"{name} has shape {tuple(bias.shape)}", f"give {(heads, *size)}")
    options = {"grid": grid, "agents": agents, "prefix": prefix, "bias_k": bias_k, "bias_q": bias_q}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, options=options)


def pool(q: Tensor, grid: tuple[int, int], agents: tuple[int, int], prefix: int) -> Tensor:
    """(B,T,H,D) -> (B,n,H,D); bins overlap where the grid does not divide."""
    batch, tokens, heads, width = q.shape
    if tokens != prefix + grid[0] * grid[1]:
        raise refuse("agent", f"a sequence of {tokens} is no {prefix} + {grid[0]} x {grid[1]}", "give grids unpadded")
    tiles = q[:, prefix:].reshape(batch, *grid, heads * width).permute(0, 3, 1, 2)
    return adaptive_avg_pool2d(tiles, agents).flatten(2).transpose(1, 2).reshape(batch, -1, heads, width)


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, grid: tuple[int, int],
    agents: tuple[int, int], prefix: int, bias_k: Tensor | None, bias_q: Tensor | None,
) -> Result:  # fmt: skip
    """The specification: two matrices of softmax, in at least float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    dtype, (q, k, v) = q.dtype, (x.to(wide) for x in (q, k, v))
    a = pool(q, grid, agents, prefix)
    gather = torch.einsum("bnhd,bkhd->bhnk", a, k) * scale + (0 if bias_k is None else bias_k)
    spread = torch.einsum("bqhd,bnhd->bhqn", q, a) * scale + (0 if bias_q is None else bias_q)
    return torch.einsum("bhqn,bhnk,bkhv->bqhv", spread.softmax(-1), gather.softmax(-1), v).to(dtype), None


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, grid: tuple[int, int],
    agents: tuple[int, int], prefix: int, bias_k: Tensor | None, bias_q: Tensor | None,
) -> Result:  # fmt: skip
    """Linear in the tokens: two fused attentions."""
    a = pool(q, grid, agents, prefix)
    q, k, v, a = (x.transpose(1, 2) for x in (q, k, v, a))
    bias_k, bias_q = (None if x is None else x[None].to(q.dtype) for x in (bias_k, bias_q))
    gathered = scaled_dot_product_attention(a, k, v, attn_mask=bias_k, scale=scale)
    return scaled_dot_product_attention(q, a, gathered, attn_mask=bias_q, scale=scale).transpose(1, 2), None


def table_bias(table: Tensor, rows: Tensor, columns: Tensor, first: Tensor | None = None) -> Tensor:
    """Tables (H,n,a,b), (H,n,h,1), (H,n,1,w) and, for class tokens, (H,n,prefix) -> bias_k (H,n,T); bias_q is one too,
    transposed."""
    size = (rows.shape[2], columns.shape[3])
    bias = (interpolate(table, size=size, mode="bilinear", align_corners=False) + rows + columns).flatten(2)
    return bias if first is None else torch.cat([first, bias], -1)


def cost(shape: Shape, agents: int = 49) -> Cost:
    rows = shape.batch * shape.heads * (shape.queries + shape.keys)
    size = torch.finfo(shape.dtype).bits // 8
    operations = 2 * rows * agents * (shape.width + shape.value_width)
    return Cost(operations, size * rows * (shape.width + shape.value_width), rows * agents)


def example(sizes: Sizes) -> Example:
    return Example(
        parameters={"bias_k": sizes.randn(sizes.heads, 4, sizes.keys), "bias_q": sizes.randn(1, sizes.queries, 4)},
        options={"grid": sizes.grid, "agents": (2, 2)},
    )


OP = Op(
    name="agent",
    impls={"reference": Impl(reference), "sdpa": Impl(sdpa)},
    auto=("sdpa",),
    patterns=frozenset({"NS"}),
    grid=True,
    cost=cost,
    cascade="""
        A[e,n]  = P[n,p] * Q[e,p]
        L[m,n]  = A[e,n] * K[e,m]
        GM[n]   = max(L[m,n])
        SN[m,n] = exp(L[m,n] - GM[n])
        SD[n]   = sum(SN[m,n])
        AV[f,n] = SN[m,n] * V[f,m]
        VA[f,n] = AV[f,n] / SD[n]
        R[n,p]  = Q[e,p] * A[e,n]
        T[n,p]  = exp(R[n,p])
        D[p]    = sum(T[n,p])
        Y[f,p]  = T[n,p] * VA[f,n]
        O[f,p]  = Y[f,p] / D[p]
    """,
    example=example,
    variants={"plain": lambda sizes: Example(options={"grid": sizes.grid, "agents": (2, 3)})},
)
