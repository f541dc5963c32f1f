import pytest
import torch

from gnomon.vlm.multiview import rays

SIZE = (40, 60)


def cameras(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64))[0]
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    lens = torch.tensor([[70.0, 0, 25], [0, 80, 22], [0, 0, 1]], dtype=torch.float64).repeat(count, 1, 1)
    lens[:, 0, 0] += 10 * torch.arange(count)
    return torch.cat([rotation, torch.randn(count, 3, 1, dtype=torch.float64)], dim=-1), lens


def test_a_point_on_a_ray_is_seen_where_the_ray_began():
    extrinsics, lens = cameras()
    depth = 1 + torch.rand(3, *SIZE, dtype=torch.float64)
    points = rays.points(rays.from_cameras(extrinsics, lens, size=SIZE), depth)
    seen = torch.einsum("vij,vhwj->vhwi", extrinsics[..., :3], points) + extrinsics[:, None, None, :, 3]
    torch.testing.assert_close(seen[..., 2], depth, atol=1e-10, rtol=1e-10)
    pixel = torch.einsum("vij,vhwj->vhwi", lens, seen / seen[..., 2:])
    y, x = torch.meshgrid(torch.arange(40) + 0.5, torch.arange(60) + 0.5, indexing="ij")
    torch.testing.assert_close(pixel[..., 0], x.double().expand(3, -1, -1), atol=1e-9, rtol=0)
    torch.testing.assert_close(pixel[..., 1], y.double().expand(3, -1, -1), atol=1e-9, rtol=0)


def test_cells_of_a_grid_look_through_their_centres():
    extrinsics, lens = cameras(1)
    coarse = rays.from_cameras(extrinsics, lens, size=SIZE, grid=(20, 30))
    fine = rays.from_cameras(extrinsics, lens, size=SIZE)
    # a cell of two by two pixels has its centre at their common corner
    mean = fine.unflatten(1, (20, 2)).unflatten(3, (30, 2)).mean((2, 4))
    torch.testing.assert_close(coarse, mean, atol=1e-10, rtol=0)


@pytest.mark.parametrize("lengths", [False, True])
def test_rays_without_noise_give_their_camera_back(lengths: bool):
    extrinsics, lens = cameras()
    found = rays.from_cameras(extrinsics, lens, size=SIZE, grid=(16, 24)).float()
    if lengths:
        found = torch.cat([found[..., :3] * (0.5 + torch.rand(3, 16, 24, 1)), found[..., 3:]], dim=-1)
    again, intrinsics = rays.to_cameras(found[None], torch.ones(1, 3, 16, 24), size=SIZE)
    torch.testing.assert_close(again[0], extrinsics.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(intrinsics[0], lens.float(), atol=1e-2, rtol=1e-4)


def test_what_nobody_is_sure_of_does_not_count():
    extrinsics, lens = cameras(1)
    found = rays.from_cameras(extrinsics, lens, size=SIZE, grid=(16, 24))
    sure = torch.ones(1, 16, 24)
    found[:, :5], sure[:, :5] = torch.randn(1, 5, 24, 6), 0
    again, _ = rays.to_cameras(found, sure, size=SIZE)
    torch.testing.assert_close(again, extrinsics.float(), atol=1e-4, rtol=1e-4)


def test_inverting_twice_is_nothing():
    extrinsics, _ = cameras()
    world = rays.invert(extrinsics)
    torch.testing.assert_close(
        extrinsics[..., :3] @ world[..., 3:] + extrinsics[..., 3:], torch.zeros(3, 3, 1).double()
    )
    torch.testing.assert_close(rays.invert(world), extrinsics)


def test_motions_after_each_other_and_of_points():
    generator = torch.Generator().manual_seed(3)
    first, second = (
        torch.cat([torch.linalg.qr(torch.randn(2, 3, 3, generator=generator))[0], torch.randn(2, 3, 1)], -1)
        for _ in range(2)
    )
    points = torch.randn(2, 4, 5, 3, generator=generator)
    expected = torch.empty_like(points)
    for i in range(2):
        for y in range(4):
            for x in range(5):
                once = first[i, :, :3] @ points[i, y, x] + first[i, :, 3]
                expected[i, y, x] = second[i, :, :3] @ once + second[i, :, 3]
    with torch.autocast("cpu", torch.bfloat16):
        found = rays.moved(points, rays.compose(second, first))
        back = rays.moved(found, rays.invert(rays.compose(second, first)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back, points, atol=1e-5, rtol=1e-5)
