"""The seam is wide enough: caches, windows and key selection fit through it; the encoder around them stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.multiview.cross import CrossView, ViewLayout, among
from gnomon.vlm.part import build


class Causal(CrossView):
    """Views see themselves and views before them, all at once."""

    def attend(self, x, q, k, v, *, layer, layout, memory):
        view = torch.arange(layout.views).repeat_interleave(layout.length)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=view[:, None] >= view)


class Cached(CrossView):
    """The same in pieces of one view: keys and values of all layers are kept."""

    def __init__(self, *, keep: int = 99) -> None:
        self.keep = keep

    def begin(self, patches: Tensor, layout: ViewLayout, memory: Any = None) -> Any:
        return dict(memory or {})

    def attend(self, x, q, k, v, *, layer, layout, memory):
        memory[layer] = (*memory.get(layer, ()), (k, v))[-self.keep :]
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*memory[layer]))
        return F.scaled_dot_product_attention(q, keys, values)


class Watcher(CrossView):
    def __init__(self) -> None:
        self.seen = []

    def begin(self, patches: Tensor, layout: ViewLayout, memory: Any = None) -> Any:
        self.seen.append(("begin", tuple(patches.shape)))
        return "mine"

    def attend(self, x, q, k, v, *, layer, layout, memory):
        self.seen.append((layer, tuple(x.unflatten(1, (layout.views, layout.length)).shape), tuple(q.shape), memory))
        return super().attend(x, q, k, v, layer=layer, layout=layout, memory=memory)


def tiny(cross: CrossView | dict | None = None) -> TinyGeo:
    torch.manual_seed(0)
    made = TinyGeo(cross=cross)
    with torch.no_grad():
        for name in ("camera_token", "register_token"):
            getattr(made.aggregator, name).normal_()
    return made


def scene(views: int = 4) -> GeometryInput:
    images = torch.rand(1, views, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    return GeometryInput(images, torch.ones(1, views, dtype=torch.bool))


def test_view_by_view_with_a_cache_is_all_at_once_with_a_mask():
    whole, stream, given = tiny(Causal()), tiny(Cached()), scene()
    expected, state = whole.measure(given).tokens, None
    for view in range(4):
        piece = replace(given, images=given.images[:, view : view + 1], valid=given.valid[:, :1], state=state)
        out = stream.measure(piece)
        torch.testing.assert_close(out.tokens[:, 0], expected[:, view], atol=1e-5, rtol=1e-5)
        assert out.state is not state
        state = out.state


def test_what_is_given_to_it():
    watcher = Watcher()
    out = tiny(watcher).measure(scene(views=2))
    # 5 special tokens and 2x3 patches per view, 2 heads of 64
    assert watcher.seen[0] == ("begin", (1, 2, 6, 128))
    assert watcher.seen[1:] == [(layer, (1, 2, 11, 128), (1, 2, 22, 64), "mine") for layer in (0, 1, 2)]
    assert out.state == "mine"


def test_the_dense_one_is_dense():
    assert torch.equal(tiny().measure(scene()).tokens, tiny(Watcher()).measure(scene()).tokens)


def test_an_encoder_records_it():
    made = tiny(Cached(keep=3))
    again = build(made.spec(), GeometryEncoder)
    assert isinstance(again.cross, Cached) and again.cross.keep == 3
    assert again.spec() == made.spec()


def test_the_dense_one_does_not_go_on():
    with pytest.raises(ValueError, match="CrossView cannot go on from earlier views"):
        tiny().measure(replace(scene(), state={}))


def test_keys():
    layout = ViewLayout((1, 2), 1, torch.tensor([[True, False], [False, False]]))
    assert layout.keys[:, 0, 0].tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert replace(layout, valid=torch.ones(2, 2, dtype=torch.bool)).keys is None


def test_among_views():
    q, k, v = torch.randn(3, 1, 1, 3, 4)
    valid = torch.tensor([[True, True, False]])
    expected = (q @ k[..., :2, :].mT / 2).softmax(-1) @ v[..., :2, :]
    torch.testing.assert_close(among(valid)(q, q, k, v), expected)
