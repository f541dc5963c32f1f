import torch
from torch import nn

from gnomon.vlm.multiview.precise import precisely


def test_runs_in_float32_whatever_it_is_given():
    torch.manual_seed(0)
    head = nn.Linear(64, 1)
    x = torch.randn(3, 64).bfloat16()
    expected = head(x.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = precisely(head, x)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_narrow_weights_are_widened_and_stay_as_they_are():
    head, x = nn.Linear(8, 2).bfloat16(), torch.randn(3, 8)
    expected = x @ head.weight.float().T + head.bias.float()
    torch.testing.assert_close(precisely(head, x), expected)
    assert head.weight.dtype == torch.bfloat16


def test_wider_stays_wider():
    assert precisely(nn.Linear(8, 2).double(), torch.randn(3, 8).double()).dtype == torch.float64
