import properties
import pytest
import torch

from gnomon.vlm.multiview.losses.targets import mean_distance, normalise
from gnomon.vlm.multiview.pose import encode


@pytest.fixture
def given() -> dict[str, torch.Tensor]:
    """Two samples of three views whose depth is that of their points."""
    draw = torch.Generator().manual_seed(0)
    extrinsics = properties.rigid(7, seed=3)[1:, :3].reshape(2, 3, 3, 4)
    camera = torch.randn(2, 3, 4, 5, 3, dtype=torch.float64, generator=draw)
    points = (camera - extrinsics[:, :, None, None, :, 3]) @ extrinsics[:, :, None, :, :3]
    mask = torch.rand(2, 3, 4, 5, generator=draw) > 0.3
    return {"extrinsics": extrinsics, "points": points, "depth": camera[..., 2], "mask": mask}


def test_first_camera_is_the_frame_and_the_mean_distance_the_unit(given):
    found = normalise(**given)
    torch.testing.assert_close(found.extrinsics[:, 0], torch.eye(3, 4).double().expand(2, 3, 4), atol=1e-12, rtol=0)
    lens = torch.diag(torch.tensor([40.0, 40.0, 1.0], dtype=torch.float64)).expand(2, 3, 3)
    pose = encode(found.extrinsics[:, 0], lens, size=(8, 8))[:, :7]
    torch.testing.assert_close(pose, torch.eye(7).double()[6].expand(2, 7), atol=1e-12, rtol=0)
    for k in range(2):
        mean = found.points[k][given["mask"][k]].norm(dim=-1).mean()
        torch.testing.assert_close(mean, torch.tensor(1.0, dtype=torch.float64))


def test_cameras_points_and_depth_still_agree(given):
    found = normalise(**given)
    seen = found.points @ found.extrinsics[:, :, None, :, :3].mT + found.extrinsics[:, :, None, None, :, 3]
    torch.testing.assert_close(seen[..., 2][given["mask"]], found.depth[given["mask"]])
    torch.testing.assert_close(
        (found.depth * found.scale[:, None, None, None])[given["mask"]], given["depth"][given["mask"]]
    )


def test_world_frame_and_world_scale_do_not_matter(given):
    wanted = normalise(**given)
    for g in properties.rigid(5, similar=True):
        scale = torch.linalg.det(g[:3, :3]) ** (1 / 3)
        found = normalise(
            properties.reframe(g, given["extrinsics"]),
            properties.move(g, given["points"]),
            given["depth"] * scale,
            given["mask"],
        )
        for name in ("extrinsics", "points", "depth"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), atol=1e-10, rtol=0)
        torch.testing.assert_close(found.scale, wanted.scale * scale)


def test_invalid_points_become_zero_and_no_point_leaves_the_unit(given):
    given["points"][~given["mask"]] = float("nan")
    given["depth"][~given["mask"]] = float("inf")
    found = normalise(**given)
    assert found.points.isfinite().all() and (found.depth[~given["mask"]] == 0).all()
    empty = normalise(**given | {"mask": torch.zeros_like(given["mask"])})
    assert empty.scale.tolist() == [1, 1] and empty.extrinsics.isfinite().all()


def test_mean_distance_is_bounded():
    mask = torch.ones(3, 1, 1, 1, dtype=torch.bool)
    points = torch.tensor([0.0, 1e9, 5.0]).reshape(3, 1, 1, 1, 1) * torch.tensor([0.0, 0.6, 0.8])
    torch.testing.assert_close(mean_distance(points, mask), torch.tensor([1e-6, 1e6, 5.0]))
