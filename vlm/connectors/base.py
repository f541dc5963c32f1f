"""Bridge: features in, features out. Connectors and fusions are bridges."""

from __future__ import annotations

from torch import nn

from gnomon.vlm.layout import Features
from gnomon.vlm.part import Part


class Bridge(Part, nn.Module):
    """Constructor arguments are the options; `setup` makes the layers once the widths around it are known.

    `merge` is how many cells per side become one token (pixel shuffle); 1 leaves the grid alone and takes each token by
    itself, wherever in the grid it is (`Features.cells`): tokens may then leave before the connector.
    """

    merge: int = 1

    def setup(self, widths: dict[str, int], out: int) -> None:
        raise NotImplementedError

    def forward(self, parts: dict[str, Features]) -> Features:
        raise NotImplementedError
