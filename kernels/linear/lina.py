"""LINA: division-normalised linear attention with gates that say how much of each key and value is remembered.

Paper:   LINA: Linear Autoregressive Image Generative Models with Continuous Tokens. arXiv:2601.22630
Rule:    f = relu + tiny;  k~_j = gate_k_j f(k_j), v~_j = gate_v_j v_j;
         o_i = f(q_i) mean_j k~_j v~_j / (f(q_i) mean_j k~_j + eps)
Where:   vision towers and generators (noncausal self), cross-attention
Differs: gates come as tensors, one per token (and head): learned per place, or from the tokens; rotate q and k before
         the call (numerator and denominator see the same); the convolution is a module's; the scale is not read
"""

from __future__ import annotations

from torch import Tensor

from gnomon.kernels import moments
from gnomon.kernels.checks import refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Op, Result, State
from gnomon.kernels.typed import typed


@typed
def lina(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    gate_k: Tensor | None = None,
    gate_v: Tensor | None = None,
    mask: Mask = None,
    scale: float | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    eps: float = 1e-6,
    tiny: float = 1e-6,
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V), gates (B,K) or (B,K,h) -> o (B,Q,H,V) and None."""
    gates = {name: x for name, x in (("gate_k", gate_k), ("gate_v", gate_v)) if x is not None}
    for name, x in gates.items():
        if x.ndim not in (2, 3):
            raise refuse("lina", f"{name} has shape {tuple(x.shape)}", "give (batch, keys) or (batch, keys, heads)")
    per_key = {name: x[..., None] if x.ndim == 2 else x for name, x in gates.items()}
    options = {"eps": eps, "tiny": tiny}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, cu_seqlens=cu_seqlens, per_key=per_key, options=options)


def attend(
    way: moments.Way, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, eps: float,
    tiny: float, gate_k: Tensor | None = None, gate_v: Tensor | None = None,
) -> Result:  # fmt: skip
    dtype, n = q.dtype, k.shape[1]
    q, k, v = moments.widen(q, k, v)
    q, k = q.relu() + tiny, k.relu() + tiny
    if gate_k is not None:
        k = gate_k[..., None].to(k.dtype) * k
    if gate_v is not None:
        v = gate_v[..., None].to(v.dtype) * v
    values, mass, _ = way(q, k, v, None)
    return (values / n / (mass / n + eps)).to(dtype), None


def example(sizes: Sizes) -> Example:
    return Example(
        per_key={
            "gate_k": 0.5 + sizes.rand(sizes.batch, sizes.keys, sizes.key_heads),
            "gate_v": sizes.randn(sizes.batch, sizes.keys),
        }
    )


OP = Op(
    name="lina",
    impls=moments.impls(attend, causal=False, twin="linear.moments:lina"),
    auto=("triton", "chunk"),
    handmade=frozenset({"triton"}),
    patterns=frozenset({"NS", "NC"}),
    cost=moments.cost,
    cascade=moments.QUOTIENT,
    example=example,
)
