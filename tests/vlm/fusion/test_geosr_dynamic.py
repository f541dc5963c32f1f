"""GeoSR's dynamic branch: what is masked, by whose scores, and what the question changes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.fusion.base import Scene
from gnomon.vlm.fusion.geosr_dynamic import GeoSRDynamic, rotate
from gnomon.vlm.geometry.base import GeometryOutput
from gnomon.vlm.layout import Features


@pytest.fixture
def fusion(ready):
    return ready(GeoSRDynamic(merge=2, frames=2, queries=4, heads=2))


def scene(*, views: int = 3, scenes: int = 2, text: int = 5) -> Scene:
    """Scenes of three views on 4 x 6 cells, as a survey pairs them; the second scene lacks its third view."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randn(scenes, views, 24, 10, generator=draw)
    valid = torch.ones(scenes, views).bool()
    valid[1:, 2:] = False
    question = torch.randn(scenes, text, 8, generator=draw)
    asked = torch.ones(scenes, text).bool()
    return Scene(GeometryOutput(tokens[..., :5], (4, 6), valid), tokens, question, asked)


def beside(fusion, told, **change) -> dict[str, Features]:
    """The first two views of the first scene, of nothing but zeros."""
    where = torch.tensor([[0, 0, 0], [0, 0, 1]])
    known = Features(told.beside[0, :2], [told.grid] * 2, saliency=told.scores[0, :2])
    vision = Features(torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(3)), [(2, 3)] * 2)
    geometry = Features(torch.zeros(2, 24, 10), [(4, 6)] * 2, where=where)
    return {"vision": vision, "geometry": geometry, "scene": known} | change


def test_shapes(fusion):
    told = fusion.scene(scene())
    assert told.tokens.shape == (2, 4, 8) and told.beside.shape == (2, 3, 6, 8) and told.scores.shape == (2, 3, 6)
    # views of one pair share what is said of them
    assert torch.equal(told.beside[:, 0], told.beside[:, 1]) and not torch.equal(told.beside[:, 0], told.beside[:, 2])


def test_order_inside_is_frame_row_column_channel(fusion, monkeypatch):
    given, seen = scene(scenes=1), []
    monkeypatch.setattr(fusion.merger, "forward", lambda x: seen.append(x) or x[..., :8])
    fusion.scene(given)
    cells = [given.tokens[0, 0, r * 6 + c, 5 * t : 5 * t + 5] for t in (0, 1) for r in (2, 3) for c in (4, 5)]
    assert torch.equal(seen[0][0, 5], torch.cat(cells))


def test_scores_run_from_nought_to_one_and_have_no_graph(fusion):
    scores = fusion.scene(scene()).scores[:, [0, 2]]
    assert not scores.requires_grad
    assert float(scores[0].min()) == 0 and float(scores[0].max()) == 1
    # of the second scene only the first pair is there
    assert float(scores[1, 0].min()) == 0 and float(scores[1, 0].max()) == 1 and not scores[1, 1].any()


def test_the_question_decides(fusion):
    given, other = scene(), scene()
    other.question[0] += 1
    told, changed = fusion.scene(given), fusion.scene(other)
    assert not torch.allclose(told.tokens[0], changed.tokens[0]) and torch.equal(told.tokens[1], changed.tokens[1])
    # what is no question is not read
    unread = scene()
    unread.question[:, 3:] += 1
    unread.asked[:, 3:] = given.asked[:, 3:] = False
    assert torch.equal(fusion.scene(given).tokens, fusion.scene(unread).tokens)


def test_views_that_lack_do_not_count(fusion):
    given, other = scene(), scene()
    other.tokens[1, 2] += 1
    torch.testing.assert_close(fusion.scene(given).tokens, fusion.scene(other).tokens)


def test_top_scores_are_masked_and_not_the_bottom(fusion):
    fusion.train()
    fusion.beta, fusion.gamma = 1.0, 0.4
    given = beside(fusion, fusion.scene(scene()))
    planted = torch.tensor([[0.1, 0.9, 0.2, 0.0, 0.8, 0.3], [0.7, 0.15, 0.05, 0.25, 1.0, 0.6]])
    given["scene"].saliency = planted
    # ceil(0.4 * 12) = 5 of the sample's tokens
    assert (~fusion.kept(given)).nonzero().tolist() == [[0, 1], [0, 4], [1, 0], [1, 4], [1, 5]]


def test_the_mask_takes_the_value_and_leaves_the_gate(fusion):
    fusion.train()
    fusion.beta, fusion.gamma = 1.0, 0.01
    given = beside(fusion, fusion.scene(scene()))
    v, g = fusion.gate.vision(given["vision"].tokens), fusion.gate.geometry(given["scene"].tokens)
    z = F.linear(torch.cat([v, g], -1), fusion.gate.weigh.weight, fusion.gate.weigh.bias).sigmoid()
    keep = fusion.kept(given)[..., None]
    assert int((~keep).sum()) == 1
    torch.testing.assert_close(fusion(given).tokens, z * v * keep + (1 - z) * g)


def test_rate_and_evaluation(fusion):
    given = beside(fusion, fusion.scene(scene()))
    assert fusion.kept(given) is None
    fusion.train()
    fusion.beta = 0.5
    torch.manual_seed(0)
    hit = [not bool(fusion.kept(given).all()) for _ in range(400)]
    assert sum(hit) / len(hit) == pytest.approx(0.5, abs=0.07)


def test_rotation_depends_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0))
    at = torch.tensor([[1, 2, 3], [4, 2, 9]])
    dots = [(rotate(q, at[:1] + shift) * rotate(k, at[1:] + shift)).sum() for shift in (0, 7)]
    torch.testing.assert_close(*dots, atol=1e-4, rtol=1e-4)
    # 8 pairs: 2 turn by time, 3 by row, 3 by column
    moved = [rotate(q, torch.eye(3)[axis : axis + 1]) != q for axis in range(3)]
    assert [int(m[..., :8].sum()) for m in moved] == [2, 3, 3]


def test_other_grids_are_refused(fusion):
    given = beside(fusion, fusion.scene(scene()), vision=Features(torch.zeros(2, 12, 8), [(3, 4)] * 2))
    with pytest.raises(ValueError, match="grids of 2x3 and 3x4; set merge to fit"):
        fusion(given)
