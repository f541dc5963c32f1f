"""`gnomon bench kernels`: what is timed is what was checked, what is wrong or too slow is said."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from gnomon.cli.main import main
from gnomon.eval.bench import kernels
from gnomon.eval.bench.kernels import Setting, Timing, grid, run
from gnomon.eval.names import operators
from gnomon.kernels.op import Impl

SETTING = Setting(1, 2, 8, torch.float32, torch.device("cpu"), True, 60.0)


def timings(names: list[str], setting: Setting = SETTING, found=None) -> list[Timing]:
    return list(run(found or operators(names), [kernels.CHECKED], setting))


def test_every_operator_runs_and_is_right():
    found = timings([], replace(SETTING, backward=False))
    assert {t.operator for t in found if t.forward is None} == set(), [t.note for t in found if t.forward is None]
    assert all(t.error < 1e-4 for t in found if not t.operator.startswith("dense"))


def test_a_wrong_operator_is_not_timed():
    (gla,) = operators(["gla"])
    wrong = Impl(lambda *args, **named: (gla.op.impls["chunk"].call(*args, **named)[0] * 1.01, named["state"]))
    op = replace(gla.op, impls={**gla.op.impls, "chunk": wrong}, auto=("chunk",))

    def function(*args, **named):
        q, k, v = args
        chosen = "reference" if named["impl"] == "reference" else "chunk"
        return op.run(chosen, q, k, v, mask=named["mask"], per_key={"g": named["g"]}, options={"block": 16})

    (timing,) = timings([], found=[replace(gla, op=op, function=function)])[2:]
    assert timing.forward is None and timing.note == "wrong by 0.01, not timed"


def test_what_is_too_slow_is_left_out_of_longer_lengths():
    setting = replace(SETTING, patience=0.0)
    found = [t for t in run(operators(["plain"]), [64, 128], setting) if t.operator == "linear/plain"]
    assert found[0].forward and found[1].forward is None and "left out" in found[1].note


@pytest.mark.parametrize(("length", "wanted"), [(576, (24, 24)), (60, (6, 10)), (13, (1, 13))])
def test_grid(length, wanted):
    assert grid(length) == wanted


def test_command_writes_a_table_and_json(tmp_path, capsys):
    assert (
        main(["bench", "kernels", "--ops", "lightning", "--lengths", "64", "--heads", "2", "--out", str(tmp_path)]) == 0
    )
    data = json.loads((tmp_path / "kernels.json").read_text())
    ours = next(r for r in data["results"] if r["operator"] == "linear/lightning")
    assert ours["forward"] > 0 and ours["both"] > 0 and ours["dense_forward"] > 0 and ours["implementation"] == "chunk"
    told = capsys.readouterr().out
    assert "| linear/lightning, causal | chunk | 64 |" in told and told in (tmp_path / "kernels.md").read_text() + told


def test_an_unknown_operator_is_named(capsys):
    assert main(["bench", "kernels", "--ops", "ligtning"]) == 2
    assert "operator 'ligtning' is unknown; did you mean 'lightning'?" in capsys.readouterr().err
