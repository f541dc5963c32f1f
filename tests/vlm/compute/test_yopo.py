"""YOPO against the sheet's oracles: pairs counted by hand, the causal window that hides nothing, leaving, masking."""

from dataclasses import replace

import pytest
import torch

from gnomon.vlm.compute.yopo import YOPO, inactive_heads
from gnomon.vlm.decoder import decode
from gnomon.vlm.layout import Batch, Kind, TokenLayout


def grid(height: int, width: int, *, before: int = 0, after: int = 0, images: int = 1) -> TokenLayout:
    """One row: text, images of one grid, text."""
    count = height * width
    cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).repeat(images, 1)
    number = torch.arange(images).repeat_interleave(count)
    length = before + images * count + after
    layout = TokenLayout.text(1, length)
    layout.kind[:, before : length - after] = Kind.IMAGE
    layout.image[0, before : length - after] = number
    layout.cell[0, before : length - after] = cells
    return layout


def test_pairs_of_a_24_by_24_grid():
    layout = grid(24, 24)
    # one axis: 2 ends with 3, 2 with 4, 20 with 5 neighbours = 114; 114 ** 2
    assert int(YOPO(5).pairs(layout).sum()) == 12_996
    assert int(torch.ones(576, 576).tril().sum()) == 166_176
    assert int(YOPO(47, causal=True).pairs(layout).sum()) == 166_176
    assert YOPO(None).pairs(layout) is None


def test_neighbours_by_hand():
    near = YOPO(3).pairs(grid(2, 3, images=2))[0]
    expected = torch.tensor([[1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1]] * 2, dtype=torch.bool)
    # another image's tokens are no neighbours
    assert torch.equal(near[:6, :6], expected) and torch.equal(near[6:, 6:], expected)
    assert not near[:6, 6:].any() and not near[6:, :6].any()


def batch_of(layout: TokenLayout, images: int = 1) -> Batch:
    pixels = [torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8) for _ in range(images)]
    ids = torch.arange(layout.shape[1])[None] % 30 + 3
    return Batch(ids, ids.clone(), layout, pixels, samples=["a"])


@torch.no_grad()
def test_a_causal_window_over_everything_is_the_model(tiny):
    torch.manual_seed(0)
    batch = batch_of(grid(4, 4, before=2, after=4))
    expected = tiny()(batch).logits
    torch.testing.assert_close(tiny(compute=YOPO(7, causal=True))(batch).logits, expected, atol=1e-5, rtol=1e-5)
    both_ways = tiny(compute=YOPO(7))(batch).logits
    assert float((both_ways - expected).abs().max()) > 1e-3


@torch.no_grad()
def test_leaving_equals_hiding_from_the_softmax(tiny):
    torch.manual_seed(0)
    batch = batch_of(grid(4, 4, before=2, after=4))
    model = tiny(lm={"num_hidden_layers": 4}, compute=YOPO(None, cut=2))
    read, lm = model.read(batch), model.lm
    assert not read.after.is_image.any() and read.hidden.shape[1] == 6
    embeds, layout, _ = model.embed(batch)
    common = {"rotary": lm.rotary, "windows": lm.windows}
    middle = decode(embeds, layout, layers=lm.layers[:2], **common)
    kind = torch.where(layout.is_image, Kind.PAD, layout.kind)
    hidden = lm.normed(decode(middle, replace(layout, kind=kind), layers=lm.layers[2:], **common))
    torch.testing.assert_close(read.hidden[0], hidden[kind != Kind.PAD], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_caches_behind_the_cut_hold_text_alone(tiny):
    batch = batch_of(grid(4, 4, before=2, after=4))
    model = tiny(lm={"num_hidden_layers": 4}, compute=YOPO(5, cut=1))
    state = model.lm.new_state()
    model.read(batch, state)
    assert [cache.keys.shape[2] for cache in state.layers] == [22, 6, 6, 6]


def test_inactive_heads_by_hand():
    # 5 samples, 3 layers, 2 heads; of layer 2, head 0 looks at the image in 2 of 5 samples and head 1 in 3
    visual, other = torch.zeros(5, 3, 2), torch.ones(5, 3, 2)
    visual[:2, 2, 0] = visual[:3, 2, 1] = 0.3
    assert inactive_heads(visual, other, threshold=0.2) == [[], [], [0]]
    assert inactive_heads(visual, other, threshold=0.3) == [[], [], [0, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4}, "odd number"),
        ({"window": -1}, "odd number"),
        ({"ffn": 1.5}, r"\[0, 1\]"),
        ({"cut": 3}, "0 to 2"),
        ({"inactive": [[0]]}, "1 lists of heads for 2 layers"),
        ({"inactive": [[], [4]]}, "heads 0 to 3"),
    ],
)
def test_bad_options(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(compute=YOPO(**options))
