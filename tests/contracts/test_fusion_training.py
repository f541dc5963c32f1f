"""What every fusion promises in training; the members are whatever stands in vlm/fusion."""

from __future__ import annotations

import pytest
import torch
from fusing import (
    ROWS,
    SIZE,
    batch_of,
    every,
    images_of,
    known,
    made,
    opened,
    plain_of,
    with_geometry,
)
from sequences import cells, padded, picture, scene, text

from gnomon.vlm.freeze import freeze
from gnomon.vlm.tally import Tally


@every
@torch.no_grad()
def test_evaluation_draws_nothing_and_repeats_itself(cls, fused):
    model = opened(fused(made(cls)))
    batch, before = batch_of(model), torch.get_rng_state()
    first = model(batch).logits
    assert torch.equal(first, model(batch).logits) and torch.equal(before, torch.get_rng_state())


@every
def test_training_draws_from_the_global_generator_alone(cls, fused):
    model = opened(fused(made(cls))).train()
    batch, losses = batch_of(model), []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(model.loss(batch)[0].detach())
    assert torch.equal(*losses)


@every
def test_recomputing_layers_gives_the_same_gradients(cls, fused):
    gradients = []
    for checkpointing in (False, True):
        model = opened(fused(made(cls))).train()
        model.lm.checkpointing = checkpointing
        torch.manual_seed(3)
        model.loss(batch_of(model))[0].backward()
        gradients.append([p.grad for p in model.fusion.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


@every
def test_gradients_reach_every_parameter(cls, fused):
    model = opened(fused(made(cls))).train()
    loss, count = model.loss(batch_of(model))
    (loss / count).backward()
    lost = [name for name, p in model.fusion.named_parameters() if p.grad is None or not p.grad.any()]
    # what every key has in common changes no softmax
    assert [name for name in lost if not name.endswith(("key.bias", "key.0.bias"))] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.fusion.parameters())


@every
@pytest.mark.parametrize("rows", [ROWS[1:2], ROWS[3:]], ids=["images", "text"])
def test_without_geometry_every_parameter_has_a_gradient_of_zero(cls, rows, fused):
    model = opened(fused(made(cls))).train()
    loss, _ = model.loss(batch_of(model, rows))
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None and not p.grad.any() for p in model.fusion.parameters())


@every
def test_only_declared_parameters_move(cls, fused):
    model = opened(fused(made(cls))).train()
    if not list(model.fusion.parameters()):
        return
    freeze(model, ["fusion.*"])
    before = {name: p.detach().clone() for name, p in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        loss, count = model.loss(batch_of(model))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    moved = {name for name, p in model.state_dict().items() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("fusion.") for name in moved)
    assert not model.geometry.training


@every
def test_what_is_tallied_is_what_the_tokens_say(cls, fused):
    """In training, against the plain model's tokens; what changes before the connector does not show in these."""
    plain, model = fused(), opened(fused(made(cls))).train()
    batch = batch_of(model)
    model.scenery.tally = Tally()
    told = with_geometry(batch)
    after, before = images_of(model, batch)[told], images_of(plain, plain_of(batch))[told]
    found = Tally.shares(model.scenery.tally.take(torch.device("cpu")))
    if model.fusion.behind and cls.__name__ != "GSTVLA":
        expected = (after - before).norm(dim=-1).mean() / before.norm(dim=-1).mean()
        assert found["fusion_ratio"] == pytest.approx(expected.item(), rel=1e-4)
    assert ("fusion_ratio" in found) == (cls.__name__ != "GSTVLA")
    assert ("scene_ratio" in found) == bool(model.fusion.extra)
    assert 0 <= found.get("fusion_open", 0) <= 1 and ("fusion_open" in found) == (model.fusion.opened is not None)
    model.eval()(batch)
    assert Tally.shares(model.scenery.tally.take(torch.device("cpu"))) == {}


@every
def test_pictures_of_several_sizes_of_which_one_shows_a_scene(cls, fused):
    model = opened(fused(made(cls), image_size=None, image_fit="native")).train()
    other = 32, 32
    rows = [
        cells(0, model.image.grid(*SIZE)) + scene(model.views.extra) + text([3, 4, 11, 12], asked=2),
        cells(0, model.image.grid(*other)) + text([5, 6, 7, 13], asked=2),
    ]
    batch = padded(rows, [picture(SIZE, 1), picture(other, 2)], views=[known(1, 1)])
    loss, _ = model.loss(batch)
    loss.backward()
    assert bool(loss.isfinite()) and all(p.grad is not None for p in model.fusion.parameters())
    # the picture without a scene is what it is without the other one
    alone = padded([rows[1]], [picture(other, 2)])
    with torch.no_grad():
        model.eval()
        assert torch.equal(images_of(model, batch)[-16:], images_of(model, alone))
