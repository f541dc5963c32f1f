"""CoordMLP: coordinates worked out by hand, and the only thing that tells equal features apart."""

import math

import pytest
import torch

from gnomon.vlm.connectors.coord_mlp import CoordMLP
from gnomon.vlm.layout import Features


def test_coordinates_of_a_two_by_one_grid():
    found = CoordMLP(octaves=1).coordinates(torch.tensor([[0, 0], [1, 0]]), (2, 1))
    # one column: u = 0; two rows: v = -1/2, 1/2
    expected = [[0, -0.5, 0, math.sin(-math.pi / 2), 1, 0], [0, 0.5, 0, math.sin(math.pi / 2), 1, 0]]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


def test_equal_features_differ_by_place_alone():
    torch.manual_seed(0)
    connector = CoordMLP()
    connector.setup({"vision": 8}, 16)
    tokens = torch.randn(1, 1, 8).expand(1, 6, 8)
    out = connector({"vision": Features(tokens, [(2, 3)])}).tokens[0]
    assert torch.pdist(out).min() > 1e-3
    with torch.no_grad():
        connector.layers[0].weight[:, 8:] = 0
    out = connector({"vision": Features(tokens, [(2, 3)])}).tokens[0]
    torch.testing.assert_close(out, out[:1].expand_as(out))


def test_grids_of_a_padded_batch_do_not_touch():
    torch.manual_seed(0)
    connector = CoordMLP()
    connector.setup({"vision": 8}, 16)
    tokens = torch.randn(2, 6, 8)
    both = connector({"vision": Features(tokens, [(2, 3), (1, 2)])}).tokens
    alone = connector({"vision": Features(tokens[1:, :2], [(1, 2)])}).tokens
    torch.testing.assert_close(both[1:, :2], alone)


def test_negative_octaves():
    with pytest.raises(ValueError, match="octaves -1 is negative"):
        CoordMLP(octaves=-1)
