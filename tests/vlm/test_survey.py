"""Survey: which image gets which tokens of which view, in batches of scenes of several sizes and numbers of views."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.fusion.base import Told
from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.layout import Features, Views
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.survey import per_cell, survey, together


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
