"""The journal: what a kill, a changed setting and a full disk leave behind."""

import errno
from dataclasses import replace

import pytest

from gnomon.eval.record import ITEMS, REDUCED, Journal, Record, digest, read_header, read_items

FIRST = Record(
    task="t",
    sample="a",
    prompt_sha256="p",
    decode_sha256="d",
    benchmark="b",
    item={"id": "a"},
    prompt="q",
    image_sha256=["0"],
    raw='B\nC "é"',
    finish="stop",
    prompt_tokens=9,
    visual_tokens=4,
    generated_tokens=3,
    seconds_prefill=0.1,
    seconds_decode=0.2,
    batch_size=2,
)
SECOND = replace(FIRST, sample="b")


def start(folder, *, fresh=False, **identity):
    return Journal.open(folder, identity={"model": "m", **identity}, session={"batch_size": 2}, fresh=fresh)


def test_round_trip_and_sessions(tmp_path):
    start(tmp_path).append([FIRST, SECOND])
    again = start(tmp_path)
    assert list(again.records.values()) == [FIRST, SECOND] == read_items(tmp_path)
    assert len(read_header(tmp_path)["sessions"]) == 2


@pytest.mark.parametrize("cut", [1, 2, 30, -1])
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path, cut):
    start(tmp_path).append([FIRST, SECOND])
    path = tmp_path / ITEMS
    whole = path.read_bytes()
    # also in the middle of the two bytes of an é
    path.write_bytes(whole[: whole.rindex("é".encode()) + 1] if cut < 0 else whole[:-cut])
    assert read_items(tmp_path) == [FIRST]
    again = start(tmp_path)
    assert list(again.records) == [FIRST.key]
    again.append([SECOND])
    assert path.read_bytes() == whole


def test_damage_inside_is_an_error_with_its_line(tmp_path):
    start(tmp_path).append([FIRST, SECOND])
    path = tmp_path / ITEMS
    path.write_text("{}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"items.jsonl line 1 is damaged"):
        start(tmp_path)


def test_another_setting_is_refused_in_one_line(tmp_path):
    start(tmp_path, dtype="float32", size=(1, 2)).append([FIRST])
    with pytest.raises(ValueError, match=r"dtype float32, now bfloat16") as error:
        start(tmp_path, dtype="bfloat16", size=(1, 2))
    assert "\n" not in str(error.value) and "--fresh" in str(error.value)
    assert len(read_header(tmp_path)["sessions"]) == 1
    # a tuple is stored as a list and is still the same setting
    assert len(start(tmp_path, dtype="float32", size=(1, 2)).records) == 1
    assert not start(tmp_path, dtype="bfloat16", size=(1, 2), fresh=True).records


def test_fresh_leaves_no_variant_of_other_questions(tmp_path):
    start(tmp_path).append([FIRST])
    start(tmp_path / REDUCED / "random-0.5").append([FIRST])
    start(tmp_path)
    assert (tmp_path / REDUCED / "random-0.5" / ITEMS).exists()
    start(tmp_path, fresh=True)
    assert not (tmp_path / REDUCED).exists()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    journal = start(tmp_path)
    journal.append([FIRST])

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        ValueError, match=r"items.jsonl cannot be written \(No space left on device\); make room and repeat"
    ):
        journal.append([SECOND])
    monkeypatch.undo()
    assert FIRST in start(tmp_path).records.values()


def test_no_header_no_results(tmp_path):
    with pytest.raises(ValueError, match="name a directory that `gnomon evaluate` wrote"):
        read_header(tmp_path)
    (tmp_path / "header.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        read_header(tmp_path)


def test_answers_without_a_header_are_not_adopted(tmp_path):
    start(tmp_path).append([FIRST])
    (tmp_path / "header.json").unlink()
    with pytest.raises(ValueError, match="unknown origin"):
        start(tmp_path)
    assert not start(tmp_path, fresh=True).records


def test_digest():
    # the published SHA-256 of "abc"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest("abc") == digest(b"abc") == abc
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
