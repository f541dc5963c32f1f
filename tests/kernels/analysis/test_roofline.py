"""The floor by hand, and that more tokens favour the operators that are linear in them."""

from dataclasses import replace

import pytest
import torch

from gnomon.kernels.analysis.roofline import Device, estimate, table
from gnomon.kernels.mask import CAUSAL, meet
from gnomon.kernels.masks.atoms import recent
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.members import members
from gnomon.kernels.op import Shape

OPS = {member.op.name: member.op for member in members()}
SHAPE = Shape(1, 1024, 1024, 8, 8, 64, 64, False, torch.bfloat16)


def test_dense_attention_by_hand():
    """4 Q K D operations per head, q, k, v and o once in two bytes, an exponential per pair."""
    found = estimate(OPS["exact"], SHAPE, Device(1e12, 1e9))
    assert found.operations == 4 * 8 * 1024 * 1024 * 64
    assert found.bytes == 2 * 4 * 8 * 1024 * 64
    assert found.exponentials == 8 * 1024 * 1024
    assert found.intensity == pytest.approx(512)
    # 2.1 ms of arithmetic, 4.2 ms of memory
    assert found.limit == "bytes" and found.seconds == pytest.approx(found.bytes / 1e9)
    assert estimate(OPS["exact"], SHAPE, Device(1e12, 1e12)).limit == "operations"
    assert estimate(OPS["exact"], SHAPE, Device(1e12, 1e12, 1e8)).limit == "exponentials"


@pytest.mark.parametrize("name", ["inline", "mala", "agent", "plain"])
def test_linear_operators_win_where_sequences_are_long(name):
    device = Device(1e12, 1e12)
    long = replace(SHAPE, queries=65536, keys=65536)
    assert estimate(OPS[name], long, device).seconds < estimate(OPS["exact"], long, device).seconds / 20
    twice = replace(long, queries=2 * 65536, keys=2 * 65536)
    assert estimate(OPS[name], twice, device).seconds == pytest.approx(2 * estimate(OPS[name], long, device).seconds)


def test_a_mask_is_counted_by_its_pairs():
    """A window of 32: token i sees min(i + 1, 32)."""
    pairs = sum(min(i + 1, 32) for i in range(1024))
    device = Device(1e12, 1e12, 1e12)
    found = estimate(
        OPS["power"], replace(SHAPE, causal=True), device, mask=meet(recent(32), CAUSAL).on(Tokens.line(1024))
    )
    assert found.operations == pytest.approx(4 * 8 * 64 * pairs) and found.exponentials == pytest.approx(8 * pairs)
    plain = estimate(OPS["exact"], replace(SHAPE, causal=True), device, mask=CAUSAL.on(Tokens.line(1024)))
    assert plain == estimate(OPS["exact"], replace(SHAPE, causal=True), device)


def test_table_is_sorted_by_the_floor():
    lines = table([m for m in members() if m.op.name in ("exact", "inline")], SHAPE, Device(1e12, 1e12)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["linear/inline", "softmax/exact"]
    assert len({line.count("|") for line in lines}) == 1


def test_a_peak_of_zero_is_refused():
    with pytest.raises(ValueError, match="roofline: "):
        Device(0, 1e9)
