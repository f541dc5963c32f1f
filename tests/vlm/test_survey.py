"""Survey: which image gets which tokens of which view, in batches of scenes of several sizes and numbers of views."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.fusion.base import Told
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.layout import Features, Views
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.survey import in_first, in_metres, per_cell, survey, together


class Mean(GeometryEncoder):
    """A token is the mean grey of its 4 x 4 pixels; layer k is k more."""

    width, patch, multiple, heads = 1, 4, 4, frozenset({"points"})
    layer_count = 3

    def forward(self, scenes: GeometryInput, *, layers=(), heads=()) -> GeometryOutput:
        grey = scenes.images.mean(2) * 255
        h, w = (side // 4 for side in grey.shape[2:])
        tokens = grey.unflatten(3, (w, 4)).unflatten(2, (h, 4)).mean((3, 5)).flatten(2)[..., None]
        tokens = tokens * scenes.valid[..., None, None]
        output = GeometryOutput(tokens, (h, w), scenes.valid, layers={k: tokens + k for k in layers})
        output.special = tokens[:, :, :1]
        if "points" in heads:
            output.points = grey[..., None].expand(*grey.shape, 3)
        return output


# turned by a quarter about the vertical axis: what lies ahead of the first camera lies to the right of the second
TURN = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])


class Elsewhere(Known):
    """Known, whose points it gives in another frame; it may leave its cameras, or its unit, to itself."""

    def __init__(self, frame: str, *, heads=("points", "camera"), scale: float | None = None) -> None:
        super().__init__(patch=2)
        self.heads, self.frame, self.unit = frozenset(heads), frame, scale

    def forward(self, scenes: GeometryInput, *, layers=(), heads=()) -> GeometryOutput:
        output = super().forward(scenes, layers=layers, heads=heads)
        output.frame, unit = self.frame, self.unit or 1
        output.scale = None if self.unit is None else torch.full((len(scenes.valid),), self.unit)
        # two cells of one point each, seen at (1, 2, 3) by either camera; nothing is known of a corner
        place = torch.tensor([1.0, 2, 3]) if self.frame == "own_camera" else torch.tensor([4.0, 5, 6])
        output.points = (place / unit).expand(*scenes.depth.shape, 3).clone()
        output.points[..., 0, 0, :] = 0
        return output


def turned(*, extrinsics: bool = True) -> Views:
    """Two views of 2 x 4 pixels: the first moved, the second moved and turned. X_cam = R X_world + t."""
    pose = torch.stack([torch.eye(3, 4), torch.cat([TURN, torch.tensor([[0.0], [0], [5]])], 1)])
    pose[0, :, 3] = torch.tensor([10.0, 20, 30])
    lens = torch.eye(3).expand(2, 3, 3)
    pixels = torch.zeros(2, 3, 2, 4, dtype=torch.uint8)
    return Views(pixels, [0, 1], lens, pose if extrinsics else None, torch.ones(2, 2, 4))


def views(values: list[int], image: list[int], size: tuple[int, int] = (8, 12)) -> Views:
    return Views(torch.stack([torch.full((3, *size), value, dtype=torch.uint8) for value in values]), image)


SCENES = [views([10, 11], [2, -1]), views([20, 21, 22], [0, 4, -1], (4, 4)), views([30], [3])]
"""Images 0 and 4 show a small scene, 2 and 3 large ones, 1 and 5 none."""


def test_each_image_gets_its_own_view():
    found = survey(Mean(), SCENES)
    assert found.scenes == [[0, 2], [1]]
    pairs = found.of([5, 3, 2, 1])
    assert len(pairs) == 1
    places, known = pairs[0]
    assert places.tolist() == [1, 2] and known.grid == [(2, 3)] * 2
    assert known.tokens[:, 0, 0].tolist() == [30, 10] and known.camera.flatten().tolist() == [30, 10]
    assert known.where.tolist() == [[0, 1, 0], [0, 0, 0]]
    places, known = found.of([4, 0])[0]
    assert places.tolist() == [0, 1] and known.tokens.flatten().tolist() == [21, 20] and known.grid == [(1, 1)] * 2
    assert found.of([1, 5]) == []


def test_layers_stand_side_by_side():
    found = survey(Mean(), SCENES, layers=(-1, 1))
    assert found.of([2])[0][1].tokens[0, 0].tolist() == [9, 11]


def test_points_come_per_cell_when_asked_for():
    assert survey(Mean(), SCENES).of([2])[0][1].xyz is None
    known = survey(Mean(), SCENES, heads={"points"}).of([2])[0][1]
    torch.testing.assert_close(known.xyz, torch.full((1, 6, 3), 10.0))


def test_frames_in_a_run_stand_side_by_side_and_the_last_one_fills_up():
    found = survey(Mean(), SCENES, frames=2)
    small = found.tokens[1][0, :, 0].tolist()
    assert small == [[20, 21], [20, 21], [22, 22]]
    # of the scene that has one view only, padded to two
    assert found.tokens[0][1, 0, 0].tolist() == [30, 30]
    assert found.of([4])[0][1].tokens[0, 0].tolist() == [20, 21]


def test_a_run_is_frame_by_frame_with_channels_inside():
    tokens = torch.arange(2 * 2 * 3).view(1, 2, 2, 3)
    found = together(tokens, torch.ones(1, 2).bool(), 2)
    assert found[0, 1, 1].tolist() == [3, 4, 5, 9, 10, 11]


def test_what_a_fusion_made_of_scenes_comes_back_for_each_view():
    found = survey(Mean(), SCENES)
    for output in found.outputs:
        shape = output.tokens.shape
        code = torch.arange(shape[0] * shape[1]).view(*shape[:2], 1, 1).expand(*shape[:3], 2).float()
        found.told.append(Told(torch.zeros(shape[0], 1, 2), code, code[..., 0], output.grid))
    beside = found.beside(found.of([3, 2])[0][1].where)
    assert beside.tokens[:, 0, 0].tolist() == [2, 0] and beside.saliency[:, 5].tolist() == [2, 0]
    assert beside.grid == [(2, 3)] * 2


def test_losses_are_means_over_scenes():
    found = survey(Mean(), SCENES)
    found.told = [Told(torch.zeros(1), losses={"a": torch.tensor(x)}) for x in (3.0, 6.0)]
    assert float(found.loss) == pytest.approx((2 * 3 + 6) / 3)


def test_vision_comes_on_geometrys_grid():
    found = survey(Mean(), SCENES)
    fine = torch.arange(6 * 24.0).view(6, 24, 1)
    groups = [([1, 2, 3], Features(fine[1:4], [(4, 6)] * 3)), ([0, 4, 5], Features(fine[[0, 4, 5], :1], [(1, 1)] * 3))]
    tokens, shown = found.vision(0, groups, 1)
    assert shown.tolist() == [[True, False], [True, False]]
    # each cell lies over four: bilinear there is their mean
    expected = fine[2:4].view(2, 2, 2, 3, 2).mean((2, 4)).flatten(1)
    torch.testing.assert_close(tokens[:, 0, :, 0], expected)
    assert not tokens[:, 1].any()
    tokens, shown = found.vision(1, groups, 1)
    assert shown.tolist() == [[True, True, False]] and tokens.flatten().tolist() == [0, 96, 0]


@pytest.mark.parametrize("learning", [True, False])
def test_vision_of_views_that_no_image_shows_is_nought_in_half_precision(learning):
    """A sum over all that images show is beyond 65504."""
    found = survey(Mean(), SCENES)
    shown = torch.full((6, 24, 1), 6e4, dtype=torch.float16, requires_grad=learning)
    with torch.set_grad_enabled(learning):
        tokens, _ = found.vision(0, [([0, 1, 2, 3, 4, 5], Features(shown, [(4, 6)] * 6))], 1)
    assert bool(tokens.isfinite().all()) and not tokens[:, 1].any() and tokens.requires_grad == learning
    if learning:
        tokens[:, 1].sum().backward()
        assert not shown.grad.any()


def test_vision_that_left_tokens_out_is_refused():
    found = survey(Mean(), SCENES)
    reduced = Features(torch.zeros(1, 24, 1), [(4, 6)]).reduced(ReductionPlan.keep(torch.tensor([[0, 3]])))
    with pytest.raises(ValueError, match="a reducer inside it leaves some out"):
        found.vision(0, [([2], reduced)], 1)


def test_points_that_are_none_do_not_count():
    points = torch.ones(1, 2, 4, 3)
    points[0, 0, 0], points[0, 0, 2:], points[0, 1, 2:] = torch.nan, 0, 0
    points[0, 1, 0] = 4
    xyz, certain = per_cell(points, torch.ones(1, 2, 4), (1, 2))
    torch.testing.assert_close(xyz[0, 0], torch.full((3,), 2.0))
    assert certain[0].tolist() == [0.75, 0] and not xyz[0, 1].any()


def places(encoder: GeometryEncoder, scene: Views) -> list[list[float]]:
    """The point of each view's first cell."""
    known = survey(encoder, [scene], heads={"points"}).of([0, 1])[0][1]
    return known.xyz[:, 0].tolist()


def test_points_in_the_world_come_into_the_first_cameras_frame():
    # (4, 5, 6) + (10, 20, 30), whichever view says so
    assert places(Elsewhere("world"), turned()) == [[14, 25, 36]] * 2
    assert places(Elsewhere("ref_camera"), turned()) == [[4, 5, 6]] * 2


@pytest.mark.parametrize("encoder", [Elsewhere("own_camera"), Elsewhere("own_camera", heads=["points"], scale=1.0)])
def test_points_in_each_cameras_frame_come_into_the_first_ones(encoder):
    """By cameras that are predicted, or, for metric depth, by those that are known."""
    # R^T ((1, 2, 3) - (0, 0, 5)) is (2, 2, 1) in the world, and (12, 22, 31) to the first camera
    assert places(encoder, turned()) == [[1, 2, 3], [12, 22, 31]]


def test_points_come_in_metres_where_the_scale_is_known():
    found = places(Elsewhere("own_camera", heads=["points"], scale=2.0), turned())
    assert found == [[1, 2, 3], [12, 22, 31]]


def test_in_metres_all_lengths_are_and_nothing_else():
    draw = torch.Generator().manual_seed(0)
    shapes = {"depth": (2, 3, 4, 5), "points": (2, 3, 4, 5, 3), "pose": (2, 3, 9), "rays": (2, 3, 4, 5, 6)}
    shapes |= {"extrinsics": (2, 3, 3, 4), "intrinsics": (2, 3, 3, 3), "special": (2, 3, 1, 8)}
    given = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    output = GeometryOutput(torch.zeros(2, 3, 1, 8), (1, 1), torch.ones(2, 3).bool(), **given)
    assert in_metres(output) is output
    output.scale = torch.tensor([2.0, 3.0])
    found = in_metres(output)
    assert found.scale.tolist() == [1, 1]
    turned_only = {"pose": slice(3, None), "rays": slice(None, 3), "extrinsics": slice(None, 3)}
    for name, before in given.items():
        after, same = getattr(found, name), turned_only.get(name, slice(0))
        same = slice(None) if name in ("intrinsics", "special") else same
        assert torch.equal(after[..., same], before[..., same])
        lengths = torch.ones(before.shape[-1]).bool()
        lengths[same] = False
        for scene, scale in enumerate((2, 3)):
            torch.testing.assert_close(after[scene][..., lengths], scale * before[scene][..., lengths])


class Asking(Mean):
    """Tells by its tokens whether it was given cameras."""

    reads = frozenset({"extrinsics"})

    def forward(self, scenes: GeometryInput, *, layers=(), heads=()) -> GeometryOutput:
        output = super().forward(scenes, layers=layers, heads=heads)
        output.tokens = torch.full_like(output.tokens, float(scenes.extrinsics is not None))
        return output


def test_what_is_known_of_a_scene_does_not_depend_on_its_batch():
    bare, posed = views([10], [0]), views([20], [1])
    posed.extrinsics = torch.eye(3, 4)[None]
    found = survey(Asking(), [bare, posed, views([30], [2])])
    assert found.scenes == [[0, 2], [1]]
    assert [found.of([image])[0][1].tokens.unique().tolist() for image in range(3)] == [[0], [1], [0]]
    # whoever looks at pictures alone sees all at once
    assert survey(Mean(), [bare, posed]).scenes == [[0, 1]]


def test_cells_of_which_nothing_is_known_are_nowhere():
    found = survey(Elsewhere("ref_camera"), [turned()], heads={"points"})
    found.outputs[0].points[:, :, :, :2] = 0
    placed = found.locate(Features(torch.zeros(2, 2, 1), [(1, 2)] * 2), [0, 1]).xyz
    assert placed[:, 0].isnan().all() and placed[:, 1].tolist() == [[4, 5, 6]] * 2


def test_merged_tokens_are_where_their_cells_are():
    found = survey(Elsewhere("ref_camera"), [turned()], heads={"points"})
    # two cells; of one pixel in four, and of all
    found.outputs[0].points[0, 0] = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]] * 2)
    found.outputs[0].points[0, 0, 1, 1] = 6
    whole = Features(torch.zeros(2, 2, 1), [(1, 2)] * 2)
    merged = whole.reduced(ReductionPlan.merge(torch.zeros(2, 2).long(), 1))
    placed = found.locate(merged, [0, 1]).xyz
    # (6 / 4 + 1) / (1 / 4 + 1)
    torch.testing.assert_close(placed[0], torch.full((1, 3), 2.0))
    left = whole.reduced(ReductionPlan.keep(torch.tensor([[1], [1]])))
    torch.testing.assert_close(found.locate(left, [0, 1]).xyz[0], torch.ones(1, 3))


def test_frames_are_changed_in_full_precision():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = survey(Elsewhere("world"), [turned()], heads={"points"}).outputs[0]
    # of which bfloat16 has no 36 + 1/64
    output.frame, output.points[0, 0, 0, 1] = "world", torch.tensor([0, 0, 6 + 1 / 64])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = in_first(output, GeometryInput.stack([turned()], "cpu"), name="Elsewhere")
    assert found[0, 0, 0, 1].tolist() == [10, 20, 36 + 1 / 64]


def test_what_is_unknown_stays_unknown_in_another_frame():
    output = survey(Elsewhere("world"), [turned()], heads={"points"}).outputs[0]
    assert not output.points[0, :, 0, 0].any() and output.points[0, :, 0, 1].all()


def test_one_view_needs_no_cameras():
    scene = turned(extrinsics=True)
    one = Views(scene.pixels[:1], [0], scene.intrinsics[:1], scene.extrinsics[:1], scene.depth[:1])
    known = survey(Elsewhere("own_camera", heads=["points"]), [one], heads={"points"}).of([0])[0][1]
    assert known.xyz[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        (Elsewhere("world", heads=["points"]), "in a world of its own in which it places no camera; build it with"),
        (Elsewhere("own_camera", heads=["points"]), "in each camera's own frame at a scale of its own; use an encoder"),
    ],
)
def test_what_cannot_be_brought_into_one_frame_is_refused(encoder, said):
    with pytest.raises(ValueError, match=f"Elsewhere has its points {said}") as error:
        survey(encoder, [turned()], heads={"points"})
    assert "\n" not in str(error.value)
