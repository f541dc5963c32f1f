"""LoLCATs: the layer as the matrix of its weights, softmax where the window holds all, and windows of unequal fill."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.lolcats import LoLCATs


@pytest.mark.parametrize("feature", [None, 4])
@pytest.mark.parametrize("affine", [False, True])
@torch.no_grad()
def test_the_rule_as_a_matrix(seated, x, affine, feature):
    mixer = seated(LoLCATs(window=3, affine=affine, feature=feature))
    assert mixer.learned_q.weight.shape == mixer.learned_k.weight.shape == (4, feature or 6, 6)
    found, _ = mixer(x, TokenLayout.text(2, 9))
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6) for n in "qkv")
    away = torch.arange(9)[:, None] - torch.arange(9)
    near, far = (away >= 0) & (away < 3), away >= 3
    outputs = []
    for head in range(4):
        scores = (q[:, :, head] @ k[:, :, head // 2].mT * 6**-0.5).masked_fill(~near, -torch.inf)
        sides = []
        for feature_map, y in ((mixer.learned_q, q[:, :, head]), (mixer.learned_k, k[:, :, head // 2])):
            y = y @ feature_map.weight[head].T
            sides.append(torch.cat([y.softmax(-1), (-y).softmax(-1)], -1))
        share = torch.sigmoid(mixer.learned_share[head])
        weights = share * torch.exp(scores - scores.amax(-1, keepdim=True))
        weights = weights + (1 - share if affine else 1) * (sides[0] @ sides[1].mT) * far
        outputs.append(weights / weights.sum(-1, keepdim=True) @ v[:, :, head // 2])
    torch.testing.assert_close(found, mixer.o_proj(torch.cat(outputs, -1)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_window_over_everything_is_softmax_attention(seated, x):
    mixer = seated(LoLCATs(window=9))
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6).transpose(1, 2) for n in "qkv")
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    found, _ = mixer(x, TokenLayout.text(2, 9))
    torch.testing.assert_close(found, mixer.o_proj(o.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_rows_whose_windows_are_filled_differently_go_on(seated, x):
    """One row has two tokens so far and one nine; the window holds four."""
    mixer = seated(LoLCATs(window=5))
    layout = TokenLayout.text(2, 9)
    layout.kind[0, :7] = Kind.PAD
    _, memory = mixer(x, layout, {})
    assert memory["held"].tolist() == [2, 4]
    rows = [x[0, 7:], x[1]]
    for step in range(4):
        new = torch.randn(2, 1, 20, generator=torch.Generator().manual_seed(step))
        rows = [torch.cat([row, token]) for row, token in zip(rows, new)]
        found, memory = mixer(new, TokenLayout.text(2, 1), memory)
        for one, row in zip(found, rows):
            whole, _ = mixer(row[None], TokenLayout.text(1, len(row)))
            torch.testing.assert_close(one[0], whole[0, -1], atol=1e-5, rtol=1e-4)


def test_an_empty_window_is_refused():
    with pytest.raises(ValueError, match="window 0"):
        LoLCATs(window=0)


@pytest.mark.parametrize("feature", [0, 7])
def test_more_features_than_channels_and_none_are_refused(seated, feature):
    with pytest.raises(ValueError, match=f"feature {feature} .* 1 to 6"):
        seated(LoLCATs(feature=feature))
