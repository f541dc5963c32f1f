"""What symmetry asks of a function, as checks.

A group acts on the input by `act(g, x)` and on the output by `react(g, y)`. Inputs and outputs are tensors. `atol` is
relative to the largest entry that is compared; 0 asks for equality bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

G = TypeVar("G")
Map = Callable[[Tensor], Tensor]
Act = Callable[[G, Tensor], Tensor]


def gap(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, over the largest wanted entry (or 1, if that is larger)."""
    assert found.shape == wanted.shape, f"shapes {tuple(found.shape)} and {tuple(wanted.shape)} differ"
    assert found.isfinite().all() and wanted.isfinite().all(), "not finite"
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))


def assert_invariant(f: Map, group: Iterable[G], act: Act, x: Tensor, *, atol: float = 1e-10) -> None:
    """f(g x) = f(x)."""
    assert_equivariant(f, group, act, lambda _, y: y, x, atol=atol)


def assert_equivariant(f: Map, group: Iterable[G], act: Act, react: Act, x: Tensor, *, atol: float = 1e-10) -> None:
    """f(g x) = g f(x)."""
    y = f(x)
    for k, g in enumerate(group):
        error = gap(f(act(g, x)), react(g, y))
        assert error <= atol, f"element {k}: f(g x) and g f(x) are {error:.3g} apart, limit {atol:g}"


def assert_not_invariant(f: Map, g: G, act: Act, x: Tensor, *, least: float = 1e-3) -> None:
    """f(g x) differs clearly from f(x): a guard against functions that see nothing."""
    error = gap(f(act(g, x)), f(x))
    assert error >= least, f"f(g x) and f(x) are only {error:.3g} apart, at least {least:g} expected"


def assert_closed(f: Map, group: Sequence[G], act: Act, react: Act, x: Tensor, *, atol: float = 1e-10) -> None:
    """Equivariance under ever longer compositions of the elements: the error does not grow beyond the limit."""
    y, errors = f(x), []
    for g in group:
        x, y = act(g, x), react(g, y)
        errors.append(gap(f(x), y))
    assert max(errors) <= atol, f"error {max(errors):.3g} after {errors.index(max(errors)) + 1} steps, limit {atol:g}"


def assert_permutes(
    f: Map, x: Tensor, *, dim: int = 0, out: int | None = None, atol: float = 1e-10, seed: int = 0
) -> None:
    """Permuting x along `dim` permutes f(x) along `out`, or changes nothing when `out` is None."""
    draw = torch.Generator().manual_seed(0)
    group = [torch.arange(x.shape[dim]).flip(0), torch.randperm(x.shape[dim], generator=draw)]
    react = (lambda _, y: y) if out is None else (lambda order, y: y.index_select(out, order))
    assert_equivariant(f, group, lambda order, x: x.index_select(dim, order), react, x, atol=atol)


def assert_ignores(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask: Tensor, *, atol: float = 1e-10) -> None:
    """f(x, mask) does not depend on what stands where the mask is off."""
    other = torch.where(mask.expand_as(x), x, 100 * torch.ones_like(x))
    error = gap(f(other, mask), f(x, mask))
    assert error <= atol, f"what the mask hides moves the result by {error:.3g}, limit {atol:g}"


def assert_shifts(f: Map, x: Tensor, *, stride: int = 1, atol: float = 1e-10) -> None:
    """A circular shift of images (...,H,W) by a multiple of the stride shifts the output; by anything else it must not.

    A stem of stride 2 that commuted with a shift of 1 would throw away where things are.
    """
    roll = torch.roll
    for k in (1, 2):
        for axis in (-1, -2):
            error = gap(f(roll(x, k * stride, axis)), roll(f(x), k, axis))
            assert error <= atol, f"shift by {k * stride} along {axis}: {error:.3g} apart, limit {atol:g}"
    if stride > 1:
        missed = gap(f(roll(x, 1, -1)), f(x))
        assert missed > atol, "a shift by one pixel, less than the stride, goes unnoticed"


def d4(k: int, x: Tensor) -> Tensor:
    """Element k of the square's symmetries on (...,n,n): k % 4 quarter turns, after a transposition for k >= 4."""
    return torch.rot90(x.mT if k >= 4 else x, k % 4, (-2, -1))


def rotations(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(count,3,3) drawn uniformly, the identity first and the second one's inverse last."""
    draw = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=draw, dtype=torch.float64))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    q = q * torch.linalg.det(q)[:, None, None]
    q[0] = torch.eye(3)
    if count > 2:
        q[-1] = q[1].mT
    return q.to(dtype)


def rigid(count: int, *, seed: int = 0, similar: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    """(count,4,4) of SE(3), or of Sim(3) with scales between 1/2 and 2: the linear part is scale times rotation."""
    draw = torch.Generator().manual_seed(seed + 1)
    scale = 2 ** (2 * torch.rand(count, 1, 1, generator=draw, dtype=torch.float64) - 1) if similar else 1
    whole = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    whole[:, :3, :3] = scale * rotations(count, seed=seed)
    whole[1:, :3, 3] = torch.randn(count - 1, 3, generator=draw, dtype=torch.float64)
    return whole.to(dtype)


def move(g: Tensor, points: Tensor) -> Tensor:
    """Points (...,3) by a 4x4 of `rigid`."""
    return points @ g[:3, :3].mT + g[:3, 3]


def reframe(g: Tensor, extrinsics: Tensor) -> Tensor:
    """Cameras (...,3,4), camera-from-world, when the world's points move by g of SE(3) or Sim(3).

    Under a similarity the camera frame grows with the world, so that the rotation stays one.
    """
    scale = torch.linalg.det(g[:3, :3]) ** (1 / 3)
    turned = extrinsics[..., :3] @ g[:3, :3].mT / scale
    return torch.cat([turned, scale * extrinsics[..., 3:] - (turned @ g[:3, 3])[..., None]], dim=-1)


def reynolds(f: Map, group: Sequence[G], act: Act) -> Map:
    """f averaged over a finite group: invariant under it, whatever f is."""
    return lambda x: torch.stack([f(act(g, x)) for g in group]).mean(0)


def reynolds_gap(f: Map, group: Sequence[G], act: Act, x: Tensor) -> float:
    """How far f is from its average over the group; 0 for an invariant function, else a number to keep an eye on."""
    return gap(f(x), reynolds(f, group, act)(x))


def warp_rate(f: Map, x: Tensor, *, strength: float = 0.02) -> float:
    """How far f(x) moves for a smooth warp of images (B,C,H,W), over the warp's largest gradient; a number to bound.

    The warp shifts along x by a sine wave along y, and the other way round, `strength` of the image high.
    """
    axes = [torch.linspace(-1, 1, n, dtype=x.dtype) for n in x.shape[-2:]]
    y, across = torch.meshgrid(*axes, indexing="ij")
    shift = 2 * strength
    grid = torch.stack([across + shift * torch.sin(torch.pi * y), y + shift * torch.sin(torch.pi * across)], dim=-1)
    warped = grid_sample(x, grid.expand(len(x), *grid.shape), padding_mode="reflection", align_corners=True)
    return gap(f(warped), f(x)) / (shift * torch.pi)
