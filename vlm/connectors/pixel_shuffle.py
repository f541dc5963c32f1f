"""PixelShuffle: r x r neighbouring cells become one token, their channels side by side.

Paper:   SmolVLM: Redefining small and efficient multimodal models. arXiv:2504.05299
Rule:    y[i,j] = P(concat over a,b < r of x[r i + a, r j + b]), row of the block first; P linear, or an MLP
Where:   between the vision encoder and the language model
Differs: any grid whose sides r divides, not only squares; depth and bias of P are options
"""

from __future__ import annotations

from torch import Tensor, nn

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Features


class PixelShuffle(Bridge):
    def __init__(self, merge: int = 2, *, depth: int = 1, bias: bool = False) -> None:
        super().__init__()
        if merge < 1 or depth < 1:
            raise ValueError(f"pixel shuffle merge {merge}, depth {depth}: one is too small; use 1 or more")
        self.merge, self.depth, self.bias = merge, depth, bias

    def setup(self, widths: dict[str, int], out: int) -> None:
        layers: list[nn.Module] = [nn.Linear(widths["vision"] * self.merge**2, out, bias=self.bias)]
        for _ in range(self.depth - 1):
            layers += [nn.GELU(), nn.Linear(out, out, bias=self.bias)]
        self.layers = nn.Sequential(*layers)

    def forward(self, parts: dict[str, Features]) -> Features:
        vision = parts["vision"]
        if len(set(vision.grid)) > 1:
            raise ValueError(f"pixel shuffle got grids {vision.grid} in one call; encode images of equal size together")
        height, width = vision.grid[0]
        if height % self.merge or width % self.merge:
            raise ValueError(f"a grid of {height} x {width} cells cannot be merged by {self.merge}; change image_size")
        grid = (height // self.merge, width // self.merge)
        tokens = self.layers(self._shuffle(vision.tokens, *grid))
        return Features(tokens=tokens, grid=[grid] * len(tokens), cls=vision.cls, camera=vision.camera)

    def _shuffle(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """(I, h r w r, C) to (I, h w, r r C)."""
        blocks = tokens.unflatten(1, (h, self.merge, w, self.merge)).transpose(2, 3)
        return blocks.reshape(len(tokens), h * w, -1)
