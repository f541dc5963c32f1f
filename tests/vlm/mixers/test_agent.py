"""Agent: the layer in plain matrices, with the class token apart, and tables that fit any grid."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.agent import Agent
from gnomon.vlm.vision_mixing import Grid, layout_of


def layout(rows: int, columns: int, prefix: int) -> TokenLayout:
    return layout_of(2, Grid(prefix, (rows, columns)), torch.device("cpu"))


@torch.no_grad()
def test_the_rule_in_matrices(seated):
    mixer = seated(Agent(agents=(2, 2), table=4), keys=4, prefix=1)
    # a grid of the tables' own size: nothing is stretched
    x = torch.randn(2, 17, 20)
    found, memory = mixer(x, layout(4, 4, 1))
    assert memory is None
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 17, 4, 6).transpose(1, 2) for n in "qkv")
    cells = q[:, :, 1:].unflatten(2, (4, 4))
    agents = torch.stack([cells[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], 2)

    def bias(way: str) -> torch.Tensor:
        on_grid = sum(getattr(mixer, f"{way}_{name}") for name in ("cells", "rows", "columns"))
        return torch.cat([getattr(mixer, f"{way}_first"), on_grid.flatten(2)], -1)

    gathered = (agents @ k.mT * 6**-0.5 + bias("gather")).softmax(-1) @ v
    o = (q @ agents.mT * 6**-0.5 + bias("spread").mT).softmax(-1) @ gathered
    image = v[:, :, 1:].transpose(1, 2).flatten(2).mT.unflatten(2, (4, 4))
    local = F.conv2d(image, mixer.local, padding=1, groups=24).flatten(2).mT
    o = o.transpose(1, 2).flatten(2) + F.pad(local, (0, 0, 1, 0))
    torch.testing.assert_close(found, mixer.o_proj(o), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", [0, 3])
def test_any_grid_will_do_and_all_parameters_learn(seated, prefix):
    mixer = seated(Agent(agents=(2, 3)), keys=4, prefix=prefix)
    for rows, columns in ((5, 3), (2, 8)):
        mixer.zero_grad()
        found, _ = mixer(torch.randn(2, prefix + rows * columns, 20), layout(rows, columns, prefix))
        found.square().sum().backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in mixer.parameters() if p is not mixer.k_proj.bias)
