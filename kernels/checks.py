"""What every operator asks of its tensors, and how it refuses: one line with the value, the limit and the remedy.

That they are tensors, `typed.py` has seen.

Layout of all operators: q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hv,V). H, Hk and Hv may differ (grouped heads): each must
divide the largest, and head h of the largest reads head h // (largest / own) of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gnomon.kernels.mask import Bound


def refuse(op: str, why: str, remedy: str) -> ValueError:
    """The one voice: `raise refuse("gla", "mask None lets tokens see the future", "pass mask=CAUSAL")`."""
    return ValueError(f"{op}: {why}; {remedy}")


def check_qkv(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise refuse(op, f"{name} has shape {tuple(x.shape)}", "give (batch, tokens, heads, width)")
        if 0 in x.shape:
            raise refuse(op, f"{name} of shape {tuple(x.shape)} is empty", "give at least one of each")
        if not x.dtype.is_floating_point:
            raise refuse(op, f"{name} is {x.dtype}", "give a floating point tensor")
        if x.dtype != q.dtype:
            raise refuse(op, f"q is {q.dtype} but {name} is {x.dtype}", f"convert with {name}.to(q.dtype)")
        if x.device != q.device:
            raise refuse(op, f"q is on {q.device} but {name} on {x.device}", f"move with {name}.to(q.device)")
        if x.shape[0] != q.shape[0]:
            raise refuse(op, f"q has batch {q.shape[0]} but {name} {x.shape[0]}", "give one batch size")
    if k.shape[1] != v.shape[1]:
        raise refuse(op, f"k has {k.shape[1]} tokens but v {v.shape[1]}", "give one value per key")
    if q.shape[3] != k.shape[3]:
        raise refuse(op, f"q is {q.shape[3]} wide but k {k.shape[3]}", "give one width")
    heads = max(x.shape[2] for x in (q, k, v))
    for name, x in (("q", q), ("k", k), ("v", v)):
        if heads % x.shape[2]:
            raise refuse(
                op, f"{name} has {x.shape[2]} heads, which do not divide {heads}", "use divisors of the largest"
            )


def check_scale(op: str, scale: float | None, width: int) -> float:
    if scale is None:
        return width**-0.5
    remedy = "leave it out for width ** -0.5"
    if isinstance(scale, Tensor):
        if scale.requires_grad:
            raise refuse(op, "scale is a tensor that learns, and would get no gradient", "multiply q by it instead")
        if scale.numel() != 1 or scale.dtype == torch.bool or scale.is_complex():
            raise refuse(op, f"scale, {scale.dtype} of shape {tuple(scale.shape)}, is no number", remedy)
    if isinstance(scale, (str, bytes, bool)):
        raise refuse(op, f"scale {scale!r} is no number", remedy)
    try:
        scale = float(scale)
    except (TypeError, ValueError) as error:
        raise refuse(op, f"scale {scale!r} is no number", remedy) from error
    if not math.isfinite(scale):
        raise refuse(op, f"scale {scale} is not finite", remedy)
    return scale


def check_companions(op: str, tensors: Mapping[str, Tensor], *, of: Tensor, heads: int) -> None:
    """Tensors that go along with the queries or the keys: (B,T), (B,T,h) or (B,T,h,...), where h divides the heads."""
    for name, x in tensors.items():
        if tuple(x.shape[:2]) != tuple(of.shape[:2]):
            raise refuse(op, f"{name} has shape {tuple(x.shape)}", f"let it begin with {tuple(of.shape[:2])}")
        if x.ndim > 2 and (x.shape[2] == 0 or heads % x.shape[2]):
            raise refuse(op, f"{name} has {x.shape[2]} heads, which do not divide {heads}", "give one value per head")
        if x.device != of.device:
            raise refuse(op, f"q is on {of.device} but {name} on {x.device}", f"move with {name}.to(q.device)")


def check_options(op: str, options: Mapping[str, object], *, q: Tensor) -> None:
    """What all operators ask alike: parameters are where q is, a block has tokens, nothing small is below 0."""
    for name, x in options.items():
        # a single number may stay on the CPU
        if isinstance(x, Tensor) and x.ndim and x.device != q.device:
            raise refuse(op, f"q is on {q.device} but {name} on {x.device}", f"move with {name}.to(q.device)")
        if name in ("eps", "tiny") and not x >= 0:
            raise refuse(op, f"{name} {x!r} is no small number", "give 0 or more")
        if name == "block" and x < 1:
            raise refuse(op, f"block {x} holds no token", "give 1 or more")


def check_cu_seqlens(op: str, cu_seqlens: Tensor, name: str, x: Tensor) -> None:
    if not isinstance(cu_seqlens, Tensor):
        raise refuse(op, f"cu_seqlens is a {type(cu_seqlens).__name__}", "give a tensor of integers 0, end, end, ...")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise refuse(
            op, f"cu_seqlens is {cu_seqlens.dtype} of {tuple(cu_seqlens.shape)}", "give integers 0, end, end, ..."
        )
    if x.shape[0] != 1:
        raise refuse(op, f"cu_seqlens with a batch of {x.shape[0]}", "pack all sequences into one row")
    ends = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != x.shape[1] or any(size < 1 for size in cu_seqlens.diff().tolist()):
        raise refuse(op, f"cu_seqlens {ends} does not cut the tokens of {name}", f"let it rise from 0 to {x.shape[1]}")


def check_order(op: str, bound: Bound, *, last: bool) -> None:
    """Of a causal call that follows no mask: the queries are the `last` tokens of the keys, and these are in order."""
    if not last:
        q, k = (f"{int(tokens['p'].min())} to {int(tokens['p'].max())}" for tokens in (bound.q, bound.k))
        why = f"queries at {q} are not the last of the keys at {k}"
        raise refuse(op, why, "take their tokens from the end of the keys', CAUSAL.on(keys.take(...), keys)")
    rises = bound.k["p"].diff() > 0
    if bound.segmented:
        segment = bound.k["segment"]
        rises = rises | (segment[:, 1:] != segment[:, :-1]) | (segment[:, 1:] < 0)
    if not bool(rises.all()):
        raise refuse(op, "positions do not rise along the tokens", "order the tokens by position")


def check_names(op: str, given: Mapping[str, Tensor], wanted: Iterable[str]) -> None:
    """A state is a dict of tensors with these names."""
    if not isinstance(given, Mapping):
        raise refuse(op, f"state is a {type(given).__name__}", f"give a dict of {sorted(wanted)}")
    if set(given) != set(wanted):
        raise refuse(op, f"state holds {sorted(given)}", f"give {sorted(wanted)}, as an earlier call returned it")
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise refuse(op, f"state {name!r} is a {type(x).__name__}", "give the tensor that an earlier call returned")


def check_cache(op: str, given: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """A state of tokens (B,T,...): it can stand before those that are new, however many it has."""
    check_names(op, given, new)
    for name, x in new.items():
        held = given[name]
        if held.ndim != x.ndim or held[:, :0].shape != x[:, :0].shape:
            wanted = f"({', '.join(str(n) for n in (x.shape[0], 'tokens', *x.shape[2:]))})"
            raise refuse(op, f"state {name!r} has shape {tuple(held.shape)}", f"this call needs {wanted}")
        _check_kind(op, name, held, x)


def check_state(op: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    check_names(op, given, wanted)
    for name, x in wanted.items():
        if given[name].shape != x.shape:
            raise refuse(
                op, f"state {name!r} has shape {tuple(given[name].shape)}", f"this call needs {tuple(x.shape)}"
            )
        _check_kind(op, name, given[name], x)


def _check_kind(op: str, name: str, given: Tensor, wanted: Tensor) -> None:
    if given.dtype != wanted.dtype:
        raise refuse(op, f"state {name!r} is {given.dtype}", f"convert with .to({wanted.dtype})")
    if given.device != wanted.device:
        raise refuse(op, f"q is on {wanted.device} but state {name!r} on {given.device}", "move the state")
