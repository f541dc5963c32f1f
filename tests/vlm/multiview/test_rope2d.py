import properties
import pytest
import torch

from gnomon.vlm.multiview.rope2d import positions, rotate, tables


def test_positions_count_rows_and_columns_from_one_behind_special_tokens():
    assert positions((2, 3), 2).tolist() == [[0, 0], [0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


def test_each_half_of_a_head_turns_as_complex_numbers():
    """Channels i and i + D/4 of a half are real and imaginary part; their angle is position / 100^(i / (D/4))."""
    torch.manual_seed(0)
    width, places = 16, torch.tensor([[0, 0], [1, 2], [5, 3]])
    x = torch.randn(2, 3, 3, width, dtype=torch.float64)
    got = rotate(x, tables(places, width))
    for half, axis in ((x[..., :8], 0), (x[..., 8:], 1)):
        number = torch.complex(half[..., :4], half[..., 4:])
        angle = places[:, axis, None] / 100 ** (torch.arange(4) / 4)
        turned = number * torch.polar(torch.ones_like(angle), angle)
        expected = torch.cat([turned.real, turned.imag], dim=-1)
        torch.testing.assert_close(got[..., 8 * axis : 8 * axis + 8], expected, atol=1e-6, rtol=1e-6)


def test_special_tokens_stay_as_they_are():
    x = torch.randn(1, 2, 3, 8)
    assert torch.equal(rotate(x, tables(positions((1, 2), 1), 8))[:, :, 0], x[:, :, 0])


def test_products_depend_on_differences_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(a: list[int], b: list[int]) -> torch.Tensor:
        return (rotate(q, tables(torch.tensor([a]), 8)) * rotate(k, tables(torch.tensor([b]), 8))).sum()

    torch.testing.assert_close(product([1, 2], [4, 3]), product([6, 3], [9, 4]), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(product([1, 2], [4, 3]), product([1, 2], [3, 4]))


def attended(x: torch.Tensor, turn) -> torch.Tensor:
    """(D,n,n) to (D,): the mean of what tokens with these positions attend to."""
    tokens = x.flatten(1).mT[None, None]
    turned = turn(tokens)
    return ((turned @ turned.mT).softmax(-1) @ tokens).mean((0, 1, 2))


def test_a_picture_on_its_side_is_another_picture():
    """Without positions no symmetry of the square is noticed; with them rows and columns are told apart."""
    x = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rope = tables(positions((4, 4), 0), 8)
    placed = lambda x: attended(x, lambda tokens: rotate(tokens, rope))  # noqa: E731
    properties.assert_invariant(lambda x: attended(x, lambda tokens: tokens), range(8), properties.d4, x)
    for symmetry in (4, 1):
        properties.assert_not_invariant(placed, symmetry, properties.d4, x)
    # transposed, the halves of a head have changed places, and that is all
    on_its_side = lambda k, x: properties.d4(k, x).roll(4, 0)  # noqa: E731
    properties.assert_equivariant(placed, [4], on_its_side, lambda _, y: y.roll(4, 0), x, atol=1e-6)


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match=r"width 6 .* multiple of 4"):
        tables(torch.zeros(1, 2), 6)
