"""`gnomon bench kernels`: what is timed is what was checked; what is wrong, too slow or too large is said."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import wraps
from inspect import signature

import pytest
import torch
from torch import Tensor

from gnomon.cli.main import main
from gnomon.eval.bench import kernels
from gnomon.eval.bench.density import density
from gnomon.eval.bench.kernel_calls import Call, Setting, checks, grid, is_pattern
from gnomon.eval.bench.kernel_table import COLUMNS, line
from gnomon.eval.bench.kernels import Timing, no_room, run
from gnomon.eval.bench.peers import Peer
from gnomon.eval.names import operators
from gnomon.kernels.analysis.roofline import Device
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.op import Impl

SETTING = Setting(1, 2, 8, torch.float32, torch.device("cpu"), True, 60.0)


def timings(names: list[str], setting: Setting = SETTING, found=None, lengths=(kernels.CHECKED,)) -> list[Timing]:
    return list(run(found or operators(names), lengths, setting, device=Device(1e9, 1e9), others=False))


def failing(name: str, *, call):
    """An operator whose chunked form is replaced."""
    (member,) = operators([name])

    def function(*args, impl: str, **named):
        return member.function(*args, impl=impl, **named) if impl == "reference" else call(*args, **named)

    return replace(member, function=function)


def test_every_operator_runs_and_is_right():
    found = timings([], replace(SETTING, backward=False))
    assert {t.operator for t in found if t.forward is None} == set(), [t.note for t in found if t.forward is None]
    assert all(t.error < 1e-4 for t in found if not t.operator.startswith("dense"))
    assert all(t.operations > 0 and t.bytes > 0 and t.floor > 0 for t in found)
    remember = {f"{m.family}/{m.op.name}" for m in operators([]) if "state" in signature(m.function).parameters}
    assert {t.operator for t in found if t.step} == {"dense attention (SDPA)"} | remember


def test_what_is_counted_is_what_was_called():
    """Two heads 8 wide: all pairs, half of them, those on rows of 16; BASED has queries and keys of its own width."""
    found = {t.operator: t for t in timings(["exact", "axial", "based"])}
    dense = 4 * 2 * 8 * 256**2
    assert found["softmax/exact"].operations == dense / 2
    assert found["sparse/axial"].operations == pytest.approx(dense / 16) and not found["sparse/axial"].causal
    assert found["linear/based"].operations == 2 * 256 * (4 * (1 + 16 + 136) * 9 + 64 * (16 + 9))
    assert found["linear/based"].note == "queries and keys 16 wide"


def test_an_operator_of_two_attentions_counts_both(flop_counter):
    """Four maps of two signal and two noise heads, over values of twice the width."""
    setting = replace(SETTING, heads=4, backward=False)
    (found,) = timings(["grouped_differential"], setting)[2:]
    with flop_counter() as counter:
        Call(operators(["grouped_differential"])[0], 256, False, setting, "reference").forward()
    # all pairs there, half of them here
    assert found.operations == counter.get_total_flops() / 2 == 2 * 2 * 256**2 * (8 + 16)


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


def steep(o: Tensor) -> Tensor:
    """The same numbers with gradients of one and a half."""
    return o + 0.5 * (o - o.detach())


def test_what_has_wrong_gradients_is_not_timed():
    """Where they are timed; its outputs are right."""

    def call(q, k, v, **named):
        o, state = operators(["plain"])[0].function(q, k, v, **named)
        return steep(o), state

    (wrong,) = timings([], found=[failing("plain", call=call)], lengths=[64])[2:]
    assert wrong.forward is None and wrong.note == "wrong by 0.5, not timed"
    (right,) = timings([], replace(SETTING, backward=False), found=[failing("plain", call=call)], lengths=[64])[2:]
    assert right.forward and right.error < 1e-4


@pytest.mark.parametrize("which", "qkv")
def test_a_gradient_that_is_not_there_is_wrong(which):
    def call(*given, **named):
        q, k, v = (x.detach() if name == which else x for name, x in zip("qkv", given))
        return operators(["plain"])[0].function(q, k, v, **named)

    (wrong,) = timings([], found=[failing("plain", call=call)], lengths=[64])[2:]
    assert wrong.forward is None and wrong.note == "wrong by 1, not timed"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_every_family_are_right(dtype):
    found = timings(["exact", "lightning", "deltanet", "mala", "power", "infllm_v2"], replace(SETTING, dtype=dtype))
    assert all(t.both for t in found), [t.note for t in found if not t.both]


def test_what_has_no_backward_is_timed_without():
    found = (
        timings(["exact"], SETTING, lengths=[64])[2:]
        + list(run(operators(["exact"]), [64], SETTING, impl="flex", others=False))[2:]
    )
    assert [bool(t.both) for t in found] == [True, False] and all(t.forward for t in found)
    assert "FlexAttention has no backward on the CPU" in found[1].note


BY_DATA = ("infllm_v2", "sla")
SPARSE = {m.op.name: m for m in operators(["sparse"]) if is_pattern(m) or m.op.name in BY_DATA}
HIDING = ("axial", "blockrank", "clear", "infllm_v2", "neighborhood", "power", "radial", "s2", "sla")


def seen(call: Call) -> Tensor:
    """(B,H,T,T) who sees whom: with keys of one each as values, the outputs are the weights."""
    q, k, v = call.qkv
    one = torch.eye(k.shape[1], dtype=v.dtype)[None, :, None].expand(*k.shape[:3], -1)
    given = {"mask": CAUSAL if call.causal else None, "impl": "reference"}
    return call.member.function(q, k, one, **call.options, **given)[0].transpose(1, 2) > 0


@pytest.mark.parametrize("name", SPARSE)
def test_density_is_the_share_of_pairs_with_any_weight(name):
    """At the sizes that are timed, and at those of the check, of which one hides something of all that are here now."""
    member, shares = SPARSE[name], []
    causal = "CS" in member.op.patterns and not member.op.grid
    for other in checks(member, kernels.CHECKED, torch.float32):
        call = Call(member, kernels.CHECKED, causal, SETTING, "reference", wide=True, other=other)
        call.forward()
        whole = kernels.CHECKED * (kernels.CHECKED + 1) / 2 if causal else kernels.CHECKED**2
        shares.append(float(seen(call).sum()) / (2 * whole))
        assert density(call) == pytest.approx(shares[-1], rel=1e-6)
    assert min(shares) < 1 or name not in HIDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["infllm_v2", "power", "blockrank"])
def test_what_is_wrong_where_something_is_hidden_is_not_timed(name, dtype):
    """These see everything at 256 tokens, where they are checked, and so would never be caught."""
    (member,) = operators([name])
    setting = replace(SETTING, dtype=dtype, backward=False)
    (right,) = timings([name], setting)[2:]
    assert right.forward and right.density == 1 and right.note == "dense at this length"

    @wraps(member.function)
    def function(*args, impl: str, **named):
        o, state = member.function(*args, impl=impl, **named)
        sparse = named.get("dense_length", 1) == 0 or named.get("block", 0) == 16 or "blocks" in named
        return (o * 0.5 if impl != "reference" and sparse else o), state

    (wrong,) = timings([], setting, found=[replace(member, function=function)])[2:]
    assert wrong.forward is None and wrong.note == "wrong by 0.5, not timed"


def test_infllm_v2_is_dense_up_to_a_length():
    (member,) = operators(["infllm_v2"])
    shares = [density(Call(member, length, True, SETTING, "auto")) for length in (8192, 8256)]
    # 64 blocks of 64 are 4,096 tokens: up to there all pairs, and behind it so many of each token less half a block
    assert shares == [1, pytest.approx((4096**2 / 2 + 4160 * (4096 - 31.5)) / (8256**2 / 2), rel=1e-3)]


def test_a_pattern_whose_check_hides_nothing_is_told():
    (clear,) = operators(["clear"])

    @wraps(clear.function)
    def function(*args, **named):
        return clear.function(*args, **{**named, "radius": 22})

    found = timings([], replace(SETTING, backward=False), found=[replace(clear, function=function)], lengths=[256, 576])
    notes = [t.note for t in found if t.operator == "sparse/clear"]
    assert notes == ["dense at this length", "checked where it is dense, at 256 tokens"]


def test_a_check_that_yields_nan_is_wrong():
    """Whichever of several checks it is."""
    (member,) = operators(["power"])

    @wraps(member.function)
    def function(*args, impl: str, **named):
        o, state = member.function(*args, impl=impl, **named)
        return (o * float("nan") if impl != "reference" and "block" in named else o), state

    (found,) = timings([], replace(SETTING, backward=False), found=[replace(member, function=function)])[2:]
    assert found.forward is None and found.note == "wrong by nan, not timed"


def test_what_only_selects_needs_no_gradient():
    def call(q, k, v, *, g, **named):
        return operators(["gla"])[0].function(q, k, v, g=g.detach(), **named)

    (found,) = timings([], found=[failing("gla", call=call)], lengths=[64])[2:]
    assert found.forward and found.both and found.note == ""


def test_results_from_before_there_was_a_density_are_still_lines():
    old = {f.name: None for f in fields(Timing) if f.name != "density"}
    old |= {"operator": "sparse/power", "implementation": "tile", "length": 576, "causal": True, "note": ""}
    old |= {"limit": "", "forward": 0.5}
    cells = line(Timing(**old)).split("|")
    assert len(cells) == len(COLUMNS) + 2 and [cell.strip() for cell in cells[1:6]] == [
        "sparse/power, causal", "tile", "576", "", "500"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("taken", "patience", "wanted", "calls"),
    [
        # as many as fit into half a second: 50 at most, 5 at least, 3 of what takes longer by itself
        ([0.02, *[0.03] * 10, 0.01, *[0.03] * 39], 9.0, 0.01, 26),
        ([1e-4, *[2e-4] * 60], 9.0, 1e-4, 51),
        ([0.3, 0.2, 0.4, 0.25, 0.2], 9.0, 0.2, 5),
        ([2.0, 3.0, 1.5], 9.0, 1.5, 3),
        # what is beyond patience is not called again
        ([10.0], 9.0, 10.0, 1),
    ],
)
def test_the_fastest_call_counts(monkeypatch, taken, patience, wanted, calls):
    left = list(taken)
    monkeypatch.setattr(kernels, "_once", lambda *_: left.pop(0))
    assert kernels._seconds(lambda: None, torch.device("cpu"), patience=patience) == wanted
    assert len(taken) - len(left) == calls


def test_what_is_too_slow_is_left_out_of_longer_lengths():
    setting = replace(SETTING, patience=1e-9)
    found = [t for t in timings(["plain"], setting, lengths=[64, 128]) if t.operator == "linear/plain"]
    assert found[0].forward and found[1].forward is None
    assert found[1].note == "left out: over 1e-09 s at a shorter length"


def test_what_memory_does_not_hold_is_said_and_the_rest_goes_on():
    assert no_room(64, SETTING) is None
    found = timings(["plain"], lengths=[10**12, 64])
    assert [t.length for t in found] == [64, 64, 64, 10**12] and found[2].forward
    assert found[3].note.startswith("needs ") and "are free; use shorter lengths" in found[3].note

    def call(q, k, v, **named):
        if q.shape[1] > 64 and q.shape[1] != kernels.CHECKED:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return operators(["plain"])[0].function(q, k, v, **named)

    found = timings([], found=[failing("plain", call=call), *operators(["gla"])], lengths=[64, 100, 128])
    notes = [t.note for t in found if t.operator == "linear/plain"]
    assert notes == ["", "out of memory", "left out: out of memory at a shorter length"]
    assert all(t.forward and not t.note for t in found if t.operator == "linear/gla")


def test_a_length_that_a_pattern_refuses_does_not_end_its_row():
    found = [t for t in timings(["radial"], lengths=[60, 256]) if t.operator == "sparse/radial"]
    assert found[0].forward is None and "grid" in found[0].note and found[1].forward and not found[1].note


class Backless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise NotImplementedError("none in this version")


def test_peers_are_checked_before_they_are_timed(monkeypatch):
    def broken(call):
        raise TypeError("no argument 'scale'")

    def halfway(call):
        return lambda: Backless.apply(call.output())

    others = [
        Peer("right", lambda call: call.output),
        Peer("wrong", lambda call: lambda: 1.5 * call.output()),
        Peer("elsewhere", lambda call: call.output, absent="not installed"),
        Peer("broken", broken),
        Peer("half", lambda call: call.output, forward_only="no backward"),
        Peer("steep", lambda call: lambda: steep(call.output())),
        Peer("halfway", halfway),
    ]
    monkeypatch.setattr(kernels, "peers", lambda *known: others)
    found = list(run(operators(["plain"]), [64, 128], SETTING))
    notes = {(t.implementation, t.length): t.note for t in found if t.operator == "linear/plain"}
    assert notes["wrong", 64] == notes["wrong", 128] == "wrong by 0.5, not timed"
    assert notes["elsewhere", 64] == "not installed" and ("elsewhere", 128) not in notes
    assert notes["broken", 64] == "does not run here: no argument 'scale'"
    assert notes["broken", 128] == "left out: failed at a shorter length"
    timed = {t.implementation: t for t in found if t.length == 128 and t.forward}
    assert set(timed) == {"sdpa", "chunk", "right", "half", "halfway"}
    assert notes["steep", 64] == "wrong by 0.5, not timed"
    assert timed["halfway"].both is None and timed["halfway"].note == "no backward: none in this version"
    assert timed["right"].both and timed["half"].both is None and timed["half"].note == "no backward"


@pytest.mark.parametrize(("length", "wanted"), [(576, (24, 24)), (60, (6, 10)), (13, (1, 13))])
def test_grid(length, wanted):
    assert grid(length) == wanted


def bench(*arguments: object) -> int:
    return main(["bench", "kernels", "--ops", "lightning", "--heads", "2", *map(str, arguments)])


def test_command_writes_a_table_and_json(tmp_path, capsys):
    assert bench("--lengths", 64, "--out", tmp_path / "new" / "folder") == 0
    data = json.loads((tmp_path / "new" / "folder" / "kernels.json").read_text())
    ours = next(r for r in data["results"] if r["operator"] == "linear/lightning")
    assert ours["forward"] > 0 and ours["both"] > 0 and ours["dense_forward"] > 0 and ours["implementation"] == "chunk"
    told = capsys.readouterr().out
    assert "| linear/lightning, causal | chunk | 64 |" in told and "fla is not installed" in told
    assert told == (tmp_path / "new" / "folder" / "kernels.md").read_text()


def test_lengths_go_up_to_65536(monkeypatch):
    seen = []
    monkeypatch.setattr(kernels, "run", lambda found, lengths, *args, **named: seen.extend(lengths) or iter(()))
    assert bench() == 0 and seen == [576, 2304, 9216, 36864, 65536]


def test_ctrl_c_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    def interrupted(*args, **named):
        yield Timing("linear/one", "chunk", 64, True, forward=1.0)
        assert len(json.loads((tmp_path / "kernels.json").read_text())["results"]) == 1, "not written at once"
        yield Timing("linear/two", "chunk", 64, True, forward=2.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "run", interrupted)
    assert bench("--out", tmp_path) == 130
    told = capsys.readouterr()
    assert told.err == f"gnomon: stopped; the 2 lines measured so far are in {tmp_path}\n"
    assert [r["operator"] for r in json.loads((tmp_path / "kernels.json").read_text())["results"]] == [
        "linear/one", "linear/two"
    ]  # fmt: skip
    assert told.out == (tmp_path / "kernels.md").read_text() and "| linear/two, causal |" in told.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels.json", "kernels.md"]


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "run", lambda *args, **named: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    assert bench("--out", tmp_path / "file") == 2
    told = capsys.readouterr().err
    assert told.startswith(f"gnomon: {tmp_path / 'file' / 'kernels.json'} cannot be written (")
    assert told.endswith("; use another --out\n") and told.count("\n") == 1


def test_an_unknown_operator_is_named(capsys):
    assert main(["bench", "kernels", "--ops", "ligtning"]) == 2
    assert "operator 'ligtning' is unknown; did you mean 'lightning'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--lengths", "0", "'0' is not a whole number of 1 or more"),
        ("--lengths", "-64", "'-64' is not a whole number of 1 or more"),
        ("--lengths", "1e3", "'1e3' is not a whole number of 1 or more"),
        ("--heads", "0", "'0' is not a whole number of 1 or more"),
        ("--patience", "-1", "'-1' is no number of seconds above 0"),
        ("--patience", "nan", "'nan' is no number of seconds above 0"),
    ],
)
def test_numbers_that_are_none(option, value, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench(option, value)
    assert stopped.value.code == 2 and capsys.readouterr().err.strip().endswith(f"argument {option}: {told}")


def test_an_implementation_that_no_operator_has_is_told_first(capsys, monkeypatch):
    monkeypatch.setattr(kernels, "ceilings", lambda *_: pytest.fail("measured"))
    assert main(["bench", "kernels", "--ops", "plain", "--impl", "foo"]) == 2
    assert "--impl foo: none of these operators has it; use auto or " in capsys.readouterr().err
