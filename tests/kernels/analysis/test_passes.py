"""The pass counter against the three standard cascades, and against loops whose reads are counted."""

import math

import pytest
import torch

from gnomon.kernels.analysis.passes import passes
from gnomon.kernels.members import members

SCORES = "QK[m,p] = Q[e,p] * K[e,m]\nGM[p] = max(QK[m,p])\nSN[m,p] = exp(QK[m,p] - GM[p])\nSD[p] = sum(SN[m,p])\n"
TEXTBOOK = SCORES + "A[m,p] = SN[m,p] / SD[p]\nO[f,p] = A[m,p] * V[f,m]"
DEFERRED = SCORES + "AV[f,p] = SN[m,p] * V[f,m]\nO[f,p] = AV[f,p] / SD[p]"
FLASH = """
QK[m1,m0,p]  = Q[e,p] * K[e,m1,m0]
LM[m1,p]     = max(QK[m1,m0,p])
RM[m1+1,p]   = max(RM[m1,p], LM[m1,p])
SN[m1,m0,p]  = exp(QK[m1,m0,p] - RM[m1+1,p])
LD[m1,p]     = sum(SN[m1,m0,p])
C[m1,p]      = exp(RM[m1,p] - RM[m1+1,p])
RD[m1+1,p]   = RD[m1,p] * C[m1,p] + LD[m1,p]
LV[f,m1,p]   = SN[m1,m0,p] * V[f,m1,m0]
RV[f,m1+1,p] = RV[f,m1,p] * C[m1,p] + LV[f,m1,p]
O[f,p]       = RV[f,M,p] / RD[M,p]
"""


class Keys:
    """Keys that count how often each is read."""

    def __init__(self, values: torch.Tensor):
        self.values, self.reads = values, [0] * len(values)

    def __iter__(self):
        for place, value in enumerate(self.values.tolist()):
            self.reads[place] += 1
            yield value

    def __len__(self):
        return len(self.reads)


def textbook(q, keys):
    """One channel, and the key is its own value."""
    top = max(q * k for k in keys)
    total = sum(math.exp(q * k - top) for k in keys)
    return sum(math.exp(q * k - top) / total * k for k in keys)


def deferred(q, keys):
    top, total, value = max(q * k for k in keys), 0.0, 0.0
    for k in keys:
        total, value = total + math.exp(q * k - top), value + math.exp(q * k - top) * k
    return value / total


def flash(q, keys):
    top, total, value = -math.inf, 0.0, 0.0
    for k in keys:
        new = max(top, q * k)
        correct, weight = math.exp(top - new), math.exp(q * k - new)
        top, total, value = new, total * correct + weight, value * correct + weight * k
    return value / total


@pytest.mark.parametrize(
    ("cascade", "loop", "expected"), [(TEXTBOOK, textbook, 3), (DEFERRED, deferred, 2), (FLASH, flash, 1)]
)
def test_standard_cascades(cascade, loop, expected):
    values = torch.tensor([0.3, -2.0, 5.0, 1.0], dtype=torch.float64)
    keys = Keys(values)
    assert loop(1.5, keys) == pytest.approx(((1.5 * values).softmax(0) @ values).item())
    assert passes(cascade) == expected and keys.reads == [expected] * 4
    assert passes(cascade, running=True) == 1


def test_what_running_values_cannot_mend():
    """A threshold at the mean needs the mean: the result is no factor of a sum."""
    cascade = "T[p] = sum(S[m,p])\nR[m,p] = max(S[m,p], T[p])\nO[f,p] = R[m,p] * V[f,m]"
    assert passes(cascade) == passes(cascade, running=True) == 2
    # weights that are the result themselves cannot be mended later either
    assert passes(SCORES + "A[m,p] = SN[m,p] / SD[p]", running=True) == 3


def test_rows_and_columns_are_two_passes():
    """What is summed over the queries cannot be mended once each of them has its sum: the columns wait for the rows."""
    rows = "QK[m,p] = Q[e,p] * K[e,m]\nR[p] = sum(QK[m,p])\nA[m,p] = QK[m,p] / R[p]\n"
    cascade = rows + "C[m] = sum(A[m,p])\nB[m,p] = A[m,p] / C[m]\nO[f,p] = B[m,p] * V[f,m]"
    assert passes(cascade) == passes(cascade, running=True) == 2
    assert passes(rows.replace("A[m,p]", "C[m]") + "O[f] = C[m] * V[f,m]", running=True) == 2
    # without the columns, or with their sum over the keys, too, the rows can wait
    assert passes(rows + "O[f,p] = A[m,p] * V[f,m]", running=True) == 1
    assert passes(rows + "C[f] = A[m,p] * V[f,m]", running=True) == 1


def test_the_order_of_products_matters():
    """A shift of each channel can be mended in sums over the keys, not in scores that add the channels up."""
    features = "GM[e] = max(K[e,m])\nF[e,m] = exp(K[e,m] - GM[e])\n"
    assert passes(features + "S[e,f] = F[e,m] * V[f,m]\nO[f,p] = Q[e,p] * S[e,f]", running=True) == 1
    assert passes(features + "L[m,p] = Q[e,p] * F[e,m]\nO[f,p] = L[m,p] * V[f,m]", running=True) == 2


def test_another_rank_is_another_matter():
    cascade = "A[e] = sum(Q[e,p])\nL[m] = A[e] * K[e,m]\nO[p] = Q[e,p] * A[e]"
    assert passes(cascade, rank="m") == 1 and passes(cascade, rank="p") == 2


def test_two_sets_of_keys_are_read_once_each():
    assert passes("Z[e] = sum(K[e,m])\nO[f] = Z[e] * V[e,f,m]") == 1


@pytest.mark.parametrize("line", ["O[p] = ", "A[m] B[m]", "O[p] = log(A[m,p])", "O[p] = A[m,p] ^ B[m]", "", "\n \n"])
def test_unreadable(line):
    with pytest.raises(ValueError, match=r"^passes: "):
        passes(line)


@pytest.mark.parametrize("member", [m for m in members() if m.op.cascade], ids=lambda m: m.op.name)
def test_cascades_of_the_operators(member):
    as_written = passes(member.op.cascade)
    assert 1 <= passes(member.op.cascade, running=True) <= as_written <= 4


def test_linear_attention_reads_its_keys_once():
    found = {m.op.name: passes(m.op.cascade) for m in members() if m.op.cascade}
    assert found["inline"] == found["mala"] == found["plain"] == 1
    assert found["exact"] == found["rala"] == found["agent"] == 2


def test_what_chooses_its_keys_reads_them_once_more():
    found = {m.op.name: passes(m.op.cascade, running=True) for m in members()}
    assert found["sla"] == 2 and found["infllm_v2"] == 3
