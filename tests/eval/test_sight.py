"""What is kept of a scene comes back from its file, and nothing in a file is ever executed."""

import errno
import io
import os
import pickle

import numpy as np
import pytest

from gnomon.eval.sight import Cloud, Facts, Sight, path_of, read, write

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
WHOLE = Sight(
    Facts("TinyGeo", "Gated", 2, shown=[0], factor=2.0, abs_rel=0.25, by_view=[0.5, 0.0], lent=True),
    PIXELS,
    depth=np.full((2, 6, 8), 1.5),
    true_depth=np.full((2, 6, 8), 2.5),
    cloud=Cloud(np.ones((5, 3)), np.full((5, 3), 9, np.uint8)),
    true_cloud=Cloud(np.ones((7, 3)), np.full((7, 3), 9, np.uint8), np.eye(3, 4)[None].repeat(2, 0)),
    gates={0: np.full((2, 3), 0.5), 1: np.zeros((2, 3))},
)


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "geometry" / "a.npz", WHOLE)
    again = read(tmp_path / "geometry" / "a.npz")
    assert again.facts == WHOLE.facts and np.array_equal(again.pixels, PIXELS)
    assert (again.depth == 1.5).all() and (again.true_depth == 2.5).all()
    assert again.cloud.points.shape == (5, 3) and again.cloud.cameras is None
    assert np.array_equal(again.true_cloud.cameras, WHOLE.true_cloud.cameras)
    assert {view: gate.tolist() for view, gate in again.gates.items()} == {0: [[0.5] * 3] * 2, 1: [[0.0] * 3] * 2}
    assert [path.name for path in (tmp_path / "geometry").iterdir()] == ["a.npz"]


def test_what_is_not_there_stays_away(tmp_path):
    write(tmp_path / "a.npz", Sight(Facts("TinyGeo", "Add", 2), PIXELS))
    again = read(tmp_path / "a.npz")
    assert again.depth is again.true_depth is again.cloud is again.true_cloud is None and again.gates == {}


def test_damaged_and_foreign_files_are_told_in_one_line(tmp_path):
    path = tmp_path / "a.npz"
    write(path, WHOLE)
    for content in (path.read_bytes()[:300], b"", b"no zip at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.npz is damaged .*delete it and repeat gnomon evaluate") as error:
            read(path)
        assert "\n" not in str(error.value)
    write(path, WHOLE)
    whole = path.read_bytes()
    # whatever byte is turned over: it reads, or says that it cannot
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            read(path)
        except ValueError as error:
            assert "is damaged" in str(error) and "\n" not in str(error)
    np.savez(path, pixels=PIXELS)
    with pytest.raises(ValueError, match="is damaged"):
        read(path)


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gnomon.eval.sight.write_bytes", full)
    with pytest.raises(ValueError, match=r"a.npz cannot be written \(No space left on device\); make room and repeat"):
        write(tmp_path / "a.npz", WHOLE)


class Spell:
    def __reduce__(self):
        return os.mkdir, ("cast",)


def test_pickles_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    np.savez(buffer, facts=np.array([Spell()], dtype=object), pixels=PIXELS)
    assert pickle.dumps(Spell()) and not (tmp_path / "cast").exists()
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="is damaged"):
        read(tmp_path / "a.npz")
    assert not (tmp_path / "cast").exists()


def test_every_item_has_a_file_of_its_own(tmp_path):
    names = [("scenes/nearer", "nearer/1"), ("scenes/nearer", "nearer 1"), ("scenes/count", "nearer/1"), ("a", "/../x")]
    paths = {path_of(tmp_path, *name) for name in names}
    assert len(paths) == 4 and {path.parent for path in paths} == {tmp_path / "geometry"}
