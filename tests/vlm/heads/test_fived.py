import math

import torch

from gnomon.vlm.heads.fived import FiveD


def test_identity_by_hand():
    """R = I: x = (1,0,0), y = (0,1,0); u = (0 | 0,1,0), so t = (0,1,0), over the constants (0, 1/(sqrt2+1), 0)."""
    numbers = [1.0, 0.0, 0.0, math.sqrt(2) - 1, 0.0]
    torch.testing.assert_close(FiveD().from_matrix(torch.eye(3)), torch.tensor(numbers))
    torch.testing.assert_close(FiveD().to_matrix(torch.tensor(numbers)), torch.eye(3))


def test_numbers_of_rotations_stay_within_one():
    """What the constants are for: each of the five needs about the same range."""
    turns = torch.linalg.qr(torch.randn(2000, 3, 3, generator=torch.Generator().manual_seed(0)))[0]
    turns = turns * torch.linalg.det(turns)[:, None, None]
    assert FiveD().from_matrix(turns).abs().max() <= math.sqrt(2) + 1


def test_numbers_change_smoothly_along_a_full_turn():
    angle = torch.linspace(0, 2 * torch.pi, 721)[:, None, None]
    generator = torch.tensor([[0.0, -0.6, 0.64], [0.6, 0, -0.48], [-0.64, 0.48, 0]])
    numbers = FiveD().from_matrix(torch.linalg.matrix_exp(angle * generator))
    assert numbers.diff(dim=0).norm(dim=-1).max() < 0.05
