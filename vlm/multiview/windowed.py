"""WindowedAggregator: the blocks of HorizonStream over the views of one scene, and what a stream of them keeps.

Its parameters carry the names of the published weights.

Shapes: S views, V views of a window, M pairs of a view and one it sees, P patches and the metric token before them,
X pose tokens, T tokens of one view (P + its pairs * X), H heads, D head width, C width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.multiview import rope3d
from gnomon.vlm.multiview.block import Attention, Block
from gnomon.vlm.multiview.delta_memory import Memory, MemoryBlock

KeysValues = tuple[Tensor, Tensor]
"""(V,H,P,D) of the patches of views."""


@dataclass
class Stream:
    """What one scene's next views need of those before: as much after two windows as after ten thousand views.

    seen     how many views there were
    within, across  of the frame and global blocks, by layer: the last views of the window that is to come
    memory   by layer
    camera   (3,4) of the last view; None where cameras were not asked for
    """

    seen: int = 0
    within: dict[int, KeysValues] = field(default_factory=dict)
    across: dict[int, KeysValues] = field(default_factory=dict)
    memory: dict[int, Memory] = field(default_factory=dict)
    camera: Tensor | None = None


@dataclass
class Streamed:
    """layers {i: (S,P,2C)}; pose (S,window,2C) of the first pose token, right-aligned, and which of them are there."""

    layers: dict[int, Tensor]
    pose: Tensor
    there: Tensor

    @property
    def own_pose(self) -> Tensor:
        return self.pose[:, -1]


class GatedAttention(Attention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.gate_proj = nn.Linear(width, heads)
        nn.init.zeros_(self.gate_proj.weight)
        nn.init.constant_(self.gate_proj.bias, 2.0)

    def gate(self, x: Tensor) -> Tensor:
        """(I,H,1,1) of sequences (I,T,C)."""
        return self.gate_proj(x.mean(1)).sigmoid()[..., None, None]


class WindowedAggregator(nn.Module):
    """patch_embed turns normalised pictures (S,3,H,W) into patches (S,N,C)."""

    def __init__(
        self,
        patch_embed: nn.Module,
        *,
        width: int,
        depth: int,
        heads: int,
        window: int,
        period: int,
        pose_tokens: int,
        memory_layers: Sequence[int],
    ) -> None:
        super().__init__()
        self.window, self.period, self.head_width = window, period, width // heads
        self.patch_embed = patch_embed
        self.frame_blocks = nn.ModuleList(_gated(width, heads) for _ in range(depth))
        self.global_blocks = nn.ModuleList(_gated(width, heads) for _ in range(depth))
        self.global_gla_blocks = nn.ModuleDict()
        for layer in memory_layers:
            if not 0 <= layer < depth:
                raise ValueError(f"there is no layer {layer} to put a memory before; choose 0 to {depth - 1}")
            self.global_gla_blocks[str(layer)] = block = MemoryBlock(width, heads)
            # all but the attention begins like the block behind it
            block.load_state_dict(self.global_blocks[layer].state_dict(), strict=False)
        # of the view itself, and of those before it
        self.pose_token = nn.Parameter(1e-6 * torch.randn(2, pose_tokens, width))
        self.metric_readout_token = nn.Parameter(1e-6 * torch.randn(1, 1, width))

    def forward(
        self, images: Tensor, grid: tuple[int, int], stream: Stream, *, layers: Collection[int]
    ) -> tuple[Streamed, Stream]:
        """Of at least one view; `stream` is left as it is."""
        views, device = len(images), images.device
        plan = _Plan(views, min(stream.seen, self.window - 1), self.window)
        looked = torch.tensor(plan.looked, device=device)
        slots = self.pose_token[1].repeat(len(looked), 1, 1)
        slots[plan.own] = self.pose_token[0]
        patches = torch.cat([self.metric_readout_token.expand(views, -1, -1), self.patch_embed(images)], dim=1)
        places = rope3d.positions(self._steps(stream.seen, views, device), grid, 1)
        rope = rope3d.tables(places, self.head_width)
        # pose tokens stand nowhere: cosine 1, sine 0
        still = rope[0].new_ones(*slots.shape[:2], self.head_width)
        whole = (plan.join(rope[0], still), plan.join(rope[1], 0 * still))
        after, found = Stream(stream.seen + views, camera=stream.camera), {}
        for layer, (frame, across) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            patches, (keys, values) = _within(frame, patches, rope, stream.within.get(layer))
            after.within[layer] = _last(keys, values, self.window)
            slots = _look(frame, slots, keys[looked], values[looked])
            within, within_slots = patches, slots[:, 0]
            tokens = plan.join(patches, slots)[None]
            if (name := str(layer)) in self.global_gla_blocks:
                tokens, kept = self.global_gla_blocks[name](tokens, stream.memory.get(layer))
                after.memory[layer] = {key: value.detach() for key, value in kept.items()}
            tokens, (keys, values) = _across(across, tokens, whole, stream.across.get(layer), plan, patches, slots)
            after.across[layer] = _last(keys, values, self.window)
            patches, slots = plan.part(tokens[0], patches, slots)
            if layer in layers:
                found[layer] = torch.cat([within, patches], dim=-1)
        there = torch.tensor([[slot < count for slot in range(self.window)] for count in plan.counts], device=device)
        there = there.flip(1)
        pose = patches.new_zeros(*there.shape, 2 * patches.shape[2])
        pose[there] = torch.cat([within_slots, slots[:, 0]], dim=-1)
        return Streamed(found, pose, there), after

    def _steps(self, seen: int, views: int, device: torch.device) -> Tensor:
        """(S,) time; it begins again with the first view that has a whole window before it, and then every period."""
        step = torch.arange(seen, seen + views, device=device)
        return torch.where(step < self.window, step, (step - self.window) % self.period)


class _Plan:
    """Which of the kept and the new views each new view sees.

    spans   (S) which ones. counts (S) how many. looked (M) the same, one view's after the other
    own     (S) where in M each view sees itself
    """

    def __init__(self, views: int, kept: int, window: int) -> None:
        ends = range(kept + 1, kept + views + 1)
        self.spans = [range(max(0, end - window), end) for end in ends]
        self.counts = [len(span) for span in self.spans]
        self.looked = [view for span in self.spans for view in span]
        self.own = (torch.tensor(self.counts).cumsum(0) - 1).tolist()

    def join(self, patches: Tensor, slots: Tensor) -> Tensor:
        """(all T,...) one view after the other: its patches (S,P,...) and then its pose tokens (M,X,...)."""
        poses = (part.flatten(0, 1) for part in slots.split(self.counts))
        return torch.cat([part for view in zip(patches, poses) for part in view])

    def part(self, tokens: Tensor, patches: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Back to the shapes of patches and slots."""
        lengths = [n for count in self.counts for n in (patches.shape[1], count * slots.shape[1])]
        parts = tokens.split(lengths)
        return torch.stack(parts[::2]), torch.cat(parts[1::2]).view(slots.shape)

    def lengths(self, patches: Tensor, slots: Tensor) -> list[int]:
        """(S) the T of each view."""
        return [patches.shape[1] + count * slots.shape[1] for count in self.counts]


def _within(block: Block, patches: Tensor, rope: rope3d.Rope, kept: KeysValues | None) -> tuple[Tensor, KeysValues]:
    """Patches of each view among themselves; keys and values of the kept and of these views."""
    mine = []

    def attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = _turned(q, rope), _turned(k, rope)
        mine.extend((k, v))
        return F.scaled_dot_product_attention(q, k, v) * block.attn.gate(x)

    patches = block(patches, attend=attend)
    return patches, _joined(kept, mine)


def _look(block: Block, slots: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Pose tokens (M,X,C) among themselves and at the patches (M,H,P,D) of the view that each belongs to."""

    def attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        return F.scaled_dot_product_attention(q, k, v) * block.attn.gate(x)

    return block(slots, attend=attend)


def _across(
    block: Block,
    tokens: Tensor,
    rope: rope3d.Rope,
    kept: KeysValues | None,
    plan: _Plan,
    patches: Tensor,
    slots: Tensor,
) -> tuple[Tensor, KeysValues]:
    """All tokens (1, all T, C) of a view among themselves and at the patches of the views that it sees."""
    lengths, count, every = plan.lengths(patches, slots), patches.shape[1], []

    def attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        qs, ks, vs = (part.split(lengths, dim=2) for part in (_turned(q, rope), _turned(k, rope), v))
        every.extend(_joined(kept, [torch.cat([part[:, :, :count] for part in parts]) for parts in (ks, vs)]))
        outputs = []
        for span, own, query, *new in zip(plan.spans, x.split(lengths, dim=1), qs, ks, vs):
            # the view itself is the last of its span, and there with all its tokens
            before = (part[span.start : span.stop - 1, None].unbind(0) for part in every)
            keys, values = (torch.cat([*old, mine], dim=2) for old, mine in zip(before, new))
            outputs.append(F.scaled_dot_product_attention(query, keys, values) * block.attn.gate(own))
        return torch.cat(outputs, dim=2)

    return block(tokens, attend=attend), (every[0], every[1])


def _gated(width: int, heads: int) -> Block:
    block = Block(width, heads)
    block.attn = GatedAttention(width, heads)
    return block


def _turned(x: Tensor, rope: rope3d.Rope) -> Tensor:
    """(...,T,D); tables of views, (S,T,D), are for all heads."""
    cos, sin = (table[:, None] if table.ndim == 3 else table for table in rope)
    return rope3d.rotate(x, (cos, sin)).to(x.dtype)


def _joined(kept: KeysValues | None, new: Sequence[Tensor]) -> KeysValues:
    return (new[0], new[1]) if kept is None else tuple(torch.cat(pair) for pair in zip(kept, new))


def _last(keys: Tensor, values: Tensor, window: int) -> KeysValues:
    """Of the views that the next one sees. Copies: a slice would keep everything it is cut from."""
    return tuple(x[max(0, len(x) - window + 1) :].detach().clone() for x in (keys, values))
