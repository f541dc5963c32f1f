import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as Reference

from gnomon.vlm.multiview.pose import decode, encode


def cameras(dtype: torch.dtype, count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Extrinsics by scipy and intrinsics with the principal point in the middle of 48 x 80 pixels."""
    rng = np.random.default_rng(0)
    turns = torch.tensor(Reference.random(count, random_state=1).as_matrix())
    extrinsics = torch.cat([turns, torch.tensor(rng.normal(size=(count, 3, 1)) * 3)], dim=-1)
    intrinsics = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = torch.tensor(rng.uniform(20, 400, size=(2, count)))
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = 40, 24
    shape = (2, count // 2)
    return extrinsics.unflatten(0, shape).to(dtype), intrinsics.unflatten(0, shape).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(dtype):
    extrinsics, intrinsics = cameras(dtype)
    encoding = encode(extrinsics, intrinsics, size=(48, 80))
    assert encoding.shape == (2, 20, 9) and encoding.dtype == dtype
    assert (encoding[..., 6] >= 0).all()
    found, lens = decode(encoding, size=(48, 80))
    torch.testing.assert_close(found, extrinsics, atol=1e-6, rtol=0)
    torch.testing.assert_close(lens, intrinsics, atol=0, rtol=1e-5)


def test_by_hand():
    """The first camera is 2 from the origin, 90 degrees high (fy = H/2) and 2 atan(1/2) wide (fx = W)."""
    extrinsics = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]])
    intrinsics = torch.tensor([[60.0, 0, 30], [0, 20, 20], [0, 0, 1]])
    wanted = torch.tensor([0, 0, 2, 0, 0, 0, 1, math.pi / 2, 2 * math.atan(0.5)])
    torch.testing.assert_close(encode(extrinsics, intrinsics, size=(40, 60)), wanted)
    # a quarter turn about y, of a quaternion three times too long
    turned = wanted.clone()
    turned[3:7] = torch.tensor([0, 3.0, 0, 3.0])
    found, _ = decode(turned, size=(40, 60))
    torch.testing.assert_close(found[:, :3], torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]), atol=1e-6, rtol=0)


def test_whatever_a_head_puts_out_is_a_camera():
    guess = torch.zeros(3, 9)
    guess[1, 7:], guess[2, 3:] = 10.0, torch.tensor([1e-12, 0, 0, 0, 1.0, 1.0])
    guess.requires_grad_()
    extrinsics, intrinsics = decode(guess, size=(32, 32))
    eye = torch.eye(3)
    torch.testing.assert_close(extrinsics[..., :3].mT @ extrinsics[..., :3], eye.expand(3, 3, 3))
    assert intrinsics.isfinite().all() and (intrinsics.diagonal(dim1=-2, dim2=-1) > 0).all()
    (extrinsics.sum() + intrinsics.sum()).backward()
    assert guess.grad.isfinite().all()


def test_refusals():
    with pytest.raises(ValueError, match="9 numbers, not 8"):
        decode(torch.zeros(2, 8), size=(4, 4))
    with pytest.raises(ValueError, match="extrinsics"):
        encode(torch.zeros(2, 4, 4), torch.zeros(2, 3, 3), size=(4, 4))
