"""`gnomon bench kernels`, one more token: checked with the rest, timed where there is one."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps

import torch

from gnomon.eval.bench.kernel_calls import Setting
from gnomon.eval.bench.kernels import run
from gnomon.eval.names import operators

SETTING = Setting(1, 2, 8, torch.float32, torch.device("cpu"), True, 60.0)


def stepping(single):
    """GLA, of which a token with a state is what `single` makes of it."""
    (gla,) = operators(["gla"])

    @wraps(gla.function)
    def function(q, k, v, *, impl, state=None, **named):
        o, after = gla.function(q, k, v, impl=impl, state=state, **named)
        return (o if impl == "reference" or state is None else single(o)), after

    return list(run([replace(gla, function=function)], [256], SETTING, others=False))[2]


def test_a_wrong_single_token_is_not_timed():
    assert stepping(lambda o: o).step > 0
    timing = stepping(lambda o: o * 0)
    assert timing.forward is None and timing.note.startswith("wrong by ")


def test_an_operator_that_makes_no_single_token_is_timed_without():
    def refused(o):
        raise ValueError("gla: no")

    timing = stepping(refused)
    assert timing.forward and timing.both and timing.step is None and timing.note == "no single token: gla: no"
