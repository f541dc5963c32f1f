"""Training logs as they come: JSON lines or CSV, stages, gaps, torn lines."""

import json
import os

import pytest

from gnomon.eval.page.curves import find, pick, read, smooth, thin


def test_jsonl_with_stages_and_a_torn_line(tmp_path):
    rows = [
        {"stage": "align", "step": 10, "loss": 3.0},
        {"stage": "align", "step": 20, "loss": 2.0, "lr": 0.1},
        {"stage": "tune", "step": 10, "loss": 1.5, "note": "text"},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "tu')
    # the second stage goes on where the first ended
    assert read(path) == {"loss": ([10, 20, 30], [3.0, 2.0, 1.5]), "lr": ([20], [0.1])}


@pytest.mark.parametrize("line", [b"{broken", b"[3]", b"\xff\xfe"])
def test_a_damaged_line_is_named(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl line 2 is .*; delete the line"):
        read(path)


def test_csv_with_gaps(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss,val/acc\n0,1,2.5,\n0,2,,0.5\n0,3,nan,\n")
    columns = read(path)
    assert pick(columns, "loss") == ([1], [2.5])
    assert pick(columns, "acc") == ([2], [0.5]) and pick(columns, "lr", "learning_rate") is None


def test_find(tmp_path):
    assert find(tmp_path) == []
    (tmp_path / "logs" / "version_0").mkdir(parents=True)
    deep = tmp_path / "logs" / "version_0" / "metrics.csv"
    deep.write_text("step,loss\n")
    assert find(tmp_path) == [deep]


def test_find_every_run_and_each_once(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run / "logs" / "version_0").mkdir(parents=True)
        (tmp_path / run / "metrics.csv").write_text("step,loss\n")
        (tmp_path / run / "metrics.jsonl").write_text("{}\n")
        os.utime(tmp_path / run / "metrics.csv", (1, 1))
        # another logger of the same run
        (tmp_path / run / "logs" / "version_0" / "metrics.csv").write_text("step,loss\n")
    assert find(tmp_path) == [tmp_path / "a" / "metrics.jsonl", tmp_path / "b" / "metrics.jsonl"]


def test_smoothing():
    assert smooth([2.0, 2.0, 2.0], weight=0.9) == pytest.approx([2, 2, 2])
    # weights 0.5 and 1 (newest), over their sum
    assert smooth([3.0, 0.0], weight=0.5) == pytest.approx([3, 1])


def test_thinning_keeps_both_ends():
    x, y = thin((list(range(10_000)), list(range(10_000))), most=100)
    assert len(x) == 100 and (x[0], x[-1]) == (0, 9999) and x == y
    assert thin(([1], [2])) == ([1], [2])
