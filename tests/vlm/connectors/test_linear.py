"""Linear: the affine map, by hand."""

import torch

from gnomon.vlm.connectors.linear import Linear
from gnomon.vlm.layout import Features


def test_by_hand():
    connector = Linear()
    connector.setup({"vision": 2}, 1)
    connector.layer.weight.data = torch.tensor([[2.0, -1.0]])
    connector.layer.bias.data = torch.tensor([0.5])
    out = connector({"vision": Features(tokens=torch.tensor([[[1.0, 3.0], [2.0, 0.0]]]), grid=[(1, 2)])})
    assert out.tokens.tolist() == [[[-0.5], [4.5]]]


def test_bias_is_an_option():
    connector = Linear(bias=False)
    connector.setup({"vision": 2}, 1)
    assert [name for name, _ in connector.named_parameters()] == ["layer.weight"]
