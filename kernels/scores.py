"""Rows and column sums of softmax attention without the attention matrix, for the methods that choose tokens by them.

    rows(q, k)     (B,H,R,S)  the attention of some queries over all keys; `pooled`: its mean over the heads (B,R,S)
    columns(q, k)  (B,H,S)    the attention that each key receives, summed over the queries

A row needs its own logits only, and a column sum one chunk of rows at a time; as kernels, the logits themselves are
never stored. Statistics and results are float32 (float64 for float64), a row that sees nothing is zero.

Shapes: B batch, R rows (queries), S keys, H query heads, K key heads, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gnomon.kernels.checks import check_scale, refuse
from gnomon.kernels.example import just_qkv
from gnomon.kernels.mask import Bound, bind
from gnomon.kernels.op import Cost, Impl, Op, Shape, triton

_CHUNK = 1 << 24
"""Logits at a time when columns are summed (64 MiB)."""


@dataclass(frozen=True)
class Limits:
    """What each row sees, in numbers instead of a matrix: keys `first` to `last` that are of its own segment.

    last      (B,R) index of the last key, -1 for none
    first     (B,R) index of the first key, 0 by default
    segments  (B,R) and (B,S): a row sees keys of its own number; below 0 is a key that nobody sees
    """

    last: Tensor
    first: Tensor | None = None
    segments: tuple[Tensor, Tensor] | None = None

    def dense(self, keys: int, part: slice = slice(None)) -> Tensor:
        """(B,R,S) bool, of some rows."""
        index = torch.arange(keys, device=self.last.device)
        seen = index <= self.last[:, part, None]
        if self.first is not None:
            seen &= index >= self.first[:, part, None]
        if self.segments is not None:
            of_row, of_key = self.segments
            seen &= (of_row[:, part, None] == of_key[:, None]) & (of_key >= 0)[:, None]
        return seen


Sight = Tensor | Limits | None
"""What the rows see: (B,R,S) bool, limits, or everything."""


def rows(
    q: Tensor, k: Tensor, *, scale: float | None = None, softcap: float | None = None, sight: Sight = None,
    pooled: bool = False, impl: str = "auto",
) -> Tensor:  # fmt: skip
    """q (B,R,H,D), k (B,S,K,D) -> (B,H,R,S), or with `pooled` their mean over the heads (B,R,S)."""
    call = _implementation(ROWS, impl, q, k, sight)
    scale = check_scale(ROWS.name, scale, q.shape[3])
    return call(q, k, scale=scale, softcap=softcap, sight=sight, pooled=pooled)


def columns(
    q: Tensor, k: Tensor, *, scale: float | None = None, softcap: float | None = None, sight: Sight = None,
    weight: Tensor | None = None, chunk: int | None = None, impl: str = "auto",
) -> Tensor:  # fmt: skip
    """q (B,R,H,D), k (B,S,K,D), weight (B,R) of each row, 1 by default -> (B,H,S).

    chunk: rows at a time, where they are taken in chunks.
    """
    call = _implementation(COLUMNS, impl, q, k, sight, weight)
    if weight is not None and weight.shape != q.shape[:2]:
        raise refuse(COLUMNS.name, f"weight has shape {tuple(weight.shape)}", f"give {tuple(q.shape[:2])}")
    scale = check_scale(COLUMNS.name, scale, q.shape[3])
    return call(q, k, scale=scale, softcap=softcap, sight=sight, weight=weight, chunk=chunk)


def _implementation(
    op: Op, impl: str, q: Tensor, k: Tensor, sight: Sight, weight: Tensor | None = None
) -> Callable[..., Tensor]:
    _check(op.name, q, k, sight)
    grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, weight))
    sizes = len(q), q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3], k.shape[3]
    shape = Shape(*sizes, causal=False, dtype=q.dtype, device=q.device, grad=grad)
    return op.impls[op.choose(impl, shape, bind(None, 1, 1)).used].call


def _check(op: str, q: Tensor, k: Tensor, sight: Sight) -> None:
    if q.ndim != 4 or k.ndim != 4 or (len(q), q.shape[3]) != (len(k), k.shape[3]) or q.shape[2] % k.shape[2]:
        what = f"q of shape {tuple(q.shape)} and k of {tuple(k.shape)} do not fit"
        raise refuse(op, what, "give (batch, tokens, heads, width), key heads dividing the others")
    if not (q.numel() and k.numel()):
        raise refuse(op, f"q of shape {tuple(q.shape)} or k of {tuple(k.shape)} is empty", "give at least one of each")
    if (q.dtype, q.device) != (k.dtype, k.device):
        raise refuse(op, f"q is {q.dtype} on {q.device} but k {k.dtype} on {k.device}", "convert with k.to(q)")
    if isinstance(sight, Tensor) and sight.dtype != torch.bool:
        raise refuse(op, f"the mask is {sight.dtype}", "give torch.bool, True where a row sees a key")
    given = {"the mask": (sight, (len(q), q.shape[1], k.shape[1]))} if isinstance(sight, Tensor) else {}
    if isinstance(sight, Limits):
        of_row, of_key = sight.segments or (None, None)
        given = {name: (x, tuple(q.shape[:2])) for name, x in (("last", sight.last), ("first", sight.first))}
        given |= {"segments of rows": (of_row, tuple(q.shape[:2])), "segments of keys": (of_key, tuple(k.shape[:2]))}
    for name, (x, size) in given.items():
        if x is not None and tuple(x.shape) != size:
            raise refuse(op, f"{name} has shape {tuple(x.shape)}", f"give {size}")


def _reference_rows(q: Tensor, k: Tensor, *, scale: float, softcap: float | None, sight: Sight, pooled: bool) -> Tensor:
    found = _softmax(q, k, scale, softcap, sight.dense(k.shape[1]) if isinstance(sight, Limits) else sight)
    return found.mean(1) if pooled else found


def _reference_columns(
    q: Tensor, k: Tensor, *, scale: float, softcap: float | None, sight: Sight, weight: Tensor | None,
    chunk: int | None,
) -> Tensor:  # fmt: skip
    batch, count, heads, _ = q.shape
    chunk = chunk or max(1, _CHUNK // (batch * heads * k.shape[1]))
    total = 0.0
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        mask = sight.dense(k.shape[1], part) if isinstance(sight, Limits) else None if sight is None else sight[:, part]
        found = _softmax(q[:, part], k, scale, softcap, mask)
        total = total + (found if weight is None else found * weight[:, None, part, None].to(found.dtype)).sum(2)
    return total


def _softmax(q: Tensor, k: Tensor, scale: float, softcap: float | None, mask: Tensor | None) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, count, heads, width = q.shape
    # the query heads of one key head side by side: keys are not repeated
    grouped = q.to(wide).transpose(1, 2).reshape(batch, k.shape[2], -1, width)
    logits = (grouped @ k.to(wide).permute(0, 2, 3, 1)).view(batch, heads, count, -1) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask is None:
        return torch.softmax(logits, -1)
    # a row that sees nothing attends to nothing, instead of being NaN
    logits = logits.masked_fill(~mask[:, None], float("-inf"))
    return torch.softmax(logits, -1).masked_fill(~mask[:, None].any(-1, keepdim=True), 0.0)


def _refuses(shape: Shape, mask: Bound) -> str | None:
    return "it has no backward" if shape.grad else None


def _cost(shape: Shape, *, results: int) -> Cost:
    """The logits twice, once for the statistics of a row and once for its weights."""
    pairs = shape.batch * shape.heads * shape.queries * shape.keys
    tokens = shape.heads * shape.queries + shape.key_heads * shape.keys
    read = torch.finfo(shape.dtype).bits // 8 * shape.batch * tokens * shape.width
    return Cost(4 * pairs * shape.width, 2 * read + 4 * shape.batch * shape.heads * shape.keys * results, 2 * pairs)


ROWS = Op(
    name="rows",
    impls={"reference": Impl(_reference_rows), "triton": triton("scores:rows", refuses=_refuses)},
    auto=("triton", "reference"),
    patterns=frozenset({"NS", "NC"}),
    cost=lambda shape: _cost(shape, results=shape.queries),
    example=just_qkv,
)

COLUMNS = Op(
    name="columns",
    impls={"reference": Impl(_reference_columns), "triton": triton("scores:columns", refuses=_refuses)},
    auto=("triton", "reference"),
    patterns=frozenset({"NS", "NC"}),
    cost=lambda shape: _cost(shape, results=1),
    example=just_qkv,
)
