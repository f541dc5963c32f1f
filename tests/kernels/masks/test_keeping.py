"""What is kept is made once, and can be used by whatever call comes later."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gnomon.kernels.masks.keeping import once, remembered


def counted():
    made = []

    def make(n: int = 2) -> torch.Tensor:
        made.append(n)
        return torch.zeros(n)

    return make, made


def by_key(make):
    cache = {}
    return lambda n=2: once(cache, ("zeros", n), lambda: make(n))


each = pytest.mark.parametrize("kept", [by_key, remembered])


@each
def test_each_is_made_once(kept):
    make, made = counted()
    find = kept(make)
    assert find(3) is find(3) and find(3) is not find(4) and made == [3, 4]


@each
def test_of_inference_mode_a_backward_pass_takes_it(kept):
    find = kept(counted()[0])
    with torch.inference_mode():
        assert torch.ones(1).is_inference() and not find().is_inference()
    x = torch.ones(2, requires_grad=True)
    (x * find()).sum().backward()
    assert x.grad.tolist() == [0, 0]


@each
def test_of_a_tracing_mode_nothing_is_kept_and_nothing_taken(kept):
    make, made = counted()
    find = kept(make)
    for real in (3, 4):
        if real == 4:
            find(4)
        with FakeTensorMode():
            assert isinstance(find(real), FakeTensor)
        assert type(find(real)) is torch.Tensor
    assert made == [3, 3, 4, 4]
