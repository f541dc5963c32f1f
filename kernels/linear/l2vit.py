"""L2ViT: linear global attention with ReLU features, a learned temperature and a denominator that is clamped.

Paper:   The Linear Attention Resurrection in Vision Transformer. arXiv:2501.16182
Rule:    o_i = t_h sum_j (f(q_i) f(k_j)) v_j / max(sum_j f(q_i) f(k_j), least), f = relu
Where:   vision towers (noncausal self), cross-attention; causal with prefixes in place of the whole
Differs: `least` is an option, for the paper's 100 belongs to its number of tokens; the scale stands for
         a temperature that is left out; the local concentration is a module's
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from gnomon.kernels import moments
from gnomon.kernels.checks import check_qkv, refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Mask
from gnomon.kernels.op import Op, Result, State
from gnomon.kernels.typed import typed


@typed
def l2vit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    temperature: Tensor | None = None,
    mask: Mask = None,
    scale: float | None = None,
    state: State | None = None,
    cu_seqlens: Tensor | tuple[Tensor, Tensor] | None = None,
    impl: str = "auto",
    least: float = 100.0,
    block: int = 64,
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V), temperature (H,) -> o (B,Q,H,V), state {s, z}."""
    if least <= 0:
        raise refuse("l2vit", f"least {least} does not keep the denominator from zero", "give a positive number")
    check_qkv("l2vit", q, k, v)
    heads = max(x.shape[2] for x in (q, k, v))
    if temperature is not None and tuple(temperature.shape) != (heads,):
        raise refuse("l2vit", f"temperature has shape {tuple(temperature.shape)}", f"give ({heads},), one per head")
    options = {"temperature": temperature, "least": least, "block": block}
    return OP.run(impl, q, k, v, mask=mask, scale=scale, state=state, cu_seqlens=cu_seqlens, options=options)


def attend(
    way: moments.Way, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None,
    temperature: Tensor | None, least: float, block: int,
) -> Result:  # fmt: skip
    dtype = q.dtype
    q, k, v = moments.widen(q, k, v)
    values, mass, after = way(q.relu(), k.relu(), v, state, block=block)
    factor = scale if temperature is None else temperature.to(values.dtype)[:, None]
    return (factor * values / mass.clamp(min=least)).to(dtype), after


def example(sizes: Sizes) -> Example:
    """A clamp inside the range of the denominators, so that both of its sides are seen."""
    return Example(parameters={"temperature": sizes.rand(sizes.heads)}, options={"least": 5.0})


OP = Op(
    name="l2vit",
    impls=moments.impls(attend, causal=True, twin="linear.moments:l2vit"),
    auto=("triton", "chunk"),
    handmade=frozenset({"triton"}),
    patterns=frozenset({"NS", "CS", "NC"}),
    state=partial(moments.start, names="s z"),
    cost=moments.cost,
    cascade=moments.QUOTIENT,
    example=example,
)
