"""Softmax attention under any mask: one function per implementation, for `softmax/exact.py` and every static pattern.

All take q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V), a `Bound` mask, and return (o, None). A row that sees nothing is zero,
and so are its gradients. Those over torch's attention leave keys and values that heads share as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import pad, scaled_dot_product_attention

from gnomon.kernels.mask import Bound, Causal, Everything, walk
from gnomon.kernels.masks.atoms import Group
from gnomon.kernels.masks.blocks import block_lists
from gnomon.kernels.masks.flex import block_mask, compiled
from gnomon.kernels.masks.groups import groups
from gnomon.kernels.op import Cost, Impl, Result, Shape, State, nothing, repeat

CASCADE = """
QK[m,p] = Q[e,p] * K[e,m]
GM[p]   = max(QK[m,p])
SN[m,p] = exp(QK[m,p] - GM[p])
SD[p]   = sum(SN[m,p])
AV[f,p] = SN[m,p] * V[f,m]
O[f,p]  = AV[f,p] / SD[p]
"""


def reference(q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None) -> Result:
    """The specification: scores, mask, softmax, values, in at least float32."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    allowed = mask.dense(q.shape[2])
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(wide), k.to(wide)) * scale
    # an empty row becomes a row of equal scores, whose weights are then dropped: no NaN in either direction
    scores = scores.masked_fill(~allowed, -torch.inf).masked_fill(~allowed.any(-1, keepdim=True), 0)
    weights = scores.softmax(-1).masked_fill(~allowed, 0)
    return torch.einsum("bhqk,bkhv->bqhv", weights, v.to(wide)).to(q.dtype), None


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None) -> Result:
    """PyTorch's fused attention, with the dense mask where it needs one."""
    if not mask.segmented and isinstance(mask.expr, Everything):
        return _fused(q, k, v, None, scale), None
    if not mask.segmented and isinstance(mask.expr, Causal) and mask.q is mask.k and _plain_positions(mask):
        return _fused(q, k, v, None, scale, causal=True), None
    return _fused(q, k, v, mask.dense(_heads(q, k, v)), scale), None


def chunk(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None, block: int = 128
) -> Result:
    """One strip of queries after the other, against the blocks of keys that any of them sees."""
    heads = _heads(q, k, v)
    visited = block_lists(mask, heads=heads, block_q=block, block_k=block).visited.flatten(0, 1).any(0)
    if not bool(visited.any()):
        return nothing(q, v, heads, (k,)), None
    outputs = []
    for number, blocks in enumerate(visited):
        start, stop = number * block, min((number + 1) * block, q.shape[1])
        keys = blocks.nonzero() * block + torch.arange(block, device=q.device)
        keys = keys[keys < k.shape[1]]
        if not len(keys):
            outputs.append(q.new_zeros(q.shape[0], stop - start, heads, v.shape[3]))
            continue
        allowed = mask.dense(heads, start=start, stop=stop, keys=keys)
        outputs.append(_fused(q[:, start:stop], k[:, keys], v[:, keys], allowed, scale))
    return torch.cat(outputs, 1), None


def group(q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None) -> Result:
    """A rule that is an equivalence, as a batch of small dense attentions."""
    found = groups(mask)
    assert found is not None, "group_refuses has seen to it"
    shared = found.rows == 1
    flat = [x if shared else x.flatten(0, 1)[None] for x in (q, k, v)]
    o = torch.zeros(*flat[0].shape[:2], _heads(q, k, v), v.shape[3], dtype=q.dtype, device=q.device)
    for index in found.index:
        parts = [x[:, index].flatten(0, 1) for x in flat]
        each = _fused(*parts, None, scale, causal=found.causal)
        o = o.index_copy(1, index.flatten(), each.reshape(o.shape[0], -1, *o.shape[2:]))
    return o if shared else o.reshape(*q.shape[:2], *o.shape[2:]), None


def flex(q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None = None) -> Result:
    """FlexAttention: compiled on a GPU; on the CPU its plain form, which has no backward."""
    # the CPU form refuses tensors that require a gradient even where none is recorded
    heads_first = [x.transpose(1, 2) if torch.is_grad_enabled() else x.detach().transpose(1, 2) for x in (q, k, v)]
    blocks = block_mask(mask, heads=q.shape[2])
    if q.device.type == "cuda":
        return compiled(*heads_first, mask=blocks, scale=scale).transpose(1, 2), None
    return flex_attention(*heads_first, block_mask=blocks, scale=scale).transpose(1, 2), None


def flex_refuses(shape: Shape, mask: Bound) -> str | None:
    if shape.device.type == "cpu" and shape.grad:
        return "FlexAttention has no backward on the CPU"
    return None


def flex_declines(shape: Shape, mask: Bound) -> str | None:
    return "FlexAttention is not compiled on the CPU" if shape.device.type == "cpu" else None


def group_refuses(shape: Shape, mask: Bound) -> str | None:
    if not any(isinstance(part, Group) for part in walk(mask.rule)) or groups(mask) is None:
        return "the mask is no equivalence (part, residue, same, equal)"
    return None


def sdpa_declines(shape: Shape, mask: Bound) -> str | None:
    if shape.queries * shape.keys > 2**20 and (mask.segmented or not isinstance(mask.expr, (Everything, Causal))):
        return f"a dense mask of {shape.queries} x {shape.keys}"
    return None


IMPLS = {
    "reference": Impl(reference, packed=True),
    "chunk": Impl(chunk, packed=True, grouped=True),
    "sdpa": Impl(sdpa, packed=True, grouped=True, declines=sdpa_declines),
    "group": Impl(group, group_refuses, packed=True, grouped=True),
    "flex": Impl(flex, flex_refuses, packed=True, declines=flex_declines),
}
AUTO = ("group", "sdpa", "flex", "chunk")


def cost(shape: Shape) -> Cost:
    """Dense attention; half of it under a causal mask."""
    pairs = shape.queries * shape.keys / (2 if shape.causal and shape.queries == shape.keys else 1)
    pairs *= shape.batch * shape.heads
    size = torch.finfo(shape.dtype).bits // 8
    rows = shape.batch * shape.heads * shape.queries * (shape.width + shape.value_width)
    columns = shape.batch * shape.key_heads * shape.keys * (shape.width + shape.value_width)
    return Cost(2 * pairs * (shape.width + shape.value_width), size * (rows + columns), pairs)


def _fused(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float, *, causal: bool = False) -> Tensor:
    heads, alone = _heads(q, k, v), q.shape[1] == 1
    if q.shape[2] < heads or k.shape[2] != v.shape[2]:
        q, k, v = (repeat(x, heads) for x in (q, k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if alone:
        # heads that share keys are queries of one head; torch would repeat the keys, at least on the CPU
        q = q.reshape(*k.shape[:2], -1, q.shape[3])
        if allowed is not None and allowed.shape[1] > 1:
            allowed = allowed.reshape(len(allowed), k.shape[1], -1, allowed.shape[3])
    width, scored = v.shape[3], q.shape[3]
    if q.device.type == "cpu" and width != scored and not alone:
        # torch's kernel for the CPU has one width for all, and without it all scores are in memory
        q, k, v = (pad(x, (0, max(width, scored) - x.shape[3])) for x in (q, k, v))
    how = {"scale": scale, "enable_gqa": q.shape[1] != k.shape[1]}
    if allowed is None:
        o = scaled_dot_product_attention(q, k, v, is_causal=causal and not alone, **how)
    else:
        seen = allowed.any(-1, keepdim=True)
        o = scaled_dot_product_attention(q, k, v, attn_mask=allowed | ~seen, **how)
        o = torch.where(seen, o, torch.zeros((), dtype=o.dtype, device=o.device))
    o = o[..., :width]
    return (o.reshape(len(o), heads, 1, -1) if alone else o).transpose(1, 2)


def _heads(q: Tensor, k: Tensor, v: Tensor) -> int:
    return max(x.shape[2] for x in (q, k, v))


def _plain_positions(mask: Bound) -> bool:
    if "plain positions" not in mask.cache:
        mask.cache["plain positions"] = bool((mask.q["p"].diff() > 0).all())
    return bool(mask.cache["plain positions"])
