"""HorizonStream: its streams, its cameras, its scale, the shape of its weights, and that its memory does not grow."""

from __future__ import annotations

import math
import resource
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from gnomon.vlm.geometry.base import GeometryInput, GeometryOutput
from gnomon.vlm.geometry.horizonstream import HorizonStream
from gnomon.vlm.multiview import pose

TINY = {
    "width": 24,
    "embed_depth": 1,
    "depth": 3,
    "attention_heads": 2,
    "trained_at": 28,
    "taps": (0, 1, 2, 2),
    "features": 8,
    "channels": (4, 8, 8, 8),
    "window": 3,
    "period": 4,
    "pose_tokens": 2,
    "memory_layers": (0, 2),
}


def encoder(**options) -> HorizonStream:
    torch.manual_seed(0)
    made = HorizonStream(**{**TINY, **options})
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "token" in name or "gamma" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return made


def video(views: int, scenes: int = 1) -> GeometryInput:
    images = torch.rand(scenes, views, 3, 28, 42, generator=torch.Generator().manual_seed(1))
    return GeometryInput(images, torch.ones(scenes, views, dtype=torch.bool))


def part(given: GeometryInput, start: int, stop: int, state=None) -> GeometryInput:
    return replace(given, images=given.images[:, start:stop], valid=given.valid[:, start:stop], state=state)


def streamed(made: HorizonStream, given: GeometryInput, cuts: list[int]) -> list[GeometryOutput]:
    outputs, state = [], None
    for start, stop in zip([0, *cuts], [*cuts, given.images.shape[1]]):
        outputs.append(made.measure(part(given, start, stop, state), layers=[0], heads=made.heads))
        state = outputs[-1].state
    return outputs


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6, 7], [4], [2, 7]], ids=str)
def test_streaming_is_all_at_once(cuts):
    made, given = encoder(), video(8, scenes=2)
    # the second scene lags behind by a view
    given.valid[1, 3] = False
    whole, pieces = made.measure(given, layers=[0], heads=made.heads), streamed(made, given, cuts)
    for name in ("tokens", "special", "depth", "depth_confidence", "pose", "extrinsics", "intrinsics"):
        got = torch.cat([getattr(piece, name) for piece in pieces], dim=1)
        expected = getattr(whole, name)
        torch.testing.assert_close(got[given.valid], expected[given.valid], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([piece.layers[0] for piece in pieces], 1), whole.layers[0])
    assert [stream.seen for stream in whole.state] == [8, 7]


def test_a_scene_without_views_stays_where_it_was():
    made, given = encoder(), video(3, scenes=2)
    state = made.measure(given).state
    given.valid[0] = False
    after = made.measure(replace(given, state=state)).state
    assert after[0] is state[0] and after[1].seen == 6


def test_cameras_follow_each_other():
    """True windows, each in the frame of its last view, give the true cameras in the frame of the first view."""
    made, given, size = encoder(), video(6), (28, 42)
    generator = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(6, 3, 3, generator=generator))[0]
    turn = turn * torch.linalg.det(turn)[:, None, None]
    cameras = torch.eye(4).repeat(6, 1, 1)
    cameras[:, :3] = torch.cat([turn, torch.randn(6, 3, 1, generator=generator)], dim=-1)
    lens = torch.tensor([[30.0, 0, 21], [0, 40, 14], [0, 0, 1]])

    class Told(torch.nn.Module):
        start = 0

        def forward(self, windows, *, valid):
            rows = []
            for view in range(self.start, self.start + len(windows)):
                seen = [max(0, view - 2 + slot) for slot in range(3)]
                relative = torch.stack([cameras[other] @ cameras[view].inverse() for other in seen])
                rows.append(pose.encode(relative[:, :3], lens.expand(3, 3, 3), size=size))
            return torch.stack(rows)[None]

    made.camera_head = told = Told()
    first = made.measure(part(given, 0, 4), heads=["camera"])
    told.start = 4
    rest = made.measure(part(given, 4, 6, first.state), heads=["camera"])
    want = (cameras @ cameras[0].inverse())[:, :3]
    torch.testing.assert_close(torch.cat([first.extrinsics, rest.extrinsics], 1)[0], want, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rest.intrinsics[0, 0], lens, atol=1e-3, rtol=1e-4)


def test_scale_is_apart():
    """exp of one number: three times the scale changes nothing else."""
    made, given = encoder(), video(3)
    before = made.measure(given, heads=made.heads)
    with torch.no_grad():
        made.metric_readout_head[-1].bias.add_(math.log(3))
    after = made.measure(given, heads=made.heads)
    torch.testing.assert_close(after.scale, 3 * before.scale)
    assert torch.equal(after.depth, before.depth) and torch.equal(after.pose, before.pose)
    metric = before.special[0, :, 1].mean(0)
    hidden = metric
    for layer in made.metric_readout_head[:4:2]:
        hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
    last = made.metric_readout_head[4]
    torch.testing.assert_close(before.scale, (last.weight @ hidden + last.bias - math.log(3)).exp())


def test_published_sizes():
    """Counted on the published code and configuration, without two tokens that it does not use."""
    with torch.device("meta"):
        made = HorizonStream()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in made.named_children()}
    assert counts == {
        "aggregator": 961_504_320,
        "metric_readout_head": 557_569,
        "depth_head": 32_654_562,
        "camera_head": 216_174_610,
    }
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    assert len(shapes) == 1547
    assert shapes["aggregator.pose_token"] == (2, 32, 1024)
    assert shapes["aggregator.metric_readout_token"] == (1, 1, 1024)
    assert shapes["aggregator.global_blocks.23.attn.gate_proj.weight"] == (16, 1024)
    assert shapes["aggregator.global_gla_blocks.17.attn.gla.q_conv1d.weight"] == (1024, 1, 4)
    assert shapes["aggregator.global_gla_blocks.4.attn.gla.f_proj.0.weight"] == (64, 1024)


@pytest.mark.parametrize("outer", ["", "horizonstream."])
def test_published_names_load(tmp_path, outer):
    made = encoder()
    old = {"aggregator": "agg_regator", "camera_head": "cam_decoder", "depth_head": "dpt_decoder"}
    state = {
        "agg_regator.camera_token": torch.zeros(1, 2, 1, 24),
        "agg_regator.register_token": torch.zeros(1, 2, 4, 24),
    }
    for name, value in made.state_dict().items():
        head, _, rest = name.partition(".")
        state[f"{old.get(head, head)}.{rest}"] = value
    save_file({outer + name: value for name, value in state.items()}, tmp_path / "model.safetensors")
    again = HorizonStream(weights=str(tmp_path), **TINY)
    given = video(4)
    assert torch.equal(again.measure(given).tokens, made.measure(given).tokens)
    bare = HorizonStream(weights=str(tmp_path), heads=[], **TINY)
    assert torch.equal(bare.measure(given).tokens, made.measure(given).tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["points"]}, "no head 'points'; choose among depth and camera"),
        ({"window": 0}, "window 0; give 1 or more"),
        ({"memory_layers": (3,)}, "no layer 3 to put a memory before; choose 0 to 2"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HorizonStream(**{**TINY, **options})


def test_a_state_of_other_scenes_is_refused():
    made = encoder()
    state = made.measure(video(1)).state
    with pytest.raises(ValueError, match="a state of 1 scenes and views of 2; go on with the same ones"):
        made.measure(replace(video(1, scenes=2), state=state))


def test_cameras_cannot_begin_in_the_middle():
    made = encoder()
    with pytest.raises(
        ValueError, match="cameras after 2 views without; they follow from each other: ask for them from"
    ):
        made.measure(replace(video(1), state=made.measure(video(2)).state), heads=["camera"])


def held(state) -> int:
    (stream,) = state
    tensors = [x for kept in (stream.within, stream.across) for pair in kept.values() for x in pair]
    tensors += [x for memory in stream.memory.values() for x in memory.values()]
    return sum(x.untyped_storage().nbytes() for x in (*tensors, stream.camera))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_views_take_no_more_memory_than_a_thousand():
    made, state, sizes, peaks = encoder(), None, set(), {}
    generator = torch.Generator().manual_seed(3)
    for view in range(1, 10_001):
        images = torch.rand(1, 1, 3, 28, 42, generator=generator)
        given = GeometryInput(images, torch.ones(1, 1, dtype=torch.bool), state=state)
        out = made.measure(given, heads=["camera"])
        state = out.state
        assert out.tokens.isfinite().all() and out.extrinsics.isfinite().all()
        if view >= made.aggregator.window:
            sizes.add(held(state))
        if view % 1000 == 0:
            peaks[view] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(sizes) == 1 and state[0].seen == 10_000
    # the allocator's noise; what leaks one window of keys per view would be at hundreds of MiB
    assert peaks[10_000] - peaks[1000] < 8 * 1024, peaks
