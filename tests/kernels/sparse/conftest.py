import pytest
import torch


@pytest.fixture
def seen():
    """Which keys an operator's queries see, from its outputs alone: (T,T) bool for each head.

    Equal scores weigh all visible keys alike, and values that name their key tell which they are.
    """

    def look(operator, tokens: int, *, heads: int = 1, **how):
        nothing = torch.zeros(1, tokens, heads, 4)
        names = torch.eye(tokens)[:, None].expand(1, tokens, heads, tokens)
        weights = operator(nothing, nothing, names, **how)[0][0].transpose(0, 1)
        shown = weights > 0
        torch.testing.assert_close(weights, shown / shown.sum(-1, keepdim=True).clamp(min=1))
        return shown[0] if heads == 1 else shown

    return look
