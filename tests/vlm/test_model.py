"""The model end to end on tiny parts, against transformers' own forward on embeddings put together by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.layout import IGNORE, Batch, Kind, TokenLayout
from gnomon.vlm.model import VLM


def image(height: int, width: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def collate(model: VLM, rows: Sequence[Sequence[int | Tensor]]) -> Batch:
    """Rows of token ids and images, padded on the right; every text token is also a label."""
    ids, labels, kind, which, pixels = [], [], [], [], []
    for row in rows:
        lines: list[list[int]] = [[], [], [], []]
        seen = 0
        for item in row:
            if isinstance(item, int):
                entry, count = (item, item, Kind.TEXT, -1), 1
            else:
                h, w = model.image.grid(*item.shape[1:])
                entry, count = (0, IGNORE, Kind.IMAGE, seen), h * w
                pixels.append(item)
                seen += 1
            for line, value in zip(lines, entry):
                line += [value] * count
        for column, line in zip((ids, labels, kind, which), lines):
            column.append(torch.tensor(line))

    def pad(column: list[Tensor], value: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=value)

    kind = pad(kind, Kind.PAD)
    layout = TokenLayout.text(*kind.shape)
    layout.kind, layout.image = kind, pad(which, -1)
    return Batch(ids=pad(ids, 0), labels=pad(labels, IGNORE), layout=layout, pixels=pixels, samples=["first", "second"])


def by_hand(model: VLM, row: Sequence[int | Tensor]) -> Tensor:
    """Logits of one row by transformers alone, from embeddings that are put together piece by piece."""
    hf, pieces = model.lm.model, []
    for item in row:
        if isinstance(item, int):
            pieces.append(hf.get_input_embeddings()(torch.tensor([item])))
        else:
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.image.mean, model.image.std))
            pixels = ((item / 255 - mean) / std)[None]
            pieces.append(model.connector({"vision": model.encoder(pixels)}).tokens[0])
    return hf(inputs_embeds=torch.cat(pieces)[None], use_cache=False).logits[0]


A, B, C = image(32, 32, 1), image(32, 32, 2), image(32, 32, 3)
ROWS = {
    "one image": [[3, A, 4, 5]],
    "several images": [[A, 3, B, C, 4]],
    "no image": [[3, 4, 5, 6]],
    "rows of different length": [[3, A, 4, 5, 6, 7], [B, 8]],
    "image in the second row only": [[3, 4, 5], [6, A, 7]],
    "interleaved over rows": [[A, 3, B, 4], [5, 6, 7], [8, C, 9]],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
@torch.no_grad()
def test_every_row_equals_transformers_on_the_same_embeddings(tiny, rows):
    model = tiny(image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.25, 0.3))
    logits = model(collate(model, rows)).logits
    for found, row in zip(logits, rows):
        expected = by_hand(model, row)
        torch.testing.assert_close(found[: len(expected)], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_images_of_different_sizes(tiny):
    """Native sizes: grouped by size for the encoder, back in their own order for the language model."""
    model = tiny(connector=PixelShuffle(2), image_size=None, image_fit="native")
    small, wide, tall = image(16, 16, 1), image(16, 48, 2), image(48, 32, 3)
    rows = [[3, wide, 4, small, 5], [tall, 6, wide, small, 7]]
    logits = model(collate(model, rows)).logits
    for found, row in zip(logits, rows):
        expected = by_hand(model, row)
        torch.testing.assert_close(found[: len(expected)], expected, atol=2e-5, rtol=1e-4)
    features = model.encode([small, wide, tall, small])
    assert features.grid == [(1, 1), (1, 3), (3, 2), (1, 1)]
    assert features.valid.sum(1).tolist() == [1, 3, 6, 1]
    torch.testing.assert_close(features.tokens[0], features.tokens[3])  # rows of one product: equal up to the last bit
    assert not features.tokens[~features.valid].any()


@torch.no_grad()
def test_text_only_equals_the_language_model_alone(tiny):
    model = tiny()
    logits = model(collate(model, [[3, 4, 5, 6]])).logits
    assert torch.equal(logits, model.lm.model(torch.tensor([[3, 4, 5, 6]]), use_cache=False).logits)


@pytest.mark.parametrize("part", ["encoder", "connector", "lm"])
@torch.no_grad()
def test_parts_may_differ_in_precision(tiny, part):
    model = tiny()
    batch = collate(model, [[3, A, 4]])
    expected = model(batch).logits
    getattr(model, part).to(torch.bfloat16)
    torch.testing.assert_close(model(batch).logits.float(), expected, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_logits_at_chosen_positions(tiny):
    model = tiny()
    batch = collate(model, [[3, A, 4, 5], [6, 7]])
    everywhere, at = model(batch), torch.zeros(2, 19, dtype=torch.bool)
    at[0, 16:18] = at[1, 0] = True
    chosen = model(batch, at=at)
    torch.testing.assert_close(chosen.logits, everywhere.logits[at])
    assert chosen.labels.tolist() == [4, 5, 7]


@torch.no_grad()
def test_loss_by_hand(tiny):
    """The word after the image is predicted from the image's last token; the first token of a row from nothing."""
    model = tiny()
    rows = [[3, A, 4, 5], [6, 7]]
    total, count = model.loss(collate(model, rows))
    first, second = by_hand(model, rows[0]), by_hand(model, rows[1])
    # row 0 is: 3, sixteen image tokens, 4, 5
    expected = -(F.log_softmax(first, -1)[16, 4] + F.log_softmax(first, -1)[17, 5] + F.log_softmax(second, -1)[0, 7])
    assert int(count) == 3
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-5)


def test_slots_and_images_must_agree(tiny):
    model = tiny()
    batch = collate(model, [[3, A, 4]])
    batch.pixels.append(B)
    with pytest.raises(ValueError, match=r"has 16 image slots but its 2 images make 32 tokens .*first"):
        model(batch)


def test_a_batch_of_text_gives_vision_a_zero_gradient(tiny):
    """Ranks that shard the model must all run the same modules, and an optimizer must not move what saw no image."""
    model = tiny().train()
    total, _ = model.loss(collate(model, [[3, 4, 5]]))
    total.backward()
    vision = [*model.encoder.parameters(), *model.connector.parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in vision)
    assert any(bool(p.grad.any()) for p in model.lm.parameters())
    alone = tiny().train()
    alone.lm.model(torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.mul(2).backward()
    for ours, theirs in zip(model.lm.parameters(), alone.lm.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_an_image_reaches_every_parameter(tiny):
    model = tiny().train()
    model.loss(collate(model, [[3, A, 4, 5]]))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_text_only_in_evaluation_does_not_run_the_encoder(tiny):
    model = tiny()
    model.encoder.register_forward_pre_hook(lambda *_: pytest.fail("the encoder ran"))
    model(collate(model, [[3, 4]]))


def test_a_size_that_is_not_whole_cells_is_refused(tiny):
    with pytest.raises(ValueError, match=r"\(32, 40\) is not a multiple of 16 pixels per token"):
        tiny(connector=PixelShuffle(2), image_size=(32, 40))
