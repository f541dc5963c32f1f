"""CLEAR: the number of keys in a disc, strictness, text, and the scale of longer sequences."""

import math

import pytest
import torch

from gnomon.kernels.mask import EVERYTHING
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.sparse.clear import clear, rule


@pytest.mark.parametrize("radius, keys", [(8, 193), (16, 793), (32, 3205)])
def test_keys_of_a_query_in_the_middle(radius, keys):
    side = 2 * radius + 1
    image = Tokens.grid(side, side)
    middle = image.take(torch.tensor([side * side // 2]))
    assert int(rule(radius).on(middle, image).dense().sum()) == keys


def test_the_disc_is_strict_and_clipped(seen):
    shown = seen(clear, 35, grid=(5, 7), radius=2)
    expected = [[(i // 7 - j // 7) ** 2 + (i % 7 - j % 7) ** 2 < 4 for j in range(35)] for i in range(35)]
    assert torch.equal(shown, torch.tensor(expected))
    # two to the right is not in the disc of radius two; a corner sees a quarter of it
    assert not shown[0, 2] and shown[0].nonzero().flatten().tolist() == [0, 1, 7, 8]


def test_text_sees_and_is_seen_by_everything(seen):
    tokens = Tokens.join([Tokens.line(3), Tokens.grid(4, 5)])
    shown = seen(lambda q, k, v, **how: clear(q, k, v, mask=rule(1).on(tokens), **how), 23, radius=1)
    assert bool(shown[:3].all()) and bool(shown[:, :3].all())
    assert torch.equal(shown[3:, 3:], torch.eye(20, dtype=torch.bool))


def test_images_do_not_see_each_other(seen):
    tokens = Tokens.join([Tokens.grid(2, 2), Tokens.line(1), Tokens.grid(2, 2, item=1)])
    shown = seen(clear, 9, radius=1, mask=EVERYTHING.on(tokens))
    expected = torch.eye(9, dtype=torch.bool)
    expected[4], expected[:, 4] = True, True
    assert torch.equal(shown, expected)


def test_the_scale_grows_with_the_length():
    q, k, v = (torch.randn(1, 30, 2, 4, dtype=torch.float64) for _ in range(3))
    same, _ = clear(q, k, v, grid=(5, 6), radius=3, scale=math.sqrt(math.log(30) / math.log(8) / 4))
    torch.testing.assert_close(clear(q, k, v, grid=(5, 6), radius=3, trained_on=8)[0], same)
    with pytest.raises(ValueError, match=r"^clear: trained_on 8 beside scale 1\.0; "):
        clear(q, k, v, grid=(5, 6), radius=3, trained_on=8, scale=1.0)
