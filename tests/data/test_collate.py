import numpy as np
import pytest
import torch

from gnomon.data.collate import collate, collate_rows
from gnomon.data.processor import Processor
from gnomon.data.sample import Sample, Turn
from gnomon.vlm.layout import IGNORE, ImageSpec, Kind

PAD = 99


@pytest.fixture
def examples(demo_tokenizer):
    """9 tokens with an image of 1x2 at 1 and one of 1x2 at 4; 4 tokens without."""
    processor = Processor(demo_tokenizer, "demo", ImageSpec((2, 4), 2))
    pictures = tuple(np.full((2, 4, 3), shade, np.uint8) for shade in (1, 2))
    talk = [
        Sample("two", (Turn("user", "<image>a<image>"), Turn("assistant", "b")), pictures),
        Sample("none", (Turn("user", "c"), Turn("assistant", "d"))),
    ]
    two, none = (processor.example(sample, train=True) for sample in talk)
    assert (len(two), len(none)) == (9, 5)
    return two, none


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_by_hand(examples, side):
    batch = collate(examples, pad_id=PAD, side=side)
    layout = batch.layout
    at = slice(0, 5) if side == "right" else slice(4, 9)
    outside = slice(5, 9) if side == "right" else slice(0, 4)
    T, I, P = Kind.TEXT, Kind.IMAGE, Kind.PAD
    assert layout.kind[0].tolist() == [T, I, I, T, I, I, T, T, T]
    assert layout.kind[1, at].eq(T).all() and layout.kind[1, outside].eq(P).all()
    assert layout.image[0].tolist() == [-1, 0, 0, -1, 1, 1, -1, -1, -1] and layout.image[1].eq(-1).all()
    assert layout.cell[0, [1, 2, 4, 5]].tolist() == [[0, 0], [0, 1], [0, 0], [0, 1]]
    assert layout.cell[~layout.is_image].eq(-1).all()
    assert layout.position[0].tolist() == list(range(9))
    assert layout.position[1, at].tolist() == list(range(5)) and layout.position[1, outside].eq(0).all()
    assert layout.document is None
    assert batch.ids[1, at].tolist() == examples[1].ids.tolist() and batch.ids[1, outside].eq(PAD).all()
    assert batch.ids[layout.is_image].eq(PAD).all()
    assert batch.labels[1, at].tolist() == examples[1].labels.tolist() and batch.labels[1, outside].eq(IGNORE).all()
    assert [int(p[0, 0, 0]) for p in batch.pixels] == [1, 2] and batch.samples == ["two", "none"]
    # "b", "d" and two ends of turn
    assert batch.supervised == 4


def test_a_packed_row_by_hand(examples):
    two, none = examples
    batch = collate_rows([[none, two, two], [none]], pad_id=PAD)
    layout = batch.layout
    assert layout.shape == (2, 23)
    assert layout.document[0].tolist() == [0] * 5 + [1] * 9 + [2] * 9
    assert layout.document[1].tolist() == [0] * 5 + [-1] * 18
    assert layout.position[0].tolist() == [*range(5), *range(9), *range(9)]
    assert layout.image[0, layout.is_image[0]].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(batch.pixels) == 4 and batch.samples == ["none", "two", "two", "none"]
    # what is learned is what the single rows would learn: no document's first token is a target
    assert batch.supervised == 8
    assert batch.labels[0, [0, 5, 14]].eq(IGNORE).all()


def test_packing_changes_no_document(examples):
    two, none = examples
    packed = collate_rows([[none, two]], pad_id=PAD)
    for document, example in enumerate((none, two)):
        alone = collate([example], pad_id=PAD)
        here = packed.layout.document == document
        for name in ("kind", "cell", "position"):
            assert torch.equal(getattr(packed.layout, name)[here], getattr(alone.layout, name)[0]), name
        assert torch.equal(packed.labels[here], alone.labels[0]) and torch.equal(packed.ids[here], alone.ids[0])


def test_unknown_side(examples):
    with pytest.raises(ValueError, match="side 'middle' is unknown"):
        collate(examples, pad_id=0, side="middle")
