"""HorizonStream's blocks against one pass over all tokens at once with masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.multiview import rope3d
from gnomon.vlm.multiview.block import Block
from gnomon.vlm.multiview.patches import PatchEmbed
from gnomon.vlm.multiview.windowed import Stream, WindowedAggregator

WINDOW, PERIOD, POSES, GRID = 3, 4, 2, (2, 3)
PATCHES = 1 + GRID[0] * GRID[1]


def aggregator(memory_layers: tuple[int, ...] = (0, 2)) -> WindowedAggregator:
    torch.manual_seed(0)
    sizes = {"width": 24, "depth": 3, "heads": 2, "window": WINDOW, "period": PERIOD, "pose_tokens": POSES}
    made = WindowedAggregator(PatchEmbed(24, 14), **sizes, memory_layers=memory_layers)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "token" in name or "gamma" in name or "gate_proj" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return made.eval()


def video(views: int) -> Tensor:
    return torch.randn(views, 3, 28, 42, generator=torch.Generator().manual_seed(1))


def masked(block: Block, x: Tensor, mask: Tensor, groups: list[list[int]], rope: rope3d.Rope) -> Tensor:
    """A gated block over all tokens (N,C): who sees whom (N,N), and of which tokens each gate is the mean."""

    def attend(y: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        o = F.scaled_dot_product_attention(rope3d.rotate(q, rope), rope3d.rotate(k, rope), v, attn_mask=mask)
        gates = torch.empty(x.shape[0], 2)
        for group in groups:
            gates[group] = block.attn.gate_proj(y[0, group].mean(0)).sigmoid()
        return o * gates.T[None, :, :, None]

    return block(x[None], attend=attend)[0]


def literally(made: WindowedAggregator, images: Tensor) -> tuple[dict[int, Tensor], Tensor]:
    """Layers (S,P,2C), and the first pose tokens of the last layer, view by view, (M,2C)."""
    patches = torch.cat([made.metric_readout_token.expand(len(images), -1, -1), made.patch_embed(images)], 1)
    x, where, places = [], [], []
    for view in range(len(images)):
        step = view if view < WINDOW else (view - WINDOW) % PERIOD
        x += list(patches[view])
        where += [(view, None)] * PATCHES
        cells = [(row + 1, column + 1) for row in range(GRID[0]) for column in range(GRID[1])]
        places += [(0, 0, 0), *((step + 1, *cell) for cell in cells)]
        for seen in range(max(0, view - WINDOW + 1), view + 1):
            x += list(made.pose_token[0 if seen == view else 1])
            where += [(view, seen)] * POSES
            places += [(0, 0, 0)] * POSES
    x, rope = torch.stack(x), rope3d.tables(torch.tensor(places), 12)

    def within(asks: tuple, asked: tuple) -> bool:
        seen, (other, of) = asks[1], asked
        return asks == asked or (seen is not None and of is None and other == seen)

    def across(asks: tuple, asked: tuple) -> bool:
        (view, _), (other, of) = asks, asked
        return view == other or (of is None and view - WINDOW < other < view)

    masks = [torch.tensor([[rule(a, b) for b in where] for a in where]) for rule in (within, across)]
    alone = [[i for i, a in enumerate(where) if a == b] for b in dict.fromkeys(where)]
    views = [[i for i, a in enumerate(where) if a[0] == view] for view in range(len(images))]
    is_patch = [i for i, (_, seen) in enumerate(where) if seen is None]
    first = [group[0] for group in alone if where[group[0]][1] is not None]
    found = {}
    for layer in range(3):
        frame = x = masked(made.frame_blocks[layer], x, masks[0], alone, rope)
        if str(layer) in made.global_gla_blocks:
            x = made.global_gla_blocks[str(layer)](x[None])[0][0]
        x = masked(made.global_blocks[layer], x, masks[1], views, rope)
        both = torch.cat([frame, x], dim=-1)
        found[layer] = both[is_patch].unflatten(0, (len(images), PATCHES))
    return found, both[first]


@pytest.mark.parametrize("memory_layers", [(), (0, 2)], ids=["windows alone", "with memory"])
@pytest.mark.parametrize("pieces", [[9], [1] * 9, [2, 4, 3]], ids=str)
def test_a_stream_is_one_pass_with_masks(memory_layers, pieces):
    made, images = aggregator(memory_layers), video(9)
    with torch.no_grad():
        layers, poses = literally(made, images)
        stream, start, flat = Stream(), 0, []
        for piece in images.split(pieces):
            seen, stream = made(piece, GRID, stream, layers=[0, 1, 2])
            for layer in range(3):
                expected = layers[layer][start : start + len(piece)]
                torch.testing.assert_close(seen.layers[layer], expected, atol=1e-5, rtol=1e-5)
            flat.append(seen.pose[seen.there])
            start += len(piece)
            assert stream.seen == start
    torch.testing.assert_close(torch.cat(flat), poses, atol=1e-5, rtol=1e-5)


def test_pose_tokens_are_right_aligned():
    seen, _ = aggregator()(video(4), GRID, Stream(), layers=[2])
    assert seen.there.int().tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert not seen.pose[~seen.there].any() and torch.equal(seen.own_pose, seen.pose[:, -1])


@pytest.mark.parametrize("memory_layers", [(), (0,)], ids=["windows alone", "with memory"])
def test_only_the_memory_reaches_behind_the_windows(memory_layers):
    """Three layers of windows pass the first view on to six views after it."""
    made, images = aggregator(memory_layers), video(9)
    other = images.clone()
    other[0] += 1
    with torch.no_grad():
        before, after = (made(x, GRID, Stream(), layers=[2])[0].layers[2] for x in (images, other))
    differs = [not torch.equal(a, b) for a, b in zip(before, after)]
    assert differs == [True] * 7 + [bool(memory_layers)] * 2


def held(stream: Stream) -> int:
    """Bytes, with what slices are cut from."""
    tensors = [x for kept in (stream.within, stream.across) for pair in kept.values() for x in pair]
    tensors += [x for memory in stream.memory.values() for x in memory.values()]
    return sum(x.untyped_storage().nbytes() for x in tensors)


def test_the_state_stops_growing():
    made, stream, sizes = aggregator(), Stream(), []
    for view in video(8):
        before = (stream.seen, held(stream))
        _, after = made(view[None], GRID, stream, layers=[])
        assert (stream.seen, held(stream)) == before
        stream = after
        sizes.append(held(stream))
    window = 2 * 3 * 2 * PATCHES * 24 * 4
    memory = 2 * 4 * (2 * 12 * 12 + 3 * 3 * 24)
    assert sizes == [window + memory, *[2 * window + memory] * 7]
    assert held(made(video(8), GRID, Stream(), layers=[])[1]) == sizes[-1]


def test_memory_blocks_begin_like_the_blocks_behind_them():
    made = WindowedAggregator(
        PatchEmbed(24, 14), width=24, depth=2, heads=2, window=2, period=2, pose_tokens=1, memory_layers=[1]
    )
    mine, theirs = made.global_gla_blocks["1"].state_dict(), made.global_blocks[1].state_dict()
    shared = [name for name in mine if not name.startswith("attn.")]
    assert len(shared) == 10 and all(torch.equal(mine[name], theirs[name]) for name in shared)
    # and gates begin at 0.88
    assert made.frame_blocks[0].attn.gate(torch.randn(1, 3, 24)).flatten().tolist() == pytest.approx(
        [0.8808] * 2, abs=1e-4
    )
