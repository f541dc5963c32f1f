"""FlexAttention is compiled or refused; torch's tracer runs as on a GPU, and only what makes kernels is left out."""

import pytest
import torch
from torch._dynamo import config
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels import attend
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.masks import atoms, flex
from gnomon.kernels.masks.tokens import Tokens

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

RULES = [CAUSAL, CAUSAL & atoms.recent(4), ~atoms.band("p", 3)]


@pytest.fixture
def counted(monkeypatch):
    """What torch compiles is run as it was traced, and counted."""
    counter, compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile(function, backend=counter, **how))
    torch.compiler.reset()
    yield counter
    torch.compiler.reset()


def run(rule):
    """(ours, torch's) under a rule on a row of 20 tokens."""
    bound = rule.on(Tokens.line(20))
    q, k, v = torch.randn(3, 1, 2, 20, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = flex.compiled(q, k, v, mask=flex.block_mask(bound, heads=2), scale=0.25)
    return ours, scaled_dot_product_attention(q, k, v, attn_mask=bound.dense())


def test_masks_beyond_torchs_limit_are_compiled_too(counted):
    with config.patch(recompile_limit=1):
        for rule in RULES:
            torch.testing.assert_close(*run(rule))
    assert counted.frame_count == len(RULES)


def test_what_is_not_compiled_is_refused(counted, monkeypatch):
    """And never run plainly, which would hold all scores; what was compiled before goes on."""
    monkeypatch.setattr(flex, "LIMIT", 1)
    run(RULES[0])
    with pytest.raises(ValueError, match=r"^flex: torch compiles no more than 1 masks and shapes; use another impl"):
        run(RULES[1])
    torch.testing.assert_close(*run(RULES[0]))
    assert counted.frame_count == 1


def test_on_a_gpu_it_is_the_compiled_one(monkeypatch):
    """Tensors that say so stand in for tensors there."""

    class There(torch.Tensor):
        device = torch.device("cuda")

    called = []
    monkeypatch.setattr(attend, "compiled", lambda q, k, v, *, mask, scale: called.append(scale) or q)
    x = torch.randn(1, 20, 2, 16)
    with torch.no_grad():
        o, _ = attend.flex(x.as_subclass(There), x, x, mask=CAUSAL.on(Tokens.line(20)), scale=0.5)
    assert called == [0.5] and torch.equal(o.as_subclass(torch.Tensor), x)
