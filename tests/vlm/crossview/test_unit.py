"""UniT's queue against masks over all views at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gnomon.vlm.crossview.unit import UniT
from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.multiview.cross import CrossView, ViewLayout


class Masked(CrossView):
    """Views see those of their own group and of `queue` groups before it."""

    def __init__(self, group: int, queue: int) -> None:
        self.group, self.queue = group, queue

    def attend(self, x, q, k, v, *, layer, layout, memory):
        group = torch.arange(layout.views).repeat_interleave(layout.length) // self.group
        back = group[:, None] - group
        return F.scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back <= self.queue))


def encoder(cross: CrossView) -> TinyGeo:
    torch.manual_seed(0)
    made = TinyGeo(heads=[], cross=cross)
    with torch.no_grad():
        for name in ("camera_token", "register_token"):
            getattr(made.aggregator, name).normal_()
    return made


def clip(views: int) -> GeometryInput:
    images = torch.rand(1, views, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    return GeometryInput(images, torch.ones(1, views, dtype=torch.bool))


def part(given: GeometryInput, start: int, stop: int, state=None) -> GeometryInput:
    return replace(given, images=given.images[:, start:stop], valid=given.valid[:, start:stop], state=state)


@pytest.mark.parametrize(("group", "queue"), [(1, 0), (1, 2), (2, 1), (3, 99)])
@pytest.mark.parametrize("step", [1, 2])
def test_a_stream_is_one_pass_with_a_mask(group, queue, step):
    """Pieces of one and of two groups; the last one is shorter."""
    given = clip(7)
    masked, streaming = encoder(Masked(group, queue)), encoder(UniT(group, queue=queue))
    whole = masked.measure(given).tokens
    torch.testing.assert_close(streaming.measure(given).tokens, whole, atol=1e-5, rtol=1e-5)
    state, start = None, 0
    while start < 7:
        stop = start + step * group
        out = streaming.measure(part(given, start, stop, state))
        torch.testing.assert_close(out.tokens, whole[:, start:stop], atol=1e-5, rtol=1e-5)
        state, start = out.state, stop


def held(state) -> int:
    """Bytes, with what slices are cut from."""
    groups = [pair for queue in state for layer in queue.groups.values() for pair in layer]
    return sum(tensor.untyped_storage().nbytes() for pair in groups for tensor in pair)


def test_the_queue_stops_growing():
    made, given, state, sizes = encoder(UniT(1, queue=3)), clip(8), None, []
    for view in range(8):
        state = made.measure(part(given, view, view + 1, state)).state
        sizes.append(held(state))
    # keys and values of 3 layers, 11 tokens of 128 numbers
    one = 2 * 3 * 11 * 128 * 4
    assert sizes == [one, 2 * one, *[3 * one] * 6]
    assert held(made.measure(given).state) == 3 * one


def test_nothing_of_the_first_view_is_kept():
    """A view that has left the queues of all layers tells in no token after them."""
    made, given = encoder(UniT(1, queue=1)), clip(6)
    other = replace(given, images=given.images.clone())
    other.images[:, 0] = 1 - other.images[:, 0]
    before, after = made.measure(given).tokens, made.measure(other).tokens
    differ = [not torch.equal(before[:, view], after[:, view]) for view in range(6)]
    # three layers pass it on by one view each
    assert differ == [True, True, True, True, False, False]


def test_one_group_of_all_is_dense():
    given = clip(4)
    dense, grouped = (encoder(cross).measure(given).tokens for cross in (CrossView(), UniT(None, queue=0)))
    torch.testing.assert_close(grouped, dense, atol=1e-6, rtol=1e-6)


def test_a_state_of_other_scenes_is_refused():
    layout = ViewLayout((1, 1), 0, torch.ones(2, 1, dtype=torch.bool))
    state = UniT().begin(torch.zeros(1, 1, 1, 4), layout)
    with pytest.raises(ValueError, match="a state of 1 scenes and views of 2; go on with the same scenes"):
        UniT().begin(torch.zeros(2, 1, 1, 4), layout, state)


@pytest.mark.parametrize(("options", "message"), [({"group": 0}, "groups of 0 views"), ({"queue": -1}, "queue of -1")])
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UniT(**options)
