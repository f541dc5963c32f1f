"""Outputs and all gradients of core M's kernels against the references; run by test_moments.py.

What the kernels write to is filled with NaN first.
"""

from functools import partial

import pytest
import torch
import twins
from torch import Tensor
from twins import DEVICE, EXACT, TOLERANCE, tensors

from gnomon.kernels.linear.inline import inline
from gnomon.kernels.linear.l2vit import l2vit
from gnomon.kernels.linear.lina import lina
from gnomon.kernels.linear.linfusion import linfusion
from gnomon.kernels.linear.mala import mala
from gnomon.kernels.linear.nalaformer import nalaformer
from gnomon.kernels.linear.rala import rala
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.op import recording
from gnomon.kernels.triton_ops.linear import moments

pytestmark = pytest.mark.usefixtures("poison")

OPERATORS = {
    "inline": inline,
    "mala": mala,
    "rala": rala,
    "nalaformer": nalaformer,
    "l2vit": partial(l2vit, least=2.0),
    "linfusion": linfusion,
    "lina": lina,
}


def agree(op, inputs, names: tuple[str, ...] = (), tolerance: float = TOLERANCE) -> None:
    """Values and gradients of the kernels and of the reference; the result has the inputs' type."""

    def run(impl: str, *given: Tensor) -> Tensor:
        o = op(*given[:3], impl=impl, **dict(zip(names, given[3:])))[0]
        assert o.dtype == given[0].dtype
        return o

    twins.agree(partial(run, "triton"), partial(run, "reference"), inputs, tolerance)


@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
def test_cross_attention(op):
    """Several blocks of each, the last ones short; no width is a power of two."""
    agree(op, tensors((1, 70, 1, 6), (1, 43, 1, 6), (1, 43, 1, 19)))


@pytest.mark.parametrize("op", [mala, rala, nalaformer])
def test_rotation(op):
    """Angles of one head for all, and of a head each, with gradients of their own."""
    inputs = tensors((1, 21, 4, 8), (1, 37, 2, 8), (1, 37, 4, 8), (1, 21, 1, 4), (1, 37, 4, 4))
    agree(op, inputs, ("angles_q", "angles_k"))


def test_gates():
    inputs = tensors((2, 21, 2, 8), (2, 37, 2, 8), (2, 37, 1, 8), (2, 37, 2), (2, 37))
    agree(lina, inputs, ("gate_k", "gate_v"))
    agree(lina, inputs[:4], ("gate_k",))
    agree(lina, [*inputs[:3], inputs[4]], ("gate_v",))


def test_temperature():
    inputs = tensors((1, 21, 4, 8), (1, 37, 2, 8), (1, 37, 2, 8), (4,))
    agree(partial(l2vit, least=10.0), inputs, ("temperature",))


@pytest.mark.parametrize("heads", [(6, 2, 2), (2, 6, 3), (6, 2, 3), (1, 1, 4)], ids=str)
def test_grouped_heads(heads):
    """Any two numbers of heads that divide the third; the moments have as many as keys and values need."""
    q, k, v = heads
    agree(mala, tensors((1, 21, q, 6), (1, 33, k, 6), (1, 33, v, 5)))


def test_features_in_several_tiles():
    """Twice 40 features are two tiles."""
    agree(nalaformer, tensors((1, 18, 1, 40), (1, 18, 1, 40), (1, 18, 1, 40)))


@pytest.mark.parametrize("programs", [1, 2, 100])
def test_parts_of_the_sums(monkeypatch, programs):
    """In one part, in a few of unequal length, in one for each block; the bits do not change from call to call."""
    monkeypatch.setattr(moments, "PROGRAMS", programs)
    inputs = tensors((1, 150, 1, 8), (1, 150, 1, 8), (1, 150, 1, 8))
    agree(mala, inputs)
    assert torch.equal(mala(*inputs, impl="triton")[0], mala(*inputs, impl="triton")[0])


def test_strides_and_frozen_inputs():
    """Views of one projection, of which the values alone learn."""
    torch.manual_seed(0)
    qkv = torch.randn(1, 40, 3, 2, 8, dtype=torch.float64).to(DEVICE, EXACT)
    q, k, v = qkv.unbind(2)
    v = v.detach().requires_grad_()
    found = [torch.autograd.grad(inline(q, k, v, impl=impl)[0].square().sum(), v)[0] for impl in ("triton", "chunk")]
    torch.testing.assert_close(*found, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("op", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=["bf16", "fp16"])
def test_narrow_types(op, dtype, tolerance):
    """Sums of 300 tokens stay in float32."""
    agree(op, tensors((1, 40, 1, 16), (1, 300, 1, 16), (1, 300, 1, 16), dtype=dtype), tolerance=tolerance)


def test_float16_does_not_overflow():
    """Cubes, and sums over keys, beyond 65504."""
    q, k, v = tensors((1, 40, 1, 8), (1, 200, 1, 8), (1, 200, 1, 8), dtype=torch.float16)
    with torch.no_grad():
        k.mul_(60)
        v.mul_(100)
    agree(nalaformer, [q, k, v], tolerance=1e-2)
    agree(linfusion, [q, k, v], tolerance=1e-2)


def test_chosen_by_itself_and_refused():
    q, k, v = (x.detach() for x in tensors((1, 9, 1, 8), (1, 9, 1, 8), (1, 9, 1, 8)))
    with recording() as choices:
        mala(q, k, v)
    assert choices[0].used == "triton"
    with pytest.raises(ValueError, match=r"mala: impl 'triton' cannot run .*not of prefixes"):
        mala(q, k, v, mask=CAUSAL, impl="triton")
    wide = torch.zeros(1, 2, 1, 136, dtype=EXACT, device=DEVICE)
    with pytest.raises(ValueError, match=r"mala: .*widths 136 and 136 are beyond 128"):
        mala(wide, wide, wide, impl="triton")
