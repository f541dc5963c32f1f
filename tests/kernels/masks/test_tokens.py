"""Rows of tokens: what a part of a joined one does not say, and fields of other sizes."""

import pytest
import torch

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.softmax.exact import exact


def test_a_part_without_padding_is_no_padding():
    text = Tokens.padded(torch.tensor([[True, True, False], [True, True, True]]))
    tokens = Tokens.join([text, Tokens.grid(2, 2)])
    assert tokens["segment"].tolist() == [[0, 0, -1, 0, 0, 0, 0], [0] * 7]
    assert tokens["item"].tolist() == [[-1, -1, -1, 0, 0, 0, 0]] * 2
    q, k, v = (torch.randn(2, 7, 1, 4, dtype=torch.float64) for _ in range(3))
    o, _ = exact(q, k, v, mask=CAUSAL.on(tokens))
    real = tokens["segment"][0] >= 0
    alone, _ = exact(q[:1, real], k[:1, real], v[:1, real], mask=CAUSAL)
    torch.testing.assert_close(o[:1, real], alone)
    assert not bool(o[0, 2].any())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_padding_may_be_said_in_zeros_and_ones(dtype):
    """As tokenizers do."""
    valid = torch.tensor([[False, True, True], [True, True, True]])
    ours, theirs = (Tokens.padded(x).fields for x in (valid, valid.to(dtype)))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("valid", "told"),
    [
        (torch.tensor([[1, 2, 0]]), r"torch\.int64; give bool, or integers 0 and 1"),
        (torch.tensor([[1, -1]]), r"torch\.int64; "),
        (torch.tensor([[1.0, 0.0]]), r"torch\.float32; "),
        (torch.tensor([True, False]), r"shape \(2,\); give a tensor \(rows, tokens\)"),
        (torch.ones(2, 1, 3, 3, dtype=torch.bool), r"shape \(2, 1, 3, 3\); "),
        ([[True, False]], "list; "),
    ],
)
def test_what_says_nothing_of_padding_is_refused(valid, told):
    with pytest.raises(ValueError, match=f"^mask: valid tokens of {told}"):
        Tokens.padded(valid)


def test_fields_that_do_not_fit_are_refused():
    tokens = Tokens.line(4).having(item=torch.zeros(2, 4))
    assert tokens.having(topic=torch.zeros(4)).rows == 2
    with pytest.raises(ValueError, match=r"^mask: field 'topic' has 3 values for 4 tokens; "):
        tokens.having(topic=torch.zeros(3))
    with pytest.raises(ValueError, match=r"^mask: fields of \[2, 3\] rows; give one for all, or one each"):
        tokens.having(topic=torch.zeros(3, 4))
