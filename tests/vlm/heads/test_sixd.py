import torch

from gnomon.vlm.heads.sixd import SixD


def test_by_hand():
    # x along (0,2,0); of (1,5,0) what is not along x is (1,0,0); their product is -z
    found = SixD().to_matrix(torch.tensor([0.0, 2.0, 0.0, 1.0, 5.0, 0.0]))
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, -1]]


def test_turns_with_its_two_vectors_and_ignores_their_lengths():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 2, 3, dtype=torch.float64, generator=draw)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=draw))[0]
    turn = turn * torch.linalg.det(turn)
    plain = SixD().to_matrix(x.flatten(1))
    torch.testing.assert_close(SixD().to_matrix((x @ turn.mT).flatten(1)), turn @ plain, atol=1e-14, rtol=0)
    stretch = 1e-6 + 100 * torch.rand(50, 2, 1, dtype=torch.float64, generator=draw)
    torch.testing.assert_close(SixD().to_matrix((x * stretch).flatten(1)), plain, atol=1e-14, rtol=0)


def test_full_turn_has_no_jump():
    """The reason for six numbers: targets of a turn by 360 degrees, end to start, change by no more than its steps."""
    angle = torch.linspace(0, 2 * torch.pi, 361)[:, None, None]
    generator = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])
    targets = SixD().from_matrix(torch.linalg.matrix_exp(angle * generator))
    assert targets.diff(dim=0).norm(dim=-1).max() < 0.03
