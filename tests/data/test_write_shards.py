import errno
import io
import json
import os
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from gnomon.data.sample import Sample, Source, Turn
from gnomon.data.sources.diagrams.source import Diagrams
from gnomon.data.sources.scenes.source import Scenes
from gnomon.data.sources.shards import Shards
from gnomon.data.write_shards import write


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(buffer, "JPEG")
    return buffer.getvalue()


class Pictures(Source):
    """An array, a file and encoded bytes in turn; every third sample has two images and some have none."""

    def __init__(self, folder, count=7):
        self.count, self.file, self.seed = count, folder / "red.jpg", 0
        self.file.write_bytes(jpeg())

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        kinds = (np.full((3, 4, 3), index + self.seed, np.uint8), self.file, jpeg())
        images = () if index == 5 else (kinds[index % 3], kinds[0])[: 1 + (index % 3 == 0)]
        turns = (Turn("user", "<image>" * len(images) + f" é {index}"), Turn("assistant", "y"))
        return Sample(f"id-{index}", turns, images, answer={"value": index}, meta={"level": index % 2})


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(image)))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_written_is_read_back(tmp_path, workers):
    source, steps = Pictures(tmp_path), []

    def note(done, total):
        steps.append((done, total))

    paths = write(source, tmp_path / "out", shard_size=3, workers=workers, on_progress=note)
    assert [path.name for path in paths] == ["000000.tar", "000001.tar", "000002.tar"]
    assert steps == [(n, 7) for n in range(1, 8)]
    back = Shards(paths)
    assert len(back) == 7
    for ours, theirs in zip(source, back):
        assert (ours.id, ours.turns, ours.answer) == (theirs.id, theirs.turns, theirs.answer)
        assert theirs.meta.pop("where") and ours.meta == theirs.meta
        assert len(ours.images) == len(theirs.images)
    assert (pixels(back[0].images[0]) == 0).all() and (pixels(back[3].images[1]) == 3).all()
    # encoded images are copied, not encoded again
    assert back[1].images == (jpeg(),) and back[2].images == (jpeg(),)


def test_webdataset_reads_them(tmp_path):
    source = Pictures(tmp_path)
    paths = write(source, tmp_path / "out", shard_size=3)
    items = list(webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("rgb8"))
    assert [item["json"]["id"] for item in items] == [sample.id for sample in source]
    assert [item["json"]["turns"][0]["text"] for item in items] == [sample.turns[0].text for sample in source]
    assert (items[3]["0.png"] == 3).all() and items[3]["0.png"].shape == (3, 4, 3)
    assert items[1]["0.jpg"].shape == (4, 5, 3) and "0.jpg" not in items[5]


class Breaks(Source):
    """Stops working at one sample, as a full disk or a killed process would."""

    def __init__(self, inner, at, error):
        self.inner, self.at, self.error = inner, at, error

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        if index == self.at:
            raise self.error
        return self.inner[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_leaves_whole_shards_and_goes_on(tmp_path, workers):
    source, out = Pictures(tmp_path), tmp_path / "out"
    with pytest.raises(RuntimeError):
        write(Breaks(source, 4, RuntimeError("killed")), out, shard_size=3, workers=workers)
    left = [name for name in sorted(os.listdir(out)) if name.endswith(".tar") or "draft" in name]
    assert "000001.tar" not in left and not any("draft" in name for name in left)
    for name in left:
        with tarfile.open(out / name) as tar:
            items = {member.split(".")[0] for member in tar.getnames()}
        assert len(items) == {"000000.tar": 3, "000002.tar": 1}[name]
    write(source, out, shard_size=3)
    stamps = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    # nothing is written twice, and the bytes are those of an undisturbed run
    paths = write(source, out, shard_size=3)
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")} == stamps
    for a, b in zip(paths, write(source, tmp_path / "again", shard_size=3)):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk(tmp_path, workers):
    full = Breaks(Pictures(tmp_path), 4, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ValueError, match=r"no space left while writing .*000001.tar; free some and run again") as error:
        write(full, tmp_path / "out", shard_size=3, workers=workers)
    assert "\n" not in str(error.value)
    assert not [name for name in os.listdir(tmp_path / "out") if "draft" in name]


def test_a_folder_with_other_shards_is_refused(tmp_path):
    write(Pictures(tmp_path), tmp_path / "out", shard_size=3)
    with pytest.raises(ValueError, match="use an empty folder"):
        write(Pictures(tmp_path), tmp_path / "out", shard_size=4)
    with pytest.raises(ValueError, match="use an empty folder"):
        write(Pictures(tmp_path, count=9), tmp_path / "out", shard_size=3)
    # as many samples with the same names, but drawn with another seed
    (tmp_path / "seed").mkdir()
    other = Pictures(tmp_path / "seed")
    other.seed = 1
    with pytest.raises(ValueError, match="use an empty folder"):
        write(other, tmp_path / "out", shard_size=3)


DRAWN = [
    (Diagrams, {"size": (112, 112)}, {"tasks": ["shape", "angle"]}, {"tasks": ["shape", "relation"]}),
    (Diagrams, {"size": (112, 112), "tasks": ["shape"]}, {"levels": [1, 2]}, {"levels": [1]}),
    (Scenes, {"size": (48, 48)}, {"tasks": ["nearer", "count"]}, {"tasks": ["nearer", "larger"]}),
]


@pytest.mark.parametrize(("drawn", "same", "first", "second"), DRAWN)
def test_shards_of_other_arguments_are_refused_though_the_first_sample_is_the_same(
    tmp_path, monkeypatch, drawn, same, first, second
):
    # whatever the arguments make of sample 0
    monkeypatch.setattr("gnomon.data.write_shards.members", lambda source, index: [(f"{index:09d}.json", b"{}")])
    (path,) = write(drawn(count=2, **same, **first), tmp_path)
    with pytest.raises(ValueError, match="holds shards of other samples"):
        write(drawn(count=2, **same, **second), tmp_path)
    assert write(drawn(count=2, **same, **first), tmp_path) == [path]


def test_shards_of_another_generator_are_refused(tmp_path, monkeypatch):
    write(Diagrams(count=1, tasks=["shape"], size=(112, 112)), tmp_path)
    monkeypatch.setattr("gnomon.data.sources.diagrams.source.generator_sha256", lambda folder: "other")
    with pytest.raises(ValueError, match="holds shards of other samples"):
        write(Diagrams(count=1, tasks=["shape"], size=(112, 112)), tmp_path)


def test_a_note_from_before_is_not_adopted_and_its_shards_are_read(tmp_path):
    source = Diagrams(count=1, tasks=["shape"], size=(112, 112))
    paths = write(source, tmp_path)
    note = json.loads((tmp_path / "shards.json").read_text())
    del note["source"]
    (tmp_path / "shards.json").write_text(json.dumps(note))
    with pytest.raises(
        ValueError, match="does not say what its shards were drawn with; read them as they are"
    ) as error:
        write(source, tmp_path)
    assert "\n" not in str(error.value)
    assert [sample.turns for sample in Shards(paths)] == [source[0].turns]


def test_user_mistakes(tmp_path):
    source = Pictures(tmp_path)
    with pytest.raises(ValueError, match="count 8 does not fit a source of 7 samples"):
        write(source, tmp_path / "out", count=8)
    with pytest.raises(ValueError, match="shard_size 0 is too small"):
        write(source, tmp_path / "out", shard_size=0)
    source.file.write_bytes(b"text")
    with pytest.raises(ValueError, match="image 0 of sample 'id-1': is not an image"):
        write(source, tmp_path / "out")


def test_geometry_is_read_back_bit_for_bit(tmp_path):
    source = Scenes(count=2, size=(48, 64), views=(2, 3))
    (back,) = [list(Shards(write(source, tmp_path / "out", shard_size=4)))]
    for ours, theirs in zip(source, back):
        for name in ("intrinsics", "extrinsics", "depth", "instances"):
            mine, read = getattr(ours.geometry, name), getattr(theirs.geometry, name)
            assert mine.dtype == read.dtype and np.array_equal(mine, read), name
        assert ours.answer == theirs.answer and ours.turns == theirs.turns
