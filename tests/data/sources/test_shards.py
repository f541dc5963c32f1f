import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest

from gnomon.data.errors import BadSample
from gnomon.data.sample import Sample, Turn
from gnomon.data.sources.shards import Shards, expand, index

TURNS = [{"role": "user", "text": "<image>?"}, {"role": "assistant", "text": "y"}]
RECORD = {"id": "a", "turns": TURNS, "answer": [1, 2]}


def tar(path, *members, kind="w"):
    """Members are (name, content) or finished TarInfos."""
    with tarfile.open(path, kind) as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            name, content = member
            content = json.dumps(content).encode() if isinstance(content, dict) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_items_and_images_in_order(tmp_path):
    folder = tarfile.TarInfo("sub")
    folder.type = tarfile.DIRTYPE
    # any order, as other tools write them, with members that are none of ours
    images = [(f"./sub/b.{k}.png", bytes([k])) for k in (10, 2, 0)]
    others = ("./sub/b.json", RECORD), ("./sub/b.cls", b"5"), ("c.json", RECORD | {"id": 3})
    path = tar(tmp_path / "x.tar", folder, *images, *others)
    first, second = Shards(str(path))
    assert first == Sample(
        "a",
        (Turn("user", "<image>?"), Turn("assistant", "y")),
        (b"\0", b"\2", b"\n"),
        [1, 2],
        {"where": f"shard {path} member sub/b"},
    )
    assert second.id == "3" and second.images == ()


def test_several_shards_and_random_access(tmp_path):
    for shard in range(3):
        tar(tmp_path / f"{shard:03d}.tar", *((f"{k}.json", RECORD | {"id": f"{shard}-{k}"}) for k in range(shard + 1)))
    wanted = ["0-0", "1-0", "1-1", "2-0", "2-1", "2-2"]
    for urls in (str(tmp_path / "*.tar"), str(tmp_path / "{000..002}.tar"), sorted(tmp_path.glob("*.tar"))):
        source = Shards(urls)
        assert [source[i].id for i in (5, 0, 3)] == [wanted[i] for i in (5, 0, 3)]
        assert [sample.id for sample in pickle.loads(pickle.dumps(source))] == wanted
    with pytest.raises(IndexError):
        source[6]


def test_the_index_is_kept_beside_the_shard_and_made_again_when_the_shard_changes(tmp_path):
    path = tar(tmp_path / "x.tar", ("a.json", RECORD))
    note = tmp_path / "x.tar.index.npz"
    Shards(path)
    made = note.stat().st_mtime_ns
    assert len(Shards(path)) == 1 and note.stat().st_mtime_ns == made
    tar(path, ("a.json", RECORD), ("b.json", RECORD))
    assert len(Shards(path)) == 2
    for damage in (b"", b"PK\3\4 not a zip", note.read_bytes()[:300]):
        note.write_bytes(damage)
        assert len(Shards(path)) == 2 and len(note.read_bytes()) > 300
    assert sorted(os.listdir(tmp_path)) == ["x.tar", "x.tar.index.npz"]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    path = tar(tmp_path / "x.tar", ("a.json", RECORD))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(np, "savez", refuse)
    assert len(Shards(path)) == 1 and os.listdir(tmp_path) == ["x.tar"]


def test_corrupt_members_are_bad_samples(tmp_path):
    path = tar(
        tmp_path / "x.tar",
        ("a.json", b"{"),
        ("b.png", b"1"),
        ("c.json", {"id": "c"}),
        ("d.json", b"[]"),
        ("e.json", RECORD | {"meta": 3}),
        ("f.json", b"\xff\xfe\xff"),
        ("g.json", RECORD),
    )
    source = Shards(path)
    expected = "a.json: is not JSON", "b.json: is missing", "c.json: has no", "d.json: has no", "e.json", "f.json"
    for item, says in enumerate(expected):
        with pytest.raises(BadSample) as error:
            source[item]
        assert f"shard {path} member {says}" in str(error.value) and "\n" not in str(error.value)
    assert source[6].id == "a"


@pytest.mark.parametrize(
    "member",
    [
        ("../evil.json", RECORD),
        ("/etc/evil.json", RECORD),
        ("a/../../evil.json", RECORD),
        link("evil.json", "/etc/passwd"),
        link("evil.json", "b.json", tarfile.LNKTYPE),
        link("evil.json", "", tarfile.FIFOTYPE),
    ],
    ids=["up", "absolute", "inside-up", "symlink", "hardlink", "fifo"],
)
def test_members_that_lead_out_are_refused(tmp_path, member):
    path = tar(tmp_path / "x.tar", ("b.json", RECORD), member)
    with pytest.raises(ValueError, match=r"x.tar: member '.*evil.json' is a link or leads out"):
        Shards(path)


def test_broken_shards_have_one_clear_line(tmp_path):
    whole = tar(tmp_path / "whole.tar", *((f"{k}.json", RECORD) for k in range(5))).read_bytes()
    broken = bytearray(whole)
    # the third member's header: each member takes a block for it and one for its content
    broken[4 * 512 : 4 * 512 + 20] = b"\xaa" * 20
    files = {
        "empty.tar": (b"", "is not an uncompressed tar"),
        "text.tar": (b"hello " * 200, "is not an uncompressed tar"),
        "nothing.tar": (b"\0" * 10240, "holds no item"),
        "cut.tar": (whole[: 5 * 512 + 20], "ends within member '2.json'"),
        "head.tar": (whole[: 4 * 512 + 100], "is damaged at byte 2048"),
        "middle.tar": (bytes(broken), "is damaged at byte 2048, after 2 items"),
    }
    for name, (content, says) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError) as error:
            Shards(tmp_path / name)
        assert f"shard {tmp_path / name}: {says}" in str(error.value) and "\n" not in str(error.value)
    tar(tmp_path / "packed.tar", ("a.json", RECORD), kind="w:gz")
    with pytest.raises(ValueError, match="is not an uncompressed tar"):
        Shards(tmp_path / "packed.tar")


def test_missing_shards(tmp_path):
    tar(tmp_path / "000.tar", ("a.json", RECORD))
    for url in ("none.tar", "none*.tar", "{000..001}.tar"):
        with pytest.raises(ValueError, match="no such file"):
            Shards(str(tmp_path / url))
    with pytest.raises(ValueError, match="no shard was given"):
        Shards([])


def test_braces(tmp_path):
    for name in ("a-9.tar", "a-10.tar", "b0-08.tar", "b1-08.tar"):
        (tmp_path / name).touch()
    assert [p.name for p in expand(str(tmp_path / "a-{9..10}.tar"))] == ["a-9.tar", "a-10.tar"]
    assert [p.name for p in expand(str(tmp_path / "b{0..1}-{08..08}.tar"))] == ["b0-08.tar", "b1-08.tar"]


def test_long_names_have_members_of_their_own(tmp_path):
    name = "deep/" * 40 + "x"
    for layout in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = tmp_path / f"{layout}.tar"
        with tarfile.open(path, "w", format=layout) as file:
            content = json.dumps(RECORD).encode()
            info = tarfile.TarInfo(f"{name}.json")
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        assert index(path).keys.tolist() == [name] and Shards(path)[0].id == "a"
