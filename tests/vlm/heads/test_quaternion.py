import torch
from scipy.spatial.transform import Rotation as Reference

from gnomon.vlm.heads.quaternion import Quaternion


def test_equals_scipy():
    turns = Reference.random(300, random_state=0)
    wanted = torch.tensor(turns.as_matrix())
    # scipy's are scalar last too
    torch.testing.assert_close(Quaternion().to_matrix(torch.tensor(turns.as_quat())), wanted, atol=1e-14, rtol=0)
    canonical = torch.tensor(turns.as_quat(canonical=True))
    torch.testing.assert_close(Quaternion().from_matrix(wanted), canonical, atol=1e-14, rtol=0)


def test_sign_and_length_do_not_matter():
    q = torch.randn(20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = Quaternion().to_matrix(q)
    for factor in (-1.0, 7.0, -1e-3):
        torch.testing.assert_close(Quaternion().to_matrix(factor * q), plain, atol=1e-14, rtol=0)


def test_scalar_is_last_and_zero_is_no_turn():
    assert Quaternion().from_matrix(torch.eye(3)).tolist() == [0, 0, 0, 1]
    assert torch.equal(Quaternion().to_matrix(torch.zeros(4)), torch.eye(3))


def test_full_turn_jumps_once():
    """Four numbers cannot be continuous: along 360 degrees the sign of the target flips once."""
    angle = torch.linspace(0, 2 * torch.pi, 362, dtype=torch.float64)
    turns = Reference.from_rotvec(torch.stack([angle * 0, angle * 0, angle], dim=-1).numpy())
    targets = Quaternion().from_matrix(torch.tensor(turns.as_matrix()))
    assert int((targets.diff(dim=0).norm(dim=-1) > 0.5).sum()) == 1
