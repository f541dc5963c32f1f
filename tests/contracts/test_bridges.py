"""What every connector promises; the members are whatever stands in vlm/connectors."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from gnomon.vlm.connectors import base
from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.connectors.identity import Identity
from gnomon.vlm.layout import Features
from gnomon.vlm.part import build

IN, OUT = 6, 10


def members() -> list[type[Bridge]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.connectors.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, Bridge) and cls is not Bridge]
    return found


every = pytest.mark.parametrize("cls", members(), ids=lambda cls: cls.__name__)


def made(cls: type[Bridge]) -> Bridge:
    torch.manual_seed(0)
    bridge = cls()
    bridge.setup({"vision": IN}, out_of(cls))
    return bridge


def out_of(cls: type[Bridge]) -> int:
    """What changes nothing keeps the width too."""
    return IN if cls is Identity else OUT


def features(bridge: Bridge, count: int = 2, *, rows: int = 2, columns: int = 3) -> Features:
    """Images of `rows` x `columns` output tokens."""
    grid = (rows * bridge.merge, columns * bridge.merge)
    torch.manual_seed(1)
    return Features(tokens=torch.randn(count, grid[0] * grid[1], IN), grid=[grid] * count)


def test_members_are_found():
    assert {"Linear", "MLP", "PixelShuffle"} <= {cls.__name__ for cls in members()}


@every
def test_width_and_grid(cls: type[Bridge]):
    bridge = made(cls)
    out = bridge({"vision": features(bridge)})
    assert out.tokens.shape == (2, 6, out_of(cls))
    assert out.grid == [(2, 3)] * 2
    assert bool(out.valid.all())


@every
def test_row_of_a_batch_equals_the_image_alone(cls: type[Bridge]):
    bridge = made(cls)
    both = features(bridge)
    alone = Features(tokens=both.tokens[1:], grid=both.grid[1:])
    torch.testing.assert_close(bridge({"vision": both}).tokens[1:], bridge({"vision": alone}).tokens)


@every
def test_tokens_keep_their_places(cls: type[Bridge]):
    """Disturbing a cell changes the token that covers it, and that one most."""
    bridge = made(cls)
    given = features(bridge, 1)
    before = bridge({"vision": given}).tokens.clone()
    width = given.grid[0][1]
    for row, column in ((0, width - 1), (given.grid[0][0] - 1, 0)):
        given.tokens[0, row * width + column] += 3
        moved = (bridge({"vision": given}).tokens - before).norm(dim=-1)[0].argmax()
        assert divmod(int(moved), 3) == (row // bridge.merge, column // bridge.merge)
        given.tokens[0, row * width + column] -= 3


@every
def test_everything_gets_a_gradient(cls: type[Bridge]):
    bridge = made(cls)
    given = features(bridge)
    given.tokens.requires_grad_()
    out = bridge({"vision": given}).tokens
    (out * torch.randn_like(out)).sum().backward()
    assert [name for name, p in bridge.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert bool(given.tokens.grad.any(dim=-1).all())


@every
def test_spec_makes_the_same_bridge(cls: type[Bridge]):
    bridge = made(cls)
    again = build(bridge.spec(), Bridge)
    assert type(again) is cls and again.spec() == bridge.spec() and again.merge == bridge.merge
    again.setup({"vision": IN}, out_of(cls))
    again.load_state_dict(bridge.state_dict())
    given = {"vision": features(bridge)}
    assert torch.equal(again(given).tokens, bridge(given).tokens)


@every
def test_grids_that_do_not_divide_are_refused(cls: type[Bridge]):
    bridge = made(cls)
    if bridge.merge == 1:
        assert bridge({"vision": features(bridge, rows=3, columns=5)}).grid == [(3, 5)] * 2
        return
    odd = Features(tokens=torch.zeros(1, 4 * 5, IN), grid=[(4, 5)])
    with pytest.raises(ValueError, match=r"4 x 5 cells cannot be merged by"):
        bridge({"vision": odd})
