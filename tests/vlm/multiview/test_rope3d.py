"""Positions in time, row and column."""

from __future__ import annotations

import properties
import torch

from gnomon.vlm.multiview import rope3d


def test_places():
    places = rope3d.positions(torch.tensor([4, 0]), (1, 2), 1)
    assert places.tolist() == [[[0, 0, 0], [5, 1, 1], [5, 1, 2]], [[0, 0, 0], [1, 1, 1], [1, 1, 2]]]


def test_thirds_of_a_head():
    """64 channels are 21, 21 and 22; the last one of 21 does not turn."""
    x = torch.randn(64)
    for axis, span in enumerate([(0, 20), (21, 41), (42, 64)]):
        place = torch.zeros(1, 3)
        place[0, axis] = 3
        changed = (rope3d.rotate(x[None], rope3d.tables(place, 64))[0] - x).abs() > 1e-6
        assert changed.nonzero()[:, 0].tolist() == list(range(*span))


def test_the_first_pair_turns_by_the_place_itself():
    place, x = torch.tensor([[2.0, 0, 0]]), torch.zeros(1, 12)
    x[0, 0] = 1
    turned = rope3d.rotate(x, rope3d.tables(place, 12))[0]
    angle = torch.tensor(2.0)
    # four channels of time: 0 goes with 2, and 1 with 3
    torch.testing.assert_close(turned[:4], torch.stack([angle.cos(), angle * 0, angle.sin(), angle * 0]))


def test_only_differences_count():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 16, generator=generator)
    one, other, shift = (torch.tensor([place]) for place in ([3, 1, 4], [1, 5, 9], [2, 6, 5]))

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return rope3d.rotate(q, rope3d.tables(a, 16)) @ rope3d.rotate(k, rope3d.tables(b, 16)).T

    torch.testing.assert_close(product(one, other), product(one + shift, other + shift), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(product(one, other), product(one, other + shift), atol=1e-2)


def test_a_picture_on_its_side_is_another_picture():
    """Of 12 channels the thirds are of time, rows and columns: transposed, the last two have changed places."""
    x = torch.randn(12, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rope = rope3d.tables(rope3d.positions(torch.tensor([2]), (4, 4), 0)[0], 12)
    swapped = [*range(4), *range(8, 12), *range(4, 8)]

    def placed(x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(1).mT
        turned = rope3d.rotate(tokens, rope)
        return ((turned @ turned.mT).softmax(-1) @ tokens).mean(0)

    properties.assert_not_invariant(placed, 4, properties.d4, x)
    on_its_side = lambda k, x: properties.d4(k, x)[swapped]  # noqa: E731
    properties.assert_equivariant(placed, [4], on_its_side, lambda _, y: y[swapped], x, atol=1e-6)
