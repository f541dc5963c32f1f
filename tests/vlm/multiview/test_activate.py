import math

import torch

from gnomon.vlm.multiview.activate import camera, depth, inverse_log, points


def test_inverse_log():
    y = torch.tensor([-100.0, -2.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    found = inverse_log(y)
    expected = torch.tensor([-math.expm1(100), -math.expm1(2), 0.0, math.expm1(2)], dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected)
    (slope,) = torch.autograd.grad(found.sum(), y)
    torch.testing.assert_close(slope, y.detach().abs().exp())


def test_depth_and_points():
    value, sure = depth(torch.tensor([[0.0, 0.0], [math.log(3), math.log(4)]]))
    torch.testing.assert_close(value, torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(sure, torch.tensor([2.0, 5.0]))
    place, sure = points(torch.tensor([0.0, math.log(2), -math.log(2), 0.0]))
    torch.testing.assert_close(place, torch.tensor([0.0, 1.0, -1.0]))
    assert sure.item() == 2


def test_fields_of_view_are_not_below_zero():
    assert camera(torch.tensor([-1.0] * 8 + [2.0])).tolist() == [-1.0] * 7 + [0.0, 2.0]
