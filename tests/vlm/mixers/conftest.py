"""A mixer as a layer has it, and what its tests say again in plain loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gnomon.vlm.mixers.base import Attention, Mixer

WIDTH, HEADS, KEYS, DIM = 20, 4, 2, 6


@pytest.fixture
def seated() -> Callable[..., Mixer]:
    """Sets a mixer up in place of an attention with four heads and two key heads, with weights that matter."""

    def make(mixer: Mixer, *, layer: int = 1, depth: int = 4, heads: int = HEADS, keys: int = KEYS, **more) -> Mixer:
        torch.manual_seed(0)
        sizes = {"q_proj": heads * DIM, "k_proj": keys * DIM, "v_proj": keys * DIM}
        maps: dict[str, nn.Module] = {name: nn.Linear(WIDTH, size) for name, size in sizes.items()}
        maps["o_proj"] = nn.Linear(heads * DIM, WIDTH)
        mixer.setup(Attention(maps, WIDTH, heads, keys, DIM, DIM**-0.5, layer, depth, **more))
        for parameter in mixer.parameters():
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return mixer.eval()

    return make


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 9, WIDTH, generator=torch.Generator().manual_seed(3))
