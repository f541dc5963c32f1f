import math

import torch

from gnomon.vlm.multiview.vectors import angle, cross, direction, length, widen


def test_by_hand():
    x = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    assert length(x).tolist() == [5, 2, 0]
    up = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(direction(x, up), torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
    assert cross(x[:1], x[1:2]).tolist() == [[8.0, -6.0, 0.0]]
    torch.testing.assert_close(angle(x, up), torch.tensor([math.acos(0.8), math.pi / 2, 0.0]))


def test_small_angles_are_exact_where_the_arc_cosine_is_not():
    small = 1e-5
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([math.cos(small), math.sin(small), 0.0])
    assert abs(float(angle(a, b)) - small) < 1e-10
    assert abs(float(angle(a, -b)) - (math.pi - small)) < 5e-7
    assert abs(float(torch.acos((a * b).sum())) - small) > 1e-6


def test_gradients_are_finite_at_zero_and_for_parallel_vectors():
    a = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], requires_grad=True)
    b = torch.tensor([[1.0, 0, 0], [2, 0, 0], [-1, 0, 0], [0, 0, 0]], requires_grad=True)
    (angle(a, b).sum() + length(a).sum() + direction(b, b.new_ones(3)).sum()).backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()


def test_widen_keeps_what_is_wide():
    for given in (torch.bfloat16, torch.float16, torch.float32):
        assert widen(torch.zeros(1, dtype=given)).dtype == torch.float32
    assert widen(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
