"""Which heads look at images: attention on visual tokens, head by head, over a few samples.

Shapes: S samples, L layers, H heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gnomon.data.collate import collate
from gnomon.data.example import Example
from gnomon.vlm.compute.yopo import inactive_heads
from gnomon.vlm.model import VLM
from gnomon.vlm.scores import masses


@torch.no_grad()
def attention_shares(model: VLM, examples: Iterable[Example], *, pad_id: int = 0) -> tuple[Tensor, Tensor]:
    """(S,L,H) each: attention on visual tokens and on all others, summed over the queries of a sample's prompt."""
    if model.active or model.compute is not None:
        raise ValueError("the model already reduces visual tokens or what they cost; calibrate the one that does not")
    device = model.mean.device
    visual, other = [], []
    for example in examples:
        batch = collate([example], pad_id=pad_id).to(device)
        with model.lm.recordings() as seen:
            model.read(batch)
        segment = torch.where(batch.layout.is_cell, 0, 1)
        length = segment.shape[1]
        causal = torch.ones(1, length, length, dtype=torch.bool, device=device).tril()
        shares = torch.stack([masses(seen[i], segment, 2, causal).sum(2)[0] for i in range(len(seen))])
        visual.append(shares[..., 0])
        other.append(shares[..., 1])
    if not visual:
        raise ValueError("there is no sample to calibrate on; give at least 1")
    return torch.stack(visual).cpu(), torch.stack(other).cpu()


def check_share(share: float, *, layers: int) -> None:
    """A ValueError for a share of heads that cannot be inactive."""
    most = max(0, layers - 2) / layers
    if not 0 < share <= most:
        raise ValueError(
            f"inactive share {share:g} is not in (0, {most:g}]: all heads of the first two layers stay active"
        )


def inactive(visual: Tensor, other: Tensor, *, share: float) -> tuple[list[list[int]], float]:
    """The lowest threshold at which at least `share` of all heads are inactive, and these heads of each layer."""
    _, layers, heads = visual.shape
    check_share(share, layers=layers)
    # a head becomes inactive at one of the ratios that were seen
    for threshold in (visual / other.clamp(min=1e-12)).flatten().unique().tolist():
        found = inactive_heads(visual, other, threshold=threshold)
        if sum(map(len, found)) >= share * layers * heads:
            return found, threshold
    raise AssertionError("at the largest ratio no head is active")
