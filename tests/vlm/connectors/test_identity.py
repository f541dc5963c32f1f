import pytest
import torch

from gnomon.vlm.connectors.identity import Identity
from gnomon.vlm.layout import Features


def test_tokens_pass_as_they_are():
    bridge = Identity()
    bridge.setup({"vision": 6}, 6)
    given = Features(torch.randn(2, 6, 6), [(2, 3)] * 2)
    assert bridge({"vision": given}) is given
    assert not list(bridge.parameters())


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"6 wide and the language model's 10.* linear"):
        Identity().setup({"vision": 6}, 10)
