"""Tally: how much a fusion changes what it is given, added up call by call, without a graph.

Shapes: I images, N visual tokens, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.vlm.layout import Features


class Tally:
    """sums: norms of the changes and of the visual tokens that were told of geometry; how far the gate was open, and of
    how many tokens; norms and number of the tokens that were added for scenes, and of the text beside them.
    """

    def __init__(self) -> None:
        self._start()

    def told(self, before: Features, after: Tensor, opened: Tensor | None) -> None:
        """A call for images with geometry, and what has `opened` in it."""
        v, real = before.tokens.detach().float(), before.valid
        self._add(0, (after.detach().float() - v).norm(dim=-1) * real, v.norm(dim=-1) * real)
        if opened is not None:
            self._add(2, opened.float() * real, real)

    def added(self, tokens: Tensor, embeds: Tensor, text: Tensor) -> None:
        """Tokens (...,C) for scenes, and embeddings (B,T,C) of sequences in which (B,T) are text."""
        norm = tokens.detach().float().norm(dim=-1)
        self._add(4, norm, torch.ones_like(norm), embeds.detach().float().norm(dim=-1) * text, text)

    def take(self, device: torch.device) -> Tensor:
        """(8,) the sums since the last time."""
        sums = self._sums.to(device)
        self._start()
        return sums

    @staticmethod
    def shares(sums: Tensor) -> dict[str, float]:
        """What sums come to: the mean change over the mean visual token, how far the gate is open, the mean token of a
        scene over the mean one of text. What there is nothing of is left out.
        """
        change, visual, opened, gated, added, slots, text, words = sums.tolist()
        found = {}
        if visual:
            found["fusion_ratio"] = change / visual
        if gated:
            found["fusion_open"] = opened / gated
        if slots and text:
            found["scene_ratio"] = added / slots / (text / words)
        return found

    def _start(self) -> None:
        self._sums = torch.zeros(8, dtype=torch.float64)

    def _add(self, first: int, *values: Tensor) -> None:
        # where the tokens are: a number that is read stalls a GPU
        self._sums = self._sums.to(values[0].device)
        self._sums[first : first + len(values)] += torch.stack([value.sum().double() for value in values])
