"""What every rotation representation promises; the members are whatever stands in vlm/heads."""

from __future__ import annotations

import importlib
from pathlib import Path

import properties
import pytest
import torch
from scipy.spatial.transform import Rotation as Reference
from torch import Tensor

from gnomon.vlm.heads import base
from gnomon.vlm.heads.base import Rotation, frobenius, geodesic
from gnomon.vlm.part import build

LIMIT = {torch.float32: 2e-6, torch.float64: 1e-14}


def members() -> list[type[Rotation]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.heads.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, Rotation) and cls is not Rotation]
    return found


every = pytest.mark.parametrize("cls", members(), ids=lambda cls: cls.__name__)
either = pytest.mark.parametrize("dtype", LIMIT, ids=str)


def known(count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Rotations by scipy, with some by exactly pi and some by next to nothing among them."""
    turns = Reference.random(count, random_state=seed)
    special = [[torch.pi, 0, 0], [0, torch.pi, 0], [0, 0, torch.pi], [0, 0, 0], [1e-7, 0, 0], [torch.pi - 1e-7, 0, 0]]
    return torch.cat([torch.tensor(r.as_matrix()) for r in (turns, Reference.from_rotvec(special))]).to(dtype)


def awkward(size: int, dtype: torch.dtype) -> Tensor:
    """Zero, tiny and huge inputs, some with a zero half, and many whose halves are parallel, exactly or nearly."""
    draw = torch.Generator().manual_seed(0)
    some = torch.randn(size, generator=draw)
    first, last = some.clone(), some.clone()
    first[: size // 2] = 0
    last[2:] = 0
    rows = [torch.zeros(size), 1e-30 * some, 1e-9 * some, 1e6 * some, first, last]
    half = torch.randn(200, 3, generator=draw)
    for factor in (1, -0.7):
        for slant in (0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
            other = factor * half + slant * torch.randn(200, 3, generator=draw)
            rows += torch.cat([half, other], dim=1)[:, :size]
    return torch.stack(rows).to(dtype)


def check_rotation(found: Tensor, limit: float) -> None:
    eye = torch.eye(3, dtype=found.dtype)
    assert (found.mT @ found - eye).abs().max() < limit
    assert (torch.linalg.det(found) - 1).abs().max() < limit


@every
@either
def test_any_numbers_are_a_rotation(cls, dtype):
    x = torch.randn(5, 400, cls.size, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = cls().to_matrix(x)
    assert found.shape == (5, 400, 3, 3) and found.dtype == dtype
    check_rotation(found, LIMIT[dtype])
    check_rotation(cls().to_matrix(awkward(cls.size, dtype)), LIMIT[dtype])


@every
@either
def test_there_and_back(cls, dtype):
    wanted = known(500, dtype)
    numbers = cls().from_matrix(wanted)
    assert numbers.shape == (506, cls.size) and numbers.dtype == dtype
    torch.testing.assert_close(cls().to_matrix(numbers), wanted, atol=LIMIT[dtype], rtol=0)


@every
@either
def test_gradients_are_finite_everywhere(cls, dtype):
    x = awkward(cls.size, dtype).requires_grad_()
    wanted = known(1, dtype)[0]
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = cls().to_matrix(x)
    ((found * weights).sum() + geodesic(found, wanted).sum() + frobenius(found, wanted).sum()).backward()
    assert x.grad.isfinite().all()


@every
def test_gradient_is_that_of_differences(cls):
    x = torch.randn(4, cls.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.autograd.gradcheck(cls().to_matrix, (x,))
    wanted = known(3, torch.float64)[:4]
    torch.autograd.gradcheck(lambda x: geodesic(cls().to_matrix(x), wanted), (x,))


@every
def test_turning_the_frame_turns_the_reading(cls):
    """Reading Q R back is Q times reading R back: no frame is preferred."""
    frames, some = properties.rotations(4), known(20, torch.float64)
    properties.assert_equivariant(
        lambda r: cls().to_matrix(cls().from_matrix(r)), frames, torch.matmul, torch.matmul, some, atol=1e-14
    )


@every
def test_half_precision_is_read_in_float32(cls):
    assert cls().to_matrix(torch.ones(2, cls.size, dtype=torch.bfloat16)).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted = known(5, torch.float32)
        again = cls().to_matrix(cls().from_matrix(wanted))
        assert geodesic(again, wanted).max() < 2e-6


@every
def test_wrong_width_is_refused(cls):
    with pytest.raises(ValueError, match=f"{cls.size} numbers"):
        cls().to_matrix(torch.zeros(2, cls.size + 1))


@every
def test_spec_makes_the_same(cls):
    assert type(build(cls().spec(), Rotation)) is cls


@either
def test_geodesic_is_the_angle(dtype):
    axis = torch.nn.functional.normalize(torch.randn(3, generator=torch.Generator().manual_seed(0)).double(), dim=0)
    angles = torch.tensor([0, 1e-6, 1e-3, 0.5, 2.0, torch.pi - 1e-3, torch.pi - 1e-6, torch.pi], dtype=torch.float64)
    turned = torch.tensor(Reference.from_rotvec((angles[:, None] * axis).numpy()).as_matrix())
    start = known(1, torch.float64)[0]
    found = geodesic((start @ turned).to(dtype), start.to(dtype))
    assert (found - angles).abs().max() < {torch.float32: 5e-7, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(frobenius(start @ turned, start), 8 * torch.sin(angles / 2) ** 2)


def test_geodesic_has_finite_gradients_at_its_ends():
    eye = torch.eye(3)
    for turn in (eye, torch.diag(torch.tensor([1.0, -1.0, -1.0]))):
        x = turn.clone().requires_grad_()
        geodesic(x, eye).backward()
        assert x.grad.isfinite().all()
