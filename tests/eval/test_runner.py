"""Answers do not depend on the batch, and a run that is killed anywhere ends as if it had never been."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from gnomon.data.image import load
from gnomon.eval import runner
from gnomon.eval.benchmarks.diagrams import Diagrams
from gnomon.eval.evaluate import evaluate
from gnomon.eval.record import ITEMS, SCORES, read_header, read_items
from gnomon.eval.session import open_model

# Everything but transcription: the random model would write each of these to the end of its length.
TASKS = ["angle", "parallel", "annotation", "shape", "grounding", "tangram"]
LIMIT = 4


@pytest.fixture(scope="module")
def loaded(model_dir):
    return open_model(str(model_dir), device="cpu")


def benchmark():
    return Diagrams(tasks=TASKS, size=(112, 112))


@pytest.fixture(scope="module")
def alone(loaded, tmp_path_factory):
    """The run that all others are compared with: one item at a time, in one go."""
    return evaluate(loaded, [benchmark()], out=tmp_path_factory.mktemp("alone"), batch_size=1, limit=LIMIT)


def texts(folder):
    return {record.key: record.raw for record in read_items(folder)}


def test_same_answers_at_any_batch_size(loaded, alone, tmp_path):
    result = evaluate(loaded, [benchmark()], out=tmp_path, batch_size=7, limit=LIMIT)
    assert texts(tmp_path) == texts(alone.folder)
    assert (tmp_path / SCORES).read_bytes() == (alone.folder / SCORES).read_bytes()
    assert result.rows == alone.rows
    records = read_items(tmp_path)
    assert len(records) == LIMIT * len(TASKS) and max(record.batch_size for record in records) == 7
    # the test means something: prompts of different lengths were padded together, and answers differ
    assert len({record.prompt_tokens for record in records}) > 3 and len(set(texts(tmp_path).values())) > 5


def test_the_record_says_what_was_done(loaded, alone):
    first, *_ = records = read_items(alone.folder)
    bench = benchmark()
    samples = {sample.id: sample for sample in bench.examples(LIMIT)}
    assert {record.sample for record in records} == set(samples)
    sample = samples[first.sample]
    assert first.image_sha256 == [runner.picture(load(sample.images[0]))]
    assert first.item == json.loads(json.dumps(asdict(bench.item(sample))))
    assert first.visual_tokens == 49 and first.prompt_tokens > 36 and first.seconds_prefill > 0
    assert first.prompt == f"<|user|>{sample.turns[0].text}<|assistant|>"
    stopped = [record for record in records if record.finish == "length"]
    assert all(record.generated_tokens == 64 for record in stopped)
    assert alone.truncated == len(stopped) / len(records)
    header = read_header(alone.folder)
    assert header["identity"]["dtype"] == "float32" and len(header["identity"]["model_sha256"]) == 64
    assert header["sessions"][0]["batch_size"] == 1 and "torch" in header["sessions"][0]["versions"]


def test_a_second_run_asks_nothing(loaded, alone, monkeypatch):
    before = (alone.folder / ITEMS).read_bytes()
    monkeypatch.setattr(runner, "generate", lambda *a, **k: pytest.fail("asked again"))
    again = evaluate(loaded, [benchmark()], out=alone.folder, batch_size=5, limit=LIMIT)
    assert (alone.folder / ITEMS).read_bytes() == before and again.rows == alone.rows


def test_a_larger_limit_goes_on(loaded, alone, tmp_path):
    evaluate(loaded, [benchmark()], out=tmp_path, batch_size=3, limit=1)
    assert len(read_items(tmp_path)) == len(TASKS)
    assert evaluate(loaded, [benchmark()], out=tmp_path, batch_size=3, limit=LIMIT).rows == alone.rows


def test_another_setting_is_refused(loaded, alone):
    with pytest.raises(ValueError, match="holds results of another setting"):
        evaluate(loaded, [Diagrams(tasks=TASKS, size=(112, 112), seed=1)], out=alone.folder, limit=LIMIT)
    with pytest.raises(ValueError, match="decode"):
        evaluate(loaded, [benchmark()], out=alone.folder, limit=LIMIT, max_new_tokens=3)


KILLED = """
import os, signal, sys
from pathlib import Path
from gnomon.eval import record
from gnomon.eval.benchmarks.diagrams import Diagrams
from gnomon.eval.evaluate import evaluate
from gnomon.eval.session import open_model

model, out, tasks, limit = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4])
append, calls = record.Journal.append, []

def dying(self, records):
    calls.append(1)
    append(self, records)
    if len(calls) == 3:
        # half a line has reached the file when the end comes
        with (self.folder / record.ITEMS).open("a") as file:
            file.write('{"task": "standin/geopercep')
        os.kill(os.getpid(), signal.SIGKILL)

record.Journal.append = dying
evaluate(open_model(model, device="cpu"), [Diagrams(tasks=tasks, size=(112, 112))], out=out, batch_size=5, limit=limit)
"""


def test_a_killed_run_goes_on_without_repeating_or_losing_an_item(loaded, alone, model_dir, tmp_path):
    command = [sys.executable, "-c", KILLED, str(model_dir), str(tmp_path), ",".join(TASKS), str(LIMIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == -9, done.stderr
    left = read_items(tmp_path)
    assert 0 < len(left) < LIMIT * len(TASKS) and not (tmp_path / ITEMS).read_bytes().endswith(b"\n")
    result = evaluate(loaded, [benchmark()], out=tmp_path, batch_size=2, limit=LIMIT)
    records = read_items(tmp_path)
    assert records[: len(left)] == left
    assert len(records) == len({record.key for record in records}) == LIMIT * len(TASKS)
    assert (tmp_path / SCORES).read_bytes() == (alone.folder / SCORES).read_bytes()
    assert result.rows == alone.rows


def test_scores_come_from_the_raw_text_at_any_time(loaded, alone, tmp_path):
    """Edit one answer by hand: the next scoring sees it, and nothing else."""
    evaluate(loaded, [benchmark()], out=tmp_path, limit=1)
    before = (tmp_path / SCORES).read_text().splitlines()
    rows = [json.loads(line) for line in (tmp_path / ITEMS).read_text().splitlines()]
    rows[2]["raw"] = rows[2]["item"]["target"]
    (tmp_path / ITEMS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(loaded, [benchmark()], out=tmp_path, limit=1)
    changed = [new for old, new in zip(before, (tmp_path / SCORES).read_text().splitlines()) if old != new]
    assert [json.loads(line)["value"] for line in changed] == [1.0]
