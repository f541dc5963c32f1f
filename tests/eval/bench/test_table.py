"""The table of a bench, from numbers that are given."""

import json

from gnomon.eval.bench.decode import Measured
from gnomon.eval.bench.table import HEAD, markdown, plain, speedups


def result(name: str, *, flops: int, causal: int, prefill: list[float], choosing=(), length: int = 100) -> Measured:
    return Measured(
        name, visual=80, text=20, rows=1, lengths=[length] * 2, cached=[length] * 2, flops=flops, causal=causal,
        besides=0, cache_bytes=2**20, prefill=prefill, first_token=prefill, decode=[0.5, 0.5, 0.5],
        choosing=list(choosing), tokens=4,
    )  # fmt: skip


BASE = result("unreduced", flops=800, causal=600, prefill=[1.0, 3.0, 1.0])
HALF = result("half", flops=200, causal=200, prefill=[0.5, 1.0, 0.4], choosing=[0.1, 0.02, 0.01], length=60)


def test_speedups_are_medians_over_neighbouring_runs():
    found = speedups(BASE, HALF)
    # 2, 3 and 2.5; three by causal arithmetic, four by the full square; 0.02 of a median second
    assert found["speedup"] == 2.5 and found["promised"] == 3 and found["promised_square"] == 4
    assert found["reached"] == 2.5 / 3 and found["reached_square"] == 2.5 / 4 and found["choosing_share"] == 0.02


def test_the_table_has_a_cell_for_every_head():
    lines = markdown([BASE, HALF]).splitlines()
    assert len(lines) == 4 and all(line.count("|") == len(HEAD) + 1 for line in lines)
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert (
        cells[:3] == ["half", "40", "500.0"]
        and cells[4] == "8.0"
        and cells[8:] == ["2.50", "3.00", "0.83", "4.00", "0.62", "2.0 %"]
    )


def test_plain_data_is_json():
    data = json.loads(json.dumps(plain([BASE, HALF])))
    assert data[1]["setting"] == "half" and data[1]["kept"] == 0.5 and data[1]["prefill"] == [0.5, 1.0, 0.4]
