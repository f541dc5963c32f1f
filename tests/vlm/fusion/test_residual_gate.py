"""The residual gate: shut at first, the fusion inside when wide open, and opened by a gradient."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.freeze import Group, groups
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.fusion.cross import Cross
from gnomon.vlm.fusion.gated import Gated
from gnomon.vlm.fusion.residual_gate import ResidualGate
from gnomon.vlm.part import build


@pytest.mark.parametrize("per_channel", [False, True])
def test_shut_half_and_wide_open(parts, ready, per_channel):
    fusion, given = ready(ResidualGate(Gated(), per_channel=per_channel)), parts()
    v, fused = given["vision"].tokens, fusion.fusion(given).tokens
    assert torch.equal(fusion(given).tokens, v)
    assert fusion.gate.shape == ((8,) if per_channel else (1,))
    with torch.no_grad():
        fusion.gate.fill_(0.5493061)
        torch.testing.assert_close(fusion(given).tokens, (v + fused) / 2, atol=1e-6, rtol=1e-4)
        fusion.gate.fill_(20)
        torch.testing.assert_close(fusion(given).tokens, fused, atol=1e-6, rtol=1e-4)


def test_the_gate_moves_first(parts, ready):
    fusion, given = ready(ResidualGate(Gated())), parts()
    fusion(given).tokens.square().sum().backward()
    assert float(fusion.gate.grad.abs()) > 0
    assert not any(p.grad.any() for p in fusion.fusion.parameters())


def test_it_stands_where_the_fusion_inside_does():
    fusion = ResidualGate(Cross(heads=2, layer=-2))
    assert not fusion.behind and fusion.layers == (-2,)


def test_spec_holds_the_fusion_inside():
    spec = ResidualGate(Gated(merge=2), per_channel=True).spec()
    assert spec["init_args"]["fusion"]["init_args"] == {"merge": 2}
    again = build(spec, Fusion)
    assert isinstance(again.fusion, Gated) and again.merge == 2 and again.spec() == spec


def test_the_gate_has_its_own_rate_and_no_decay(ready):
    model = torch.nn.ModuleDict({"fusion": ready(ResidualGate(Gated(), per_channel=True))})
    found = groups(model, [Group("fusion.gate", lr=1e-3, wd=0.1), Group("fusion.*", lr=1e-4, wd=0.1)])
    gate = next(g for g in found if any(p is model["fusion"].gate for p in g["params"]))
    assert (gate["lr"], gate["weight_decay"], len(gate["params"])) == (1e-3, 0.0, 1)
