import math

import properties
import pytest
import torch

from gnomon.vlm.multiview.losses.dense import (
    confidence_regression,
    distance,
    gradient_matching,
    neighbour_normals,
    normal_cosine,
    scale_invariant_log,
)

ALL = torch.ones(1, 8, 8, dtype=torch.bool)


def depths(seed: int = 0, size: tuple[int, ...] = (1, 8, 8)) -> torch.Tensor:
    return 1 + torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def surface(seed: int = 0) -> torch.Tensor:
    """(2,9,9,3): bumpy point maps."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    z = torch.randn(2, 9, 9, generator=torch.Generator().manual_seed(seed))
    return torch.stack([x.expand(2, 9, 9), y.expand(2, 9, 9), z], dim=-1).double()


DEPTH = {
    "distance": lambda p, t, m: distance(p, t, m).mean(),
    "confidence": lambda p, t, m: confidence_regression(distance(p, t, m), 1 + p, m),
    "log": scale_invariant_log,
    "gradients": gradient_matching,
    "normals": lambda p, t, m: normal_cosine(surface() * p[..., None], surface() * t[..., None], m),
}


@pytest.mark.parametrize("loss", DEPTH.values(), ids=DEPTH)
def test_invalid_pixels_do_not_matter(loss):
    mask = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(2)) > 0.3
    prediction, target = depths(0, (2, 9, 9)), depths(1, (2, 9, 9))
    wanted = loss(prediction, target, mask)
    for rubbish in (0.0, float("nan"), float("inf"), -5.0):
        guess = torch.where(mask, prediction, rubbish).requires_grad_()
        found = loss(guess, torch.where(mask, target, rubbish), mask)
        found.backward()
        torch.testing.assert_close(found.detach(), wanted, atol=0, rtol=1e-14)
        assert guess.grad.isfinite().all() and (guess.grad[~mask] == 0).all() and (guess.grad != 0).any()


@pytest.mark.parametrize("loss", DEPTH.values(), ids=DEPTH)
def test_nothing_valid_is_zero_with_a_graph(loss):
    guess = depths(0, (2, 9, 9)).requires_grad_()
    found = loss(guess, torch.full((2, 9, 9), float("nan")), torch.zeros(2, 9, 9, dtype=torch.bool))
    found.backward()
    assert found == 0 and (guess.grad == 0).all()


@pytest.mark.parametrize("loss", DEPTH.values(), ids=DEPTH)
def test_half_precision_is_calculated_in_float32(loss):
    maps = [depths(k, (2, 9, 9)).to(torch.bfloat16) for k in (0, 1)]
    assert loss(*maps, torch.ones(2, 9, 9, dtype=torch.bool)).dtype != torch.bfloat16


def test_confidence_ends_at_alpha_over_gamma_error():
    """Error 0.05, alpha 0.2: 4. Error 1: the best would be 0.2, but 1 + exp(x) ends at 1."""
    error = torch.tensor([0.05, 1.0], dtype=torch.float64)
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = confidence_regression(error, 1 + x.exp(), torch.ones(2, dtype=torch.bool))
        loss.backward()
        return loss

    optimiser.step(closure)
    optimum = 1 + x.detach().exp()
    assert abs(float(optimum[0]) - 4.0) < 1e-4
    assert float(optimum[1]) < 1.01


def test_distance_of_depths_and_of_points():
    mask = torch.tensor([[True, False]])
    assert distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 9.0]]), mask).tolist() == [[2, 0]]
    assert distance(torch.tensor([[[0.0, 3, 4], [1, 1, 1]]]), torch.zeros(1, 2, 3), mask).tolist() == [[5, 0]]


def test_log_error_ignores_a_common_factor_at_balance_one():
    truth = depths()
    assert float(scale_invariant_log(7 * truth, truth, ALL, balance=1.0)) < 1e-14
    torch.testing.assert_close(scale_invariant_log(7 * truth, truth, ALL), torch.tensor(math.log(7) ** 2 / 2).double())
    # e is 0 and log 4: mean e^2 - (mean e)^2 is a quarter of log(4)^2; the second map has no pixel
    pair = torch.tensor([[[1.0, 4.0]], [[1.0, 1.0]]])
    mask = torch.tensor([[[True, True]], [[False, False]]])
    found = scale_invariant_log(pair, torch.ones(2, 1, 2), mask, balance=1.0)
    torch.testing.assert_close(found, torch.tensor(math.log(4) ** 2 / 4))


def test_gradient_matching_by_hand():
    truth, mask = torch.zeros(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    ramp = torch.arange(4.0).expand(1, 4, 4)
    assert gradient_matching(truth + 5, truth, mask) == 0
    # along x 1 at stride 1, 2 at stride 2; strides 4 and 8 have no neighbours
    assert gradient_matching(ramp, truth, mask) == 3
    assert gradient_matching(ramp, truth, mask, scales=1) == 1
    assert gradient_matching(ramp, truth, mask, limit=0.5) == 1


def test_gradient_needs_both_pixels():
    """A jump between two valid halves counts; with an invalid column between them it cannot be seen."""
    step = torch.zeros(1, 2, 3)
    step[..., 2] = 6.0
    mask = torch.ones(1, 2, 3, dtype=torch.bool)
    assert gradient_matching(step, torch.zeros(1, 2, 3), mask, scales=1) == 3
    mask[..., 1] = False
    assert gradient_matching(step, torch.zeros(1, 2, 3), mask, scales=1) == 0


def test_neighbour_normals_of_a_plane():
    plane = surface()
    plane[..., 2] = 0.5 * plane[..., 0]
    mask = torch.ones(2, 9, 9, dtype=torch.bool)
    mask[:, 4, 4] = False
    found, counted = neighbour_normals(plane, mask)
    assert found.shape == (4, 2, 7, 7, 3)
    wanted = torch.tensor([-0.5, 0, 1], dtype=torch.float64) / math.sqrt(1.25)
    agreement = (found[counted] * wanted).sum(-1)
    torch.testing.assert_close(agreement.abs(), torch.ones_like(agreement))
    assert (agreement > 0).all() or (agreement < 0).all()
    # of 4 x 49 triangles a view, those lost: 4 of the pixel itself and 2 of each of its 4 neighbours
    assert int(counted.sum()) == 2 * (4 * 49 - 4 - 8)


def test_normals_see_directions_only():
    mask = torch.ones(2, 9, 9, dtype=torch.bool)
    truth = surface()
    assert normal_cosine(truth, truth, mask) < 1e-12
    assert normal_cosine(3 * truth + 1, truth, mask) < 1e-12
    assert normal_cosine(truth[..., [1, 0, 2]], truth, mask) > 0.1


def test_true_triangles_without_an_area_do_not_count():
    """On a point map whose lower half is one single point, only the rows above it say what a normal is."""
    truth, mask = surface(), torch.ones(2, 9, 9, dtype=torch.bool)
    guess = truth.clone()
    truth[:, 5:] = truth[:, 5:6, :1]
    assert normal_cosine(guess, truth, mask & (torch.arange(9)[:, None] < 5), scales=1) < 1e-12
    found, counted = neighbour_normals(truth, mask)
    assert not counted[:, :, 5:].any() and (found[:, :, 5:] == 0).all()


def test_a_common_rigid_motion_changes_nothing():
    mask = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(2)) > 0.2
    both = torch.stack([surface(0), surface(1)])
    for loss in (lambda x: normal_cosine(*x, mask), lambda x: distance(*x, mask)):
        properties.assert_invariant(loss, properties.rigid(5), properties.move, both, atol=1e-10)


def test_collapsed_prediction_has_finite_gradients():
    guess = torch.zeros(2, 9, 9, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 9, 9, dtype=torch.bool)
    loss = normal_cosine(guess, surface(), mask, scales=1) + distance(guess, guess.detach(), mask).sum()
    loss.backward()
    assert loss == 1 and guess.grad.isfinite().all()
