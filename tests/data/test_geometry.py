"""Bad geometry is refused with what is wrong and what to do; good geometry survives moving and packing."""

from dataclasses import replace

import numpy as np
import pytest

from gnomon.data.cameras import CONVENTIONS, convert, project
from gnomon.data.errors import BadSample
from gnomon.data.geometry import ARRAYS, check, fits, pack, relative, unpack
from gnomon.data.sample import Geometry
from gnomon.data.sources.scenes.source import Scenes


@pytest.fixture(scope="module")
def scenes():
    return [sample.geometry for sample in Scenes(count=12, seed=1, views=3)]


def test_good_geometry_is_accepted_with_or_without_parts(scenes):
    for geometry in scenes:
        check(geometry, max_views=3)
        check(replace(geometry, points=None))
        check(Geometry(geometry.views))
        check(Geometry(geometry.views[:1]))


def spoiled(geometry, name, value, where=(1, 2, 3)):
    array = getattr(geometry, name).copy()
    array[where[: array.ndim]] = value
    return replace(geometry, **{name: array})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda g: replace(g, views=()), "no view; give at least 1"),
        (
            lambda g: replace(g, views=(*g.views[:2], g.views[2][:-2])),
            "view 2 is 110x112 but view 0 is 112x112; resize",
        ),
        (lambda g: replace(g, depth=g.depth[:2]), r"depth has shape \(2, 112, 112\) .* \(3, 112, 112\)"),
        (lambda g: spoiled(g, "depth", np.nan), r"depth\[1, 2, 3\] is nan; set it to 0"),
        (lambda g: spoiled(g, "depth", np.inf), r"depth\[1, 2, 3\] is inf"),
        (lambda g: spoiled(g, "points", np.nan), r"points\[1, 2, 3, 0\] is nan"),
        (lambda g: replace(g, depth=-g.depth), "depth is along \\+z"),
        (lambda g: spoiled(g, "intrinsics", 0.0, (1, 0, 0)), "intrinsics of view 1 are singular"),
        (lambda g: spoiled(g, "intrinsics", 0.0, (2, 2, 2)), "intrinsics of view 2"),
        (lambda g: replace(g, extrinsics=2 * g.extrinsics), "no rotation"),
        (lambda g: replace(g, extrinsics=g.extrinsics * [[[-1], [1], [1]]]), "det R = -1.*mirror"),
        (lambda g: spoiled(g, "extrinsics", np.inf, (0, 1, 3)), r"extrinsics\[0, 1, 3\] is inf"),
    ],
)
def test_bad_geometry_is_refused(scenes, spoil, message):
    with pytest.raises(BadSample, match=message) as caught:
        check(spoil(scenes[0]), name="sample 'x'")
    assert str(caught.value).startswith("sample 'x'") and "\n" not in str(caught.value)


def test_too_many_views(scenes):
    with pytest.raises(BadSample, match="3 views are more than max_views 2; leave some out or raise"):
        check(scenes[0], max_views=2)


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != "opencv"])
@pytest.mark.parametrize("points", [True, False])
def test_cameras_of_another_convention_are_recognised(scenes, name, points):
    """With point maps, or with depth alone."""
    for geometry in scenes:
        theirs = convert(geometry.extrinsics, source="opencv", target=name)
        wrong = replace(geometry, extrinsics=theirs, points=geometry.points if points else None)
        with pytest.raises(BadSample, match="camera-from-world, x right, y down") as caught:
            check(wrong)
        assert f"source={name!r}" in str(caught.value)
        check(replace(wrong, extrinsics=convert(theirs, source=name)))


def test_noisy_depth_is_no_wrong_convention(scenes):
    dice = np.random.default_rng(0)
    for geometry in scenes:
        noisy = geometry.depth * dice.uniform(0.9, 1.1, geometry.depth.shape).astype(np.float32)
        check(replace(geometry, depth=noisy, points=None))


def test_one_view_without_points_fits_anything(scenes):
    geometry = scenes[0]
    alone = Geometry(geometry.views[:1], geometry.intrinsics[:1], geometry.extrinsics[:1], geometry.depth[:1])
    assert fits(alone) == {} and fits(Geometry(geometry.views)) == {}
    check(alone)


def test_relative_to_a_view(scenes):
    for geometry in scenes:
        moved = relative(geometry, view=1)
        assert moved.extrinsics[1] == pytest.approx(np.eye(4)[:3], abs=1e-9)
        check(moved)
        known = geometry.depth[1] > 0
        # in its own frame, a view's points are at its depth
        np.testing.assert_allclose(moved.points[1][known][:, 2], geometry.depth[1][known], rtol=1e-5)
        assert not moved.points[1][~known].any()
        for k in range(3):
            seen = geometry.depth[k] > 0
            pixel, _ = project(moved.points[k][seen], moved.intrinsics[k], moved.extrinsics[k])
            v, u = np.nonzero(seen)
            np.testing.assert_allclose(pixel, np.stack([u, v], -1) + 0.5, atol=2e-3)
        facing = (moved.normals[1] * moved.points[1]).sum(-1)
        assert (facing[known] < 1e-4).all()
    with pytest.raises(ValueError, match="no extrinsics"):
        relative(Geometry(scenes[0].views))


def test_packing(scenes):
    for geometry in scenes[:4]:
        back = unpack(pack(geometry), geometry.views)
        for name in ARRAYS:
            before, after = getattr(geometry, name), getattr(back, name)
            assert before.dtype == after.dtype
            np.testing.assert_allclose(after, before, atol={"normals": 1e-3, "points": 1e-4}.get(name, 0))
        bare = unpack(pack(Geometry(geometry.views, depth=geometry.depth)), geometry.views)
        assert bare.points is None and bare.normals is None and (bare.depth == geometry.depth).all()


def test_a_broken_or_hostile_file_is_refused(tmp_path, scenes):
    np.savez(tmp_path / "bad.npz", depth=np.array([{"a": 1}], dtype=object))
    for content in (b"", b"no zip", (tmp_path / "bad.npz").read_bytes(), pack(scenes[0])[:-50]):
        with pytest.raises(BadSample, match=r"shard 1: is no \.npz of plain arrays"):
            unpack(content, (), name="shard 1")
