"""OLA against closed forms, and two processes against one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForDepthEstimation, DepthAnythingConfig

from gnomon.vlm.auxiliary import ola
from gnomon.vlm.auxiliary.base import visual
from gnomon.vlm.auxiliary.ola import OLA, Target, choice, distance
from gnomon.vlm.decoder import Kept
from gnomon.vlm.layout import Batch, Features, Kind, TokenLayout, Views
from gnomon.vlm.reading import Seen

WIDTH, CELLS = 12, 6


def depth_of(images: int, *, size: tuple[int, int] = (8, 12)) -> Tensor:
    return 1 + 4 * torch.rand(images, *size, generator=torch.Generator().manual_seed(7))


def batch_of(depths: list[Tensor | None]) -> Batch:
    """A row of an image of 2 x 3 tokens each, which shows the view with this depth, or none."""
    rows, layout = len(depths), TokenLayout.text(len(depths), CELLS + 2)
    layout.kind[:, 1:-1], layout.image[:, 1:-1] = Kind.IMAGE, 0
    layout.cell[:, 1:-1] = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    pixels = [torch.zeros(3, 8, 12, dtype=torch.uint8)] * rows
    known = [Views(pixels[0][None], [i], depth=depth[None]) for i, depth in enumerate(depths) if depth is not None]
    ids = torch.zeros(rows, CELLS + 2, dtype=torch.long)
    return Batch(ids, ids, layout, pixels, [f"s{i}" for i in range(rows)], views=known)


def states(rows: int, layers: list[int], layout: TokenLayout) -> Kept:
    kept, draw = Kept(layers), torch.Generator().manual_seed(2)
    for layer in layers:
        hidden = torch.randn(rows, layout.shape[1], WIDTH, generator=draw).requires_grad_()
        kept.saw(layer, hidden, layout)
    return kept


def ready(**options: Any) -> OLA:
    torch.manual_seed(0)
    loss = OLA(**{"layers": [0, 1], "grid": (2, 3), "heads": 2, "head_width": 4, **options})
    loss.setup(WIDTH, 2)
    return loss


def test_an_image_has_its_own_tokens_wherever_they_stand():
    layout = TokenLayout.text(2, 5)
    layout.kind = torch.tensor([[2, 1, 2, 2, 0], [1, 2, 1, 2, 2]])
    layout.image = torch.tensor([[0, -1, 1, 1, -1], [-1, 0, -1, 2, 2]])
    kept = Kept([3])
    kept.saw(3, torch.arange(10.0).view(2, 5, 1), layout)
    # image 1 of the second row lost its only token before this layer
    whole = replace(layout, image=torch.tensor([[0, -1, 1, 1, -1], [-1, 0, 1, 2, 2]]))
    batch = Batch(layout.kind, layout.kind, whole, [torch.zeros(3, 1, 1)] * 5)
    tokens, there = visual(kept, 3, batch)
    found = [row[real].flatten().tolist() for row, real in zip(tokens, there)]
    assert found == [[0], [2, 3], [6], [], [8, 9]]


def test_a_head_is_attention_and_a_feed_forward_block():
    """Every step once more, on one image, with softmax and norms written out."""
    head = ready(width=8).heads[0].double()
    x = torch.randn(1, 3, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    there = torch.tensor([[True, True, False]])

    def norm(layer: torch.nn.Module, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * layer.weight + layer.bias

    query = head.queries.tokens
    asks = norm(head.asks, query)
    keys = torch.cat([norm(head.there, x[0, :2] @ head.reads.weight.T + head.reads.bias), asks])
    said = []
    for h in (slice(0, 4), slice(4, 8)):
        q, k, v = (s @ layer.weight[h].T for s, layer in ((asks, head.query), (keys, head.key), (keys, head.value)))
        said.append((q @ k.T / 2).softmax(-1) @ v)
    query = query + torch.cat(said, -1) @ head.out.weight.T
    inner = norm(head.feed[0], query) @ head.feed[1].weight.T
    query = query + (inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))) @ head.feed[3].weight.T
    expected = query @ head.tells[0].weight.T + head.tells[0].bias
    torch.testing.assert_close(head(x, there)[0], expected)


def test_published_sizes():
    """576 queries of width 1024 on 4096 channels, 4 heads of 32: latents, maps and norms counted from the paper's."""
    with torch.device("meta"):
        head = ola._Resampler(4096, 1024, 1024, 4, 32, 576, norm=True)
    latents, maps = 576 * 1024, 4096 * 1024 + 1024 + 4 * 1024 * 128 + 2 * 1024**2 + 1024**2 + 1024
    assert sum(p.numel() for p in head.parameters()) == latents + maps + 4 * 2 * 1024


def test_log_depth_less_its_mean():
    depth = torch.full((8, 12), 2.0)
    depth[:4, :4], depth[4:, 8:] = 8.0, 0.0
    depth[0, 0] = torch.nan
    target = ready()._depth(batch_of([depth, None]))
    # of six cells one lies at 8, one is not known; five of them have a mean of log 2 + log(4) / 5
    far, near = math.log(4) * 4 / 5, -math.log(4) / 5
    torch.testing.assert_close(target.values[0, :, 0], torch.tensor([far, near, near, near, near, 0]))
    assert target.known.tolist() == [[True] * 5 + [False], [False] * 6]


def test_a_wall_at_one_distance_has_no_shape():
    target = ready()._depth(batch_of([torch.full((8, 12), 3.0), *depth_of(1)]))
    assert not target.known[0].any() and target.known[1].all()


def test_smooth_l1_of_what_is_known():
    found = torch.tensor([[[0.5], [3.0], [9.0]], [[1.0], [1.0], [1.0]]])
    target = Target(torch.zeros(2, 3, 1), torch.tensor([[True, True, False], [False] * 3]))
    assert distance(found, target).tolist() == [(0.125 + 2.5) / 2, 0]


def test_choosing_among_what_is_there():
    like = torch.tensor([[2.0, 1.0, 0.0, 3.0], [1.0, 0.0, 4.0, 2.0]])
    lost = choice(like, torch.tensor([True, False, True, False]), 2)
    # the second one has no target of its own
    first = -math.log(math.exp(0) / (math.exp(2) + math.exp(0)))
    assert lost[0].item() == pytest.approx(first) and bool(lost.isfinite().all())


def test_sharpness_begins_at_e_squared_and_ends_at_a_hundred():
    sharpness = ready().sharpness
    assert sharpness(torch.ones(1)).item() == pytest.approx(math.exp(2))
    with torch.no_grad():
        sharpness.log.fill_(9.0)
    assert sharpness(torch.ones(1)).item() == 100


def test_the_whole_by_hand():
    loss, batch = ready(), batch_of([*depth_of(3)])
    kept = states(3, [0, 1], batch.layout)
    target, expected = loss._depth(batch).values, 0.0
    for layer, head in enumerate(loss.heads):
        found = head(kept.hidden[layer][:, 1:-1], torch.ones(3, CELLS).bool())
        like = F.cosine_similarity(found.flatten(1)[:, None], target.flatten(1)[None], dim=-1) * math.exp(2)
        expected = expected + F.smooth_l1_loss(found, target) + 0.3 * F.cross_entropy(like, torch.arange(3))
    torch.testing.assert_close(loss(kept, batch, []), 0.5 * expected, atol=1e-6, rtol=1e-5)


def test_what_has_no_target_counts_for_nothing():
    depths = [*depth_of(2)]
    loss, batch = ready(), batch_of([depths[0], None, depths[1]])
    kept = states(3, [0, 1], batch.layout)
    some = states(3, [0, 1], batch.layout)
    for layer in (0, 1):
        some.saw(
            layer,
            some.hidden[layer][[0, 2]],
            TokenLayout(*(x[[0, 2]] for x in vars(batch.layout).values() if x is not None)),
        )
    torch.testing.assert_close(loss(kept, batch, []), loss(some, batch_of(depths), []), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lacking", [False, True])
def test_two_processes_are_one(monkeypatch, lacking):
    """Of five images three and two; their losses and gradients have the mean that one process has."""
    depths: list[Tensor | None] = [*depth_of(5)]
    if lacking:
        depths[1] = depths[3] = depths[4] = None
    loss, batch = ready(), batch_of(depths)
    kept = states(5, [0, 1], batch.layout)
    whole = loss(kept, batch, [])
    whole.backward()
    expected = [p.grad.clone() for p in loss.parameters()]
    loss.zero_grad()

    parts, said = [slice(0, 3), slice(3, 5)], {0: [], 1: []}
    monkeypatch.setattr(ola, "processes", lambda: 2)

    def run(rank: int, hear: bool) -> Tensor:
        """hear: what the other process sends; else only what this one does is written down."""
        calls = iter(range(2))

        def everywhere(rows: Tensor) -> tuple[Tensor, int]:
            if not hear:
                said[rank].append(rows.detach())
                return rows.detach(), 0
            call = next(calls)
            return torch.cat([said[0][call], said[1][call]]), rank * 3

        monkeypatch.setattr(ola, "everywhere", everywhere)
        own = batch_of(depths[parts[rank]])
        mine = Kept([0, 1])
        for layer in (0, 1):
            mine.saw(layer, kept.hidden[layer].detach()[parts[rank]], own.layout)
        return loss(mine, own, [])

    for rank in (0, 1):
        run(rank, hear=False)
    both = [run(rank, hear=True) for rank in (0, 1)]
    mean = sum(both) / 2
    torch.testing.assert_close(mean, whole, atol=1e-6, rtol=1e-5)
    mean.backward()
    for found, grad in zip((p.grad for p in loss.parameters()), expected, strict=True):
        torch.testing.assert_close(found, grad, atol=1e-6, rtol=1e-4)


@pytest.fixture
def estimator(tmp_path):
    """A tiny Depth Anything with transformers' own interface, and its directory."""
    trunk = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    trunk |= {"image_size": 56, "patch_size": 14, "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}
    neck = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [4, 8, 8, 8], "fusion_hidden_size": 8}
    torch.manual_seed(3)
    config = DepthAnythingConfig(backbone_config=trunk, head_hidden_size=8, **neck)
    model = AutoModelForDepthEstimation.from_config(config).eval()
    model.save_pretrained(tmp_path)
    return model, {"class_path": "gnomon.vlm.geometry.depth_only.DepthOnly", "init_args": {"path": str(tmp_path)}}


@torch.no_grad()
def test_features_are_the_estimators_own(estimator):
    model, spec = estimator
    loss = ready(encoder=spec, of=[1, 3], size=(28, 42))
    pixels = torch.rand(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    target = loss._features([Seen([1, 0], Features(torch.zeros(2, 1, 1), [(1, 1)] * 2), pixels)])
    small = F.interpolate(pixels, (28, 42), mode="bilinear", antialias=True)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    states = model.backbone((small - mean) / std, output_hidden_states=True).hidden_states
    expected = sum(F.layer_norm(states[i + 1][:, 1:], (16,)) for i in (1, 3)) / 2
    torch.testing.assert_close(target.values, expected[[1, 0]], atol=1e-5, rtol=1e-5)


def test_the_estimator_is_no_part_of_what_is_trained_or_saved(estimator):
    loss = ready(encoder=estimator[1])
    assert not any("encoder" in name for name in loss.state_dict())
    assert loss.spec()["init_args"]["encoder"] == estimator[1]
    assert OLA(**{**loss.init_args, "encoder": loss.encoder[0]}).spec() == loss.spec()


def test_targets_that_mean_nothing_are_refused(estimator):
    tiny = {"class_path": "gnomon.vlm.geometry.tinygeo.TinyGeo", "init_args": {"heads": []}}
    with pytest.raises(ValueError, match="TinyGeo as the target has random weights; name a file"):
        OLA(encoder=tiny)
    spec = {**estimator[1], "init_args": {**estimator[1]["init_args"], "frozen": False}}
    with pytest.raises(ValueError, match="DepthOnly with frozen: false as the target"):
        OLA(encoder=spec)
    with pytest.raises(ValueError, match="multiples of 14, these are 30x28; resize them to 28x28"):
        OLA(encoder=estimator[1], size=(30, 28))
    with pytest.raises(ValueError, match="DepthOnly has no layer 4 whose tokens it could give; choose -4 to 3"):
        OLA(encoder=estimator[1], of=[4])
    given = {"class_path": "gnomon.vlm.geometry.known.Known"}
    with pytest.raises(ValueError, match="Known as the target needs depth, extrinsics, intrinsics, and sees pictures"):
        OLA(encoder=given)
    posed = {"class_path": "gnomon.vlm.geometry.plane_sweep.PlaneSweep"}
    with pytest.raises(ValueError, match="PlaneSweep as the target needs extrinsics, intrinsics, and sees pictures"):
        OLA(encoder={**posed, "init_args": {"weights": "configs:geometry/plane_sweep"}})
    with pytest.raises(ValueError, match=r"weight -1 and contrast 0\.3 not negative"):
        OLA(weight=-1)


def test_pictures_that_show_a_part_of_the_view_are_refused(tiny):
    with pytest.raises(ValueError, match="image fit 'crop' with OLA on the depth of views"):
        tiny(image_fit="crop", aux=[OLA(layers=[0])])
    assert tiny(aux=[OLA(layers=[0])]).views.size == (32, 32)
