"""Mixer: a module in place of a layer's self-attention, with parameters or a memory of its own.

A mixer takes over the linear maps of the attention that it replaces and adds what its method needs. It is called with
the layer's normalised input and the layout of the tokens: packed samples do not see each other, and padding counts for
nothing. With a memory it goes on where an earlier call ended.

Shapes: B rows, T tokens, C width, H heads, K key heads, D head width, F features, N sequences,
W taps of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.kernels.mask import CAUSAL, Mask
from gnomon.kernels.masks.atoms import recent
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.softmax.exact import exact
from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.lessons import Lessons, sample_mean
from gnomon.vlm.part import Part
from gnomon.vlm.placement import Layers, chosen

Memory = dict[str, Tensor]
"""What a mixer remembers of the tokens it saw: tensors that begin with the row."""

Tables = tuple[Tensor, Tensor]
"""Rotary (cos, sin)."""

Rotate = Callable[[Tensor, Tensor, Tables], tuple[Tensor, Tensor]]
"""q (B,T,H,D), k (B,T,K,D) and tables to rotated q and k."""


@dataclass(frozen=True)
class Attention:
    """The self-attention that a mixer replaces.

    maps    its modules by name: q_proj, k_proj, v_proj, o_proj, and q_norm, k_norm where it has them
    scale   of its softmax; layer and depth: its number, and of how many
    rotate  None in layers without positions
    window  how many tokens see a token, itself among them; None: all
    cap     of its logits; None: none
    prefix  class and register tokens of an encoder
    """

    maps: dict[str, nn.Module]
    width: int
    heads: int
    key_heads: int
    head_dim: int
    scale: float
    layer: int
    depth: int
    rotate: Rotate | None = None
    window: int | None = None
    cap: float | None = None
    prefix: int = 0


class Mixer(Part, nn.Module):
    """Constructor arguments are the options. Each method has `layers` among them, see placement.py.

    causal   whether it is for decoders; others are for encoders
    rotary   whether it wants rotary positions; else the order of the tokens is all that it knows
    takes    of which maps of the attention it makes use: of queries, keys, values, output
    """

    causal: bool = True
    rotary: bool = False
    takes: str = "qkvo"

    def __init__(self, layers: Layers = "all") -> None:
        super().__init__()
        self.layers = layers

    def places(self, depth: int) -> list[int]:
        return chosen(self.layers, depth, what=type(self).__name__)

    def setup(self, attention: Attention) -> None:
        """Take over the maps in `takes` and make the parameters; once for each layer, on a fresh mixer."""
        self.heads, self.key_heads, self.head_dim = attention.heads, attention.key_heads, attention.head_dim
        self.scale, self.rotate = attention.scale, attention.rotate
        for name, module in attention.maps.items():
            if name[0] in self.takes:
                self.add_module(name, module)

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        """(B,T,C) to (B,T,C). memory: None, nothing is to be remembered; {}: nothing was seen before."""
        raise NotImplementedError

    def linear(self, name: str, x: Tensor) -> Tensor:
        """One of the attention's maps."""
        return getattr(self, f"{name}_proj")(x)

    def project(self, name: str, x: Tensor) -> Tensor:
        """(B,T,C) to queries, keys or values (B,T,h,D), with the norm that the attention had for them."""
        norm = getattr(self, f"{name}_norm", None)
        x = self.linear(name, x)
        # some norms are over all heads at once
        over_all = norm is not None and norm.weight.shape[0] != self.head_dim
        y = (norm(x) if over_all else x).unflatten(-1, (-1, self.head_dim))
        # under autocast some norms answer in the dtype of their weights
        return (y if norm is None or over_all else norm(y)).to(x.dtype)

    def turned(self, q: Tensor, k: Tensor, tables: Tables | None) -> tuple[Tensor, Tensor]:
        """With rotary positions, where the layer has some."""
        if self.rotate is None:
            return q, k
        rotated = self.rotate(q, k, tables)
        return rotated[0].to(q.dtype), rotated[1].to(k.dtype)


class Rows:
    """How the tokens of a call hang together, for the operator's mask, for convolutions and for what is remembered.

    A row may have no token at all, and padding anywhere. A call that goes on from a memory has one sequence per row.

    segment  (B,T) the packed sample of each token, -1 for padding; None: each row is one sequence
    """

    def __init__(self, layout: TokenLayout, memory: Memory | None) -> None:
        self.visible, self.document = visible, document = layout.visible, layout.document
        self._remembers = memory is not None
        whole = bool(visible.all())
        if not whole and memory is None and document is None:
            # padding behind a row changes nothing before it, and nobody will go on from it
            whole = bool((visible[:, 1:] <= visible[:, :-1]).all())
        one = document is None or bool((document == document[:, :1]).all())
        self.segment: Tensor | None = None
        self._tokens: Tokens | None = None
        if not (whole and one):
            self.segment = torch.where(visible, 0 if document is None else document, -1)
            self._tokens = Tokens({"p": visible.cumsum(1), "segment": self.segment})
            if not bool(visible.any()):
                raise ValueError(f"mixers: a call of {visible.numel()} tokens that are all padding; leave it out")
            if memory and self.packed:
                raise ValueError("mixers: packed samples in a call that goes on from a memory; give each a row")

    @cached_property
    def mask(self) -> Mask:
        return self.within(None)

    def within(self, window: int | None) -> Mask:
        """Causal, and no further back than that."""
        rule = CAUSAL if window is None else recent(window)
        return rule if self._tokens is None else rule.on(self._tokens)

    def begins(self, memory: Memory | None) -> Memory | None:
        """What the sequences go on from: the states of the rows that have any."""
        if not memory:
            return None
        return {"s": memory["s"] if self.segment is None else memory["s"][self.last[:, 0] >= 0]}

    def ends(self, state: Tensor, memory: Memory) -> Tensor:
        """(N,...), one for each sequence, to (B,...): that of the last one of each row, or what a row had before."""
        if self.segment is None:
            return state
        segment = self._close
        first = segment >= 0
        first[:, 1:] &= segment[:, 1:] != segment[:, :-1]
        last = state[(first.sum(1).cumsum(0) - 1).clamp(min=0)]
        return torch.where(first.any(1).view(-1, *[1] * (state.dim() - 1)), last, memory.get("s", 0))

    def newest(self) -> tuple[Tensor, Tensor]:
        """How many tokens the last sequence of each row has, (B,), and an order (B,T) in which they stand last."""
        return self.mine.sum(1), self.mine.long().argsort(dim=1, stable=True)

    @property
    def mine(self) -> Tensor:
        """(B,T) whether a token is of the last sequence of its row."""
        return self.visible if self.segment is None else self.visible & (self.segment == self.last)

    @property
    def last(self) -> Tensor:
        """(B,1) the last sequence of each row, -1 where it has none."""
        return self._close[:, -1:]

    @property
    def packed(self) -> bool:
        """Whether a row has other sequences before its last one."""
        return self.segment is not None and bool(((self.segment >= 0) & (self.segment != self.last)).any())

    @cached_property
    def parted(self) -> bool:
        """Whether padding stands between tokens, or between those of this call and of another."""
        runs = self.visible[:, 0] + (self.visible[:, 1:] & ~self.visible[:, :-1]).sum(1)
        return self._remembers or bool((runs > 1).any())

    @cached_property
    def _close(self) -> Tensor:
        """The segments with all padding in front."""
        return self.segment.gather(1, self.visible.long().argsort(dim=1, stable=True))


def recall(
    k: Tensor, v: Tensor, rows: Rows, memory: Memory | None, window: int | None = None
) -> tuple[Tensor, Tensor, Mask, Memory | None]:
    """For softmax: keys and values with the remembered ones before them, who sees whom, and all as the new memory."""
    if memory is None:
        return k, v, rows.within(window), None
    new, seen, mask = k.shape[1], rows.mine, rows.within(window)
    if memory:
        k, v, seen = (torch.cat([memory[name], x], 1) for name, x in (("k", k), ("v", v), ("seen", seen)))
        mask = CAUSAL if window is None else recent(window)
        if not bool(seen.all()):
            # not as segments: a row may bring no query and still hold keys
            back = (p := seen.cumsum(1))[:, -new:, None] - p[:, None]
            near = (back >= 0) & (back < (p.shape[1] if window is None else window))
            mask = (near & seen[:, None] & seen[:, -new:, None])[:, None]
    return k, v, mask, {"k": k, "v": v, "seen": seen}


class FeatureMap(nn.Module):
    """A linear map of each head's queries or keys; it begins as the identity, or as the first rows of it.

    decays: weight decay is not for it; at zero it would tell no keys apart.
    """

    decays = False

    def __init__(self, heads: int, width: int, feature: int | None = None, *, bias: bool = True) -> None:
        super().__init__()
        feature = width if feature is None else feature
        self.weight = nn.Parameter(torch.eye(feature, width).repeat(heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(heads, feature)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B,T,h,D) to (B,T,H,F); heads that share a key have maps of their own."""
        x = x.repeat_interleave(len(self.weight) // x.shape[2], 2)
        y = torch.einsum("bthd,hfd->bthf", x, self.weight)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class ShortConv(nn.Module):
    """A causal convolution of each channel alone over so many tokens; it begins as the identity."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.pad(torch.ones(width, 1), (taps - 1, 0)))

    def forward(self, x: Tensor, rows: Rows, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,T,C) to (B,T,C). tail: the last W - 1 tokens before x, which are returned of x likewise."""
        back, length = self.weight.shape[1] - 1, x.shape[1]
        begun = tail is not None
        x = torch.cat([x.new_zeros(len(x), back, x.shape[2]) if tail is None else tail.to(x.dtype), x], 1)
        if rows.segment is None:
            return F.conv1d(x.mT, self.weight[:, None], groups=x.shape[2]).mT, x[:, length:]
        # what was seen before belongs to the only sequence of a row, which may have no token now
        before = rows.last.clamp(min=0) if begun else torch.full_like(rows.last, -2)
        segment = torch.cat([before.expand(-1, back), rows.segment], 1)
        if rows.parted:
            # with padding in front of all, what belongs together stands side by side
            order = (segment != -1).long().argsort(dim=1, stable=True)
            x, segment = torch.take_along_dim(x, order[..., None], 1), segment.gather(1, order)
        out = x[:, back:] * self.weight[:, -1]
        for i in range(1, back + 1):
            here = slice(back - i, back - i + length)
            near = (segment[:, here] == segment[:, back:])[..., None]
            out = out + torch.where(near, x[:, here], 0) * self.weight[:, back - i]
        kept = (segment[:, length:] == segment[:, -1:])[..., None]
        if rows.parted:
            places = (order.argsort(1)[:, back:] - back).clamp(min=0)
            out = torch.take_along_dim(out, places[..., None], 1)
        return out, torch.where(kept, x[:, length:], 0)


class ShortConvs(nn.ModuleDict):
    """One for each of q, k and v, with SiLU behind it, and the tails of all in the memory."""

    def __init__(self, widths: dict[str, int], taps: int) -> None:
        super().__init__({name: ShortConv(width, taps) for name, width in widths.items()})

    def convolve(self, name: str, x: Tensor, rows: Rows, memory: Memory | None, tails: Memory) -> Tensor:
        """(B,T,h,D) of q, k or v; its tail goes into `tails`."""
        before = None if not memory else memory[f"{name}_tail"]
        out, tails[f"{name}_tail"] = self[name](x.flatten(2), rows, before)
        return F.silu(out).view_as(x)


def decay_parameters(heads: int, channels: int, *, least: float) -> tuple[nn.Parameter, nn.Parameter]:
    """Of decays -exp(rate) softplus(x + step): rates log U(least, 16) per head, and steps per head or channel, of which
    softplus is log-uniform in [0.001, 0.1].
    """
    rate = torch.empty(heads).uniform_(least, 16).clamp(min=1e-4).log()
    step = torch.empty(channels).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(min=1e-4)
    # the inverse of softplus
    return nn.Parameter(rate), nn.Parameter(step + torch.log(-torch.expm1(-step)))


class Norm(nn.RMSNorm):
    """In float32, whatever the weights are in."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.normalized_shape, self.weight.float(), self.eps).to(x.dtype)


def low_rank(width: int, rank: int, out: int, *, bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, out, bias=bias))


class Mimic(Mixer):
    """A mixer that learns to answer as the softmax attention does whose place it has: `mix` answers.

    What it learns for that are parameters named learned_*. rank: of changes low_* to W_q, W_k, W_v and W_o, which begin
    at zero and count twice, to be trained on the task afterwards; 0: none.
    lessons: while there are some, the layer answers by softmax, and the error of `mix` counts in the backward pass.
    """

    rotary = True
    lessons: Lessons | None = None

    def __init__(self, layers: Layers = "all", *, rank: int = 0) -> None:
        super().__init__(layers)
        if rank < 0:
            raise ValueError(f"{type(self).__name__}: rank {rank} is negative; use 0 for none, or such as 8")
        self.rank = rank

    def setup(self, attention: Attention) -> None:
        super().setup(attention)
        self.layer, self.sight, self.cap = attention.layer, attention.window, attention.cap
        for name in self.takes if self.rank else "":
            out, width = getattr(self, f"{name}_proj").weight.shape
            low = low_rank(width, self.rank, out, bias=False)
            nn.init.zeros_(low[1].weight)
            self.add_module(f"low_{name}", low)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = super().linear(name, x)
        return y + 2 * getattr(self, f"low_{name}")(x) if self.rank else y

    def mix(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows, memory: Memory | None) -> tuple[Tensor, Memory | None]:
        """q (B,T,H,D), k and v (B,T,K,D) to (B,T,H,D)."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, layout: TokenLayout, memory: Memory | None = None, *, tables: Tables | None = None
    ) -> tuple[Tensor, Memory | None]:
        rows = Rows(layout, memory)
        if self.lessons is not None:
            return self._learn(self.lessons, x, rows, tables), memory
        q, k, v = (self.project(name, x) for name in "qkv")
        o, memory = self.mix(*self.turned(q, k, tables), v, rows, memory)
        return self.linear("o", o.flatten(2)), memory

    def _learn(self, lessons: Lessons, x: Tensor, rows: Rows, tables: Tables | None) -> Tensor:
        with torch.no_grad():
            q, k, v = (self.project(name, x) for name in "qkv")
            q, k = self.turned(q, k, tables)
            truth, _ = exact(q, k, v, mask=rows.within(self.sight), scale=self.scale)
        found, _ = self.mix(q, k, v, rows, None)
        gap = torch.where(rows.visible[..., None, None], found.float() - truth.float(), 0)
        error = sample_mean(gap.square().mean((2, 3)), rows.visible, rows.document)
        return lessons.correct(self.layer, self.linear("o", truth.flatten(2)), error)


def imitators(model: nn.Module) -> list[Mimic]:
    """The converted layers; a ValueError where there are none, or where one had what it cannot mimic."""
    found = [module for module in model.modules() if isinstance(module, Mimic)]
    if not found:
        raise ValueError("no layer of this model mimics softmax attention; give it mixers such as LoLCATs")
    for mimic in found:
        if mimic.cap is not None:
            raise ValueError(
                f"{type(mimic).__name__}: layer {mimic.layer} capped its logits at {mimic.cap:g}, which attention "
                "transfer does not mimic; use a model without capped logits, or train the mixers with the recipe SFT"
            )
    return found


@contextmanager
def lessons(model: nn.Module, *, weight: float = 1.0) -> Iterator[Lessons]:
    """While it lasts, the model's converted layers answer by softmax, and what they would have answered is corrected:
    attention transfer. Freeze all but learned_*, then `with lessons(model) as given: model.loss(batch)[0].backward()`.
    """
    mimics = imitators(model)
    given = Lessons(weight)
    for mimic in mimics:
        mimic.lessons = given
    try:
        yield given
    finally:
        for mimic in mimics:
            mimic.lessons = None
