"""The reference view: which one of a scene the others are told apart from.

Shapes: B scenes, S views, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHOICES = ("first", "middle", "saddle_balanced")


def choose(rule: str, valid: Tensor, states: Tensor) -> Tensor:
    """(B,) of views that are there (B,S), from a state (B,S,C) of each view; fewer than three leave it to the first.

    saddle_balanced: the view that is nearest to the middle, 0.5, of three numbers, each scaled to 0..1 over the scene:
    mean cosine to the other views, length, and variance of the normed state.
    """
    count = valid.sum(1)
    order = torch.where(valid, valid.cumsum(1), 0)
    first = (order == 1).int().argmax(1)
    if rule == "first":
        return first
    if rule == "middle":
        chosen = (order == (count // 2 + 1)[:, None]).int().argmax(1)
    else:
        states = states.float()
        length = states.norm(dim=-1)
        unit = states / length[..., None]
        cosine = (unit @ unit.mT).masked_fill(~valid[:, None], 0).sum(-1) - 1
        numbers = torch.stack([cosine / (count - 1).clamp(min=1)[:, None], length, unit.var(-1)])
        least = numbers.masked_fill(~valid, torch.inf).amin(-1, keepdim=True)
        most = numbers.masked_fill(~valid, -torch.inf).amax(-1, keepdim=True)
        off = ((numbers - least) / (most - least + 1e-8) - 0.5).abs().sum(0)
        chosen = off.masked_fill(~valid, torch.inf).argmin(1)
    return torch.where(count < 3, first, chosen)
