"""AffineScaled: the layer as the matrix of its weights, softmax at the beginning, and the mean that runs along."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.mixers.affine_scaled import AffineScaled


def factors(mixer: AffineScaled, x: torch.Tensor) -> torch.Tensor:
    return mixer.gain * (0.1 * (x @ mixer.factor.weight.T) + 0.5).clamp(0, 1)


@pytest.mark.parametrize("gain, start", [(2.0, 1.0), (1.0, 0.3)])
@torch.no_grad()
def test_the_rule_as_a_matrix(seated, x, gain, start):
    mixer = seated(AffineScaled(gain=gain, start=start))
    found, _ = mixer(x, TokenLayout.text(2, 9))
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6) for n in "qkv")
    past = torch.ones(9, 9).tril()
    outputs = []
    for head in range(4):
        scores = (q[:, :, head] @ k[:, :, head // 2].mT * 6**-0.5).masked_fill(past == 0, -torch.inf)
        alpha = factors(mixer, x)[..., head, None]
        weights = alpha * scores.softmax(-1) + (start - alpha) * past / past.sum(1, keepdim=True)
        torch.testing.assert_close(weights.sum(-1), torch.full((2, 9), start), atol=1e-5, rtol=1e-4)
        outputs.append(weights @ v[:, :, head // 2])
    torch.testing.assert_close(found, mixer.o_proj(torch.cat(outputs, -1)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_begins_as_softmax_attention(seated, x):
    mixer = seated(AffineScaled())
    mixer.factor.weight.zero_()
    q, k, v = (getattr(mixer, f"{n}_proj")(x).view(2, 9, -1, 6).transpose(1, 2) for n in "qkv")
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    found, _ = mixer(x, TokenLayout.text(2, 9))
    torch.testing.assert_close(found, mixer.o_proj(o.transpose(1, 2).flatten(2)), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_fresh_one_leaves_a_model_of_transformers_as_it_was(tiny):
    """Positions and all."""
    ids, layout = torch.arange(3, 14)[None], TokenLayout.text(1, 11)
    found, expected = (model.lm(model.lm.embed(ids), layout) for model in (tiny(mixers=[AffineScaled()]), tiny()))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_decoding_counts_the_keys_that_it_remembers(seated, x):
    mixer = seated(AffineScaled(start=0.4))
    layout = TokenLayout.text(2, 8)
    layout.kind[0, :5] = Kind.PAD
    _, memory = mixer(x[:, :8], layout, {})
    found, _ = mixer(x[:, 8:], TokenLayout.text(2, 1, start=8), memory)
    for one, row in zip(found, (x[:1, 5:], x[1:])):
        whole, _ = mixer(row, TokenLayout.text(1, row.shape[1]))
        torch.testing.assert_close(one[0], whole[0, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recomputed", [None, True, False])
def test_the_mean_moves_once_per_batch_and_by_visible_tokens(seated, x, recomputed):
    mixer = seated(AffineScaled(keep=0.75)).train()
    layout = TokenLayout.text(2, 9)
    layout.kind[1, 5:] = Kind.PAD
    expected = torch.ones(4)
    for _ in range(2):
        x = x.detach().requires_grad_()
        if recomputed is None:
            found = mixer(x, layout)[0]
        else:
            found = checkpoint(lambda y: mixer(y, layout)[0], x, use_reentrant=recomputed)
        torch.testing.assert_close(mixer.average, expected)
        found.square().sum().backward()
        mean = torch.cat([factors(mixer, x)[0], factors(mixer, x)[1, :5]]).mean(0)
        expected = 0.75 * expected + 0.25 * mean.detach()
        torch.testing.assert_close(mixer.average, expected)
        x = x + 0.5
    mixer.eval()(x, layout)[0].sum().backward()
    torch.testing.assert_close(mixer.average, expected)


def test_a_batch_of_padding_alone_has_no_mean(seated, x):
    mixer = seated(AffineScaled(keep=0.75)).train()
    layout = TokenLayout.text(2, 9)
    layout.kind[:] = Kind.PAD
    mixer(x, layout)[0].sum().backward()
    assert mixer.average.tolist() == [1.0] * 4


def test_the_mean_rests_where_nothing_learns_it(seated, x):
    mixer = seated(AffineScaled()).train()
    mixer.factor.weight.requires_grad_(False)
    mixer(x.requires_grad_(), TokenLayout.text(2, 9))[0].sum().backward()
    assert mixer.average.tolist() == [1.0] * 4


@pytest.mark.parametrize("options", [{"gain": 0}, {"keep": 1.5}])
def test_wrong_options_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} {value}"):
        AffineScaled(**options)
