"""Scores without kernels: limits against the rule written out, and what is refused. The rest is in tests/vlm."""

import pytest
import torch

from gnomon.kernels.op import recording
from gnomon.kernels.scores import Limits, columns, rows


def test_limits_by_hand():
    """A window of three keys; then two documents, of which a padding key belongs to none."""
    last = torch.tensor([[-1, 1, 4]])
    assert Limits(last).dense(5)[0].int().tolist() == [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    window = Limits(last, (last - 2).clamp(min=0))
    assert window.dense(5)[0].int().tolist() == [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]
    segments = torch.tensor([[0, 0, 1]]), torch.tensor([[0, -1, 0, 1, 1]])
    packed = Limits(last, segments=segments)
    assert packed.dense(5)[0].int().tolist() == [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 1]]
    assert torch.equal(packed.dense(5, slice(1, 3)), packed.dense(5)[:, 1:])


def test_equal_keys_share():
    """Three keys alike, of which the first row sees two and the second none."""
    q, k = torch.randn(1, 2, 1, 4), torch.ones(1, 3, 1, 4)
    sight = Limits(torch.tensor([[1, -1]]))
    expected = torch.tensor([[[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]]])
    torch.testing.assert_close(rows(q, k, sight=sight), expected)
    torch.testing.assert_close(rows(q, k, sight=sight, pooled=True), expected.mean(1))
    weight = torch.tensor([[3.0, 5.0]])
    torch.testing.assert_close(columns(q, k, sight=sight, weight=weight, chunk=1), 3 * expected.sum(2))


def test_the_choice_is_recorded():
    q = torch.randn(1, 2, 1, 4)
    with recording() as choices:
        rows(q, q)
    assert choices[0].used == "reference" and "cpu" in choices[0].passed_over["triton"]


@pytest.mark.parametrize(
    "change, told",
    [
        ({"impl": "triton"}, "rows: impl 'triton' cannot run"),
        ({"impl": "guess"}, "rows: impl 'guess' does not exist"),
        ({"k": torch.zeros(1, 6, 3, 8)}, r"rows: q of shape .* and k of \(1, 6, 3, 8\) do not fit"),
        ({"k": torch.zeros(1, 6, 2, 8).double()}, "rows: q is torch.float32 on cpu but k torch.float64"),
        ({"sight": torch.ones(1, 5, 5).bool()}, r"rows: the mask has shape \(1, 5, 5\); give \(1, 5, 6\)"),
        ({"sight": torch.ones(1, 5, 6).long()}, r"rows: the mask is torch.int64; give torch.bool"),
        ({"q": torch.zeros(1, 0, 4, 8)}, r"rows: q of shape \(1, 0, 4, 8\) .* is empty"),
        ({"k": torch.zeros(1, 0, 2, 8)}, r"rows: .* k of \(1, 0, 2, 8\) is empty"),
        ({"sight": Limits(torch.zeros(1, 4).long())}, r"rows: last has shape \(1, 4\); give \(1, 5\)"),
        ({"scale": float("nan")}, "rows: scale nan is not finite"),
    ],
    ids=str,
)
def test_refusals(change, told):
    given = {"q": torch.zeros(1, 5, 4, 8), "k": torch.zeros(1, 6, 2, 8), **change}
    with pytest.raises(ValueError, match=told) as error:
        rows(given.pop("q"), given.pop("k"), **given)
    assert "\n" not in str(error.value)


def test_a_weight_for_each_row():
    with pytest.raises(ValueError, match=r"columns: weight has shape \(1, 4\); give \(1, 5\)"):
        columns(torch.zeros(1, 5, 4, 8), torch.zeros(1, 6, 2, 8), weight=torch.zeros(1, 4))
