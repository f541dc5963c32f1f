"""Operators in our own loop, on tokens that know their image and cell, against transformers with the mask given."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.sparse import axial
from gnomon.kernels.sparse.radial import reach
from gnomon.vlm.compute.naavit import NAAViT
from gnomon.vlm.decoder import Span
from gnomon.vlm.generate import generate
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import IGNORE, Batch, Kind, TokenLayout
from gnomon.vlm.operators import Operator, tokens_of
from gnomon.vlm.part import build
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.fastv import FastV
from gnomon.vlm.rewrite import Placed, rewrite

CONFIG = {
    "model_type": "qwen2", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
# Text, an image of 3 x 4, text, an image of 4 x 3, text
FIRST = [2, (3, 4), 3, (4, 3), 4]
SECOND = [5, (3, 3), 1]

Item = int | tuple[int, int]


def made(*operators: dict, **more) -> CausalLM:
    torch.manual_seed(0)
    lm = CausalLM(config={**CONFIG, **more}, operators=operators).eval()
    for weight in lm.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return lm


def layout_of(*rows: list[Item], packed: bool = False) -> TokenLayout:
    """Rows of text lengths and image sizes, padded on the left; or all in one row, one sample after the other."""
    lines = [[] for _ in rows]
    for n, row in enumerate(rows):
        seen = 0
        for item in row:
            if isinstance(item, int):
                lines[n] += [(Kind.TEXT, -1, -1, -1, n)] * item
            else:
                lines[n] += [(Kind.IMAGE, seen, i, j, n) for i in range(item[0]) for j in range(item[1])]
                seen += 1
    starts = [list(range(len(line))) for line in lines]
    if packed:
        shift = 1 + max(entry[1] for entry in lines[0])
        lines[1] = [(k, image + shift if image >= 0 else -1, i, j, n) for k, image, i, j, n in lines[1]]
        lines, starts = [lines[0] + lines[1]], [starts[0] + starts[1]]
    length = max(map(len, lines))
    pad = (Kind.PAD, -1, -1, -1, 0)
    table = torch.tensor([[pad] * (length - len(line)) + line for line in lines])
    position = torch.tensor([[0] * (length - len(p)) + p for p in starts])
    document = table[..., 4] if packed else None
    return TokenLayout(table[..., 0], table[..., 1], table[..., 2:4], position, document)


def embeds_of(layout: TokenLayout) -> Tensor:
    return torch.randn(*layout.shape, 32, generator=torch.Generator().manual_seed(1))


def expected(lm: CausalLM, embeds: Tensor, layout: TokenLayout, allow: Callable[..., bool]) -> Tensor:
    """transformers' own forward under a mask that is written out pair by pair."""
    rows, length = layout.shape
    mask = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    for row in range(rows):
        tokens = torch.cat([layout.image[row, :, None], layout.cell[row]], 1).tolist()
        for q in range(length):
            for k in range(length):
                mask[row, 0, q, k] = q == k or allow(tokens[q], tokens[k], k <= q)
    mask &= layout.visible[:, None, None] | torch.eye(length, dtype=torch.bool)
    return lm.model.model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=layout.position, use_cache=False
    ).last_hidden_state


def window(size: int, both: bool = False) -> Callable[..., bool]:
    """Of the image that a cell is in, a window that is moved at the borders and never shrunk."""
    extents = {0: (3, 4), 1: (4, 3)}

    def allow(q: list[int], k: list[int], before: bool) -> bool:
        if q[0] < 0 or q[0] != k[0]:
            return before
        inside = True
        for axis in (1, 2):
            start = min(max(q[axis] - size // 2, 0), extents[q[0]][axis - 1] - size)
            inside &= start <= k[axis] < start + size
        return inside and (before or both)

    return allow


def disc(radius: float) -> Callable[..., bool]:
    def allow(q: list[int], k: list[int], before: bool) -> bool:
        same = q[0] >= 0 and q[0] == k[0]
        return before and (not same or (q[1] - k[1]) ** 2 + (q[2] - k[2]) ** 2 < radius**2)

    return allow


def row_of(q: list[int], k: list[int], before: bool) -> bool:
    return before and (q[0] < 0 or q[0] != k[0] or q[1] == k[1])


def frames(q: list[int], k: list[int], before: bool) -> bool:
    if q[0] < 0 or k[0] < 0:
        return before
    far = reach(abs(q[0] - k[0]), 12, block=2)
    places = [at[1] * (4, 3)[at[0]] + at[2] for at in (q, k)]
    return before and (far is not None and (far >= 12 or abs(places[0] - places[1]) <= far))


CASES = {
    "neighborhood": ({"name": "neighborhood", "options": {"window": [3, 3]}}, window(3)),
    "both": ({"name": "neighborhood", "options": {"window": [3, 3]}, "images": "both"}, window(3, both=True)),
    "clear": ({"name": "clear", "options": {"radius": 1.5}}, disc(1.5)),
    "axial": ({"name": "axial"}, row_of),
    "radial": ({"name": "radial", "options": {"block": 2, "first": False}}, frames),
    "exact": ({"name": "exact"}, lambda q, k, before: before),
}
every = pytest.mark.parametrize("name", CASES)


@every
@torch.no_grad()
def test_it_is_the_mask_that_it_says(name):
    options, allow = CASES[name]
    lm, layout = made(options), layout_of(FIRST)
    embeds = embeds_of(layout)
    found = lm(embeds, layout)
    torch.testing.assert_close(found, expected(lm, embeds, layout, allow), atol=2e-5, rtol=1e-4)
    if name not in ("exact", "radial"):
        assert float((found - made()(embeds, layout)).abs().max()) > 1e-3


@every
@torch.no_grad()
def test_rows_of_a_batch_and_packed_samples_equal_each_alone(name):
    lm = made(CASES[name][0])
    alone = [layout_of(row) for row in (FIRST, SECOND)]
    parts = [embeds_of(layout)[0] for layout in alone]
    single = [lm(part[None], layout)[0] for part, layout in zip(parts, alone)]
    both = layout_of(FIRST, SECOND)
    embeds = torch.zeros(2, both.shape[1], 32)
    embeds[0], embeds[1, -len(parts[1]) :] = parts[0], parts[1]
    for found, one in zip(lm(embeds, both), single):
        torch.testing.assert_close(found[-len(one) :], one, atol=2e-5, rtol=1e-4)
    packed = lm(torch.cat(parts)[None], layout_of(FIRST, SECOND, packed=True))[0]
    torch.testing.assert_close(packed, torch.cat(single), atol=2e-5, rtol=1e-4)


@every
@torch.no_grad()
def test_cached_decoding_equals_everything_at_once(name):
    lm, layout = made(CASES[name][0]), layout_of([*FIRST, 5], SECOND)
    embeds, cut = embeds_of(layout), layout.shape[1] - 5
    whole = lm(embeds, layout)

    def part(at: slice) -> TokenLayout:
        fields = {n: getattr(layout, n)[:, at] for n in ("kind", "image", "cell", "position")}
        return replace(layout, **fields)

    # the second row's image lies behind the cut: it is read in one piece
    state, first = lm.new_state(), [0]
    lm(embeds[first, :cut], TokenLayout(*(getattr(part(slice(0, cut)), n)[:1] for n in FIELDS)), state)
    for t in range(cut, layout.shape[1]):
        token = TokenLayout(*(getattr(part(slice(t, t + 1)), n)[:1] for n in FIELDS))
        found = lm(embeds[first, t : t + 1], token, state)
        torch.testing.assert_close(found[0, 0], whole[0, t], atol=2e-5, rtol=1e-4)


FIELDS = ("kind", "image", "cell", "position")


@every
@torch.no_grad()
def test_when_cells_leave_the_others_keep_their_places(name):
    """Of the images of 3 x 4 and 4 x 3, corners of 2 x 2 stay; windows and frames are those of the whole images."""
    lm, layout = made(CASES[name][0]), layout_of(FIRST)
    placed = []
    for image, (rows, columns) in enumerate(FIRST[1::2]):
        slots = (layout.image[0] == image).nonzero()[:, 0][None]
        corner = torch.tensor([[y * columns + x for y in range(rows) for x in range(columns) if y < 2 and x < 2]])
        placed.append(Placed(slots, ReductionPlan.keep(corner)))
    thin = rewrite(layout, placed, "keep").layout
    embeds = embeds_of(thin)
    found = lm(embeds, thin)
    torch.testing.assert_close(found, expected(lm, embeds, thin, CASES[name][1]), atol=2e-5, rtol=1e-4)
    # what follows is text, which knows of no image
    state, cut = lm.new_state(), thin.shape[1] - 2
    parts = [{n: getattr(thin, n)[:, at] for n in FIELDS} for at in (slice(0, cut), slice(cut, None))]
    lm(embeds[:, :cut], replace(thin, **parts[0], extent=thin.extent[:, :cut]), state)
    rest = lm(embeds[:, cut:], TokenLayout(**parts[1]), state)
    torch.testing.assert_close(rest, found[:, cut:], atol=2e-5, rtol=1e-4)


@every
def test_nothing_depends_on_what_comes_later(name):
    """With images "both" cells of one image see each other, and nothing else changes."""
    lm, layout = made(CASES[name][0]), layout_of(FIRST)
    embeds = embeds_of(layout).requires_grad_()
    out = lm(embeds, layout)
    for at in (1, 6, 15, 20, 30):
        (gradient,) = torch.autograd.grad(out[0, at].square().sum(), embeds, retain_graph=True)
        later = gradient[0].abs().sum(1)[at + 1 :] > 0
        mine = (layout.image[0] == layout.image[0, at])[at + 1 :] & (layout.image[0, at] >= 0)
        assert not bool((later & ~mine).any()) and bool(later.any()) == (name == "both" and bool(mine.any()))


@every
@torch.no_grad()
def test_text_alone_is_read_as_ever(name):
    layout = layout_of([7], [4])
    found, plain = (lm(embeds_of(layout), layout)[layout.visible] for lm in (made(CASES[name][0]), made()))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_layers_can_be_chosen_and_come_back_from_a_spec():
    layout = layout_of(FIRST)
    embeds = embeds_of(layout)
    found = [made({**CASES["axial"][0], "layers": layers})(embeds, layout) for layers in ([0], [1], "all", "1:1")]
    assert torch.equal(found[0], found[3])
    assert len({round(float(one.sum()), 3) for one in found}) == 3
    lm = made({**CASES["clear"][0], "layers": [1]})
    again = build(json.loads(json.dumps(lm.spec())), CausalLM)
    again.load_state_dict(lm.state_dict())
    assert torch.equal(again.eval()(embeds, layout), lm(embeds, layout))


def test_gradients_through_recomputed_layers_are_the_same():
    gradients = []
    for checkpointing in (False, True):
        lm = made(CASES["neighborhood"][0]).train()
        lm.checkpointing = checkpointing
        layout = layout_of(FIRST)
        lm(embeds_of(layout), layout).square().sum().backward()
        gradients.append([p.grad for p in lm.layers.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


WHOLE = {"name": "neighborhood", "options": {"window": [4, 4]}}


@pytest.mark.parametrize("operator", [CASES["clear"][0], WHOLE], ids=["clear", "neighborhood"])
@torch.no_grad()
def test_tokens_may_leave_and_text_goes_on(tiny, operator):
    """FastV reads layer 0, and the operator acts behind it, on the cells that stay: few, and others each time."""
    model = tiny(reducers=[FastV(ratio=0.25, layer=1)])
    lm = CausalLM(
        config={**CONFIG, "tie_word_embeddings": True},
        operators=[{**operator, "layers": [1]}],
        tokenizer=model.lm.init_args["tokenizer"],
    ).eval()
    lm.load_state_dict(model.lm.state_dict())
    model.lm = lm
    layout = layout_of([2, (4, 4), 3])
    ids = torch.arange(3, 3 + layout.shape[1])[None]
    for seed in range(4):
        pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        batch = Batch(ids, torch.full_like(ids, IGNORE), layout, [pixels], samples=["s"])
        found = generate(model, batch, max_new_tokens=4, stop=())[0]
        assert len(found.ids) == 4 and len(found.kept) == 4
    with pytest.raises(ValueError, match="layer 1 has no softmax attention"):
        model.lm.project(1, torch.zeros(1, 3, 32), {})


REFUSED = {
    "tensor": ([{"name": "moh", "options": {"weights": 1.0}}], {}, "'moh': weights is a tensor, not 1.0"),
    "window": ([{"name": "exact"}], {"model_type": "mistral", "sliding_window": 4}, "sliding window"),
    "dropout": ([{"name": "exact"}], {"attention_dropout": 0.1}, "dropout"),
    "twice": ([{"name": "exact"}, {"name": "axial", "layers": [1]}], {}, "two operators"),
    "layers": ([{"name": "exact", "layers": [2]}], {}, "not some of 0 to 1"),
    "ratio": ([{"name": "exact", "layers": "half"}], {}, "are none"),
    "noncausal": ([{"name": "sla"}], {}, "not causal"),
    "state": ([{"name": "mala"}], {}, "keeps a state"),
    "group": ([{"name": "s2"}], {}, "'s2' needs group in a decoder; give options: {group: ...}"),
    "foreign": (
        [{"name": "clear", "options": {"radius": 2, "trained_on": 9}}],
        {},
        "trained_on, which is not for here",
    ),
    "field": ([{"name": "exact", "where": 1}], {}, "it takes name, options, layers and images"),
    "images": ([{"name": "exact", "images": "some"}], {}, "use causal or both"),
}


OUT_OF_RANGE = {
    "s2: a group of 1 cannot": ("s2", {"group": 1}),
    "radial: decay -1, ": ("radial", {"decay": -1}),
    "radial: decay 2.0, ": ("radial", {"decay": 2.0}),
    "radial: decay 1.0, block 0": ("radial", {"block": 0}),
    r"radial: block \[1\] is of type list": ("radial", {"block": [1]}),
    "power: block 0, ": ("power", {"block": 0}),
    "power: .* local -1, ": ("power", {"local": -1}),
    "power: .* first -1; ": ("power", {"first": -1}),
    "axial: no axis 't'": ("axial", {"along": "t"}),
    "mask: a disc of radius -1": ("clear", {"radius": -1}),
}


@pytest.mark.parametrize("why", OUT_OF_RANGE)
def test_what_is_out_of_range_is_refused_in_decoders_and_behind_class_tokens_as_everywhere(why):
    operator, q = Operator(*OUT_OF_RANGE[why]), torch.randn(1, 17, 2, 8)
    tokens = tokens_of(Span.of(layout_of([1, (4, 4)])))
    grid = (1, 4, 4) if operator.name == "radial" else (4, 4)
    calls = [lambda: operator.lay(tokens, tokens, 2)]
    for prefix in (0, 1) if operator.on_grid else ():
        x = q[:, 1 - prefix :]
        calls += [lambda x=x, n=prefix: operator.everything(x, x, x, scale=1.0, grid=grid, prefix=n)]
    if not operator.on_grid:
        calls += [lambda: operator.function(q, q, q, mask=CAUSAL, **operator.options)]
    for call in calls:
        with pytest.raises(ValueError, match=f"^{why}") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("operators", "config", "why"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_is_refused(operators, config, why):
    with pytest.raises(ValueError, match=why) as error:
        lm = made(*operators, **config)
        lm(torch.zeros(1, 3, 32), layout_of([3]))
    assert "\n" not in str(error.value)


def test_what_an_operator_is_in_a_decoder_stands_in_its_own_file(monkeypatch):
    """Whether it acts in training alone, or across images, and its rule; without that a grid is for encoders."""
    given, layout = Operator("axial"), layout_of(FIRST)
    tokens = tokens_of(Span.of(layout))
    assert not given.only_training
    before = given.lay(tokens, tokens, 4).dense()[0, 0]
    monkeypatch.setattr(axial, "ONLY_TRAINING", True, raising=False)
    monkeypatch.setattr(axial, "ACROSS_IMAGES", True, raising=False)
    assert given.only_training
    after = given.lay(tokens, tokens, 4).dense()[0, 0]
    # cells of the second image see the same row of the first one, where they saw all of it
    row, image = layout.cell[0, :, 0], layout.image[0]
    between = (image[:, None] == 1) & (image == 0)
    assert torch.equal(after, before & ~(between & (row[:, None] != row)))
    assert bool(before[between].all()) and int(after[between].sum()) == 3 * 3 * 4
    monkeypatch.delattr(axial, "rule")
    with pytest.raises(ValueError, match="'axial' is on a grid and has no rule for the text beside it") as error:
        made({"name": "axial"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_frames_behind_class_tokens_are_those_without_any(prefix):
    """Four frames of 2 x 3 cells; what stands before them sees and is seen by everything."""
    q, k, v = (torch.randn(2, prefix + 24, 2, 8) for _ in range(3))
    seen = torch.ones(prefix + 24, prefix + 24, dtype=torch.bool)
    for i, j in itertools.product(range(24), repeat=2):
        far = reach(abs(i // 6 - j // 6), 6, block=2)
        seen[prefix + i, prefix + j] = j < 6 or (far is not None and abs(i % 6 - j % 6) <= far)
    found = Operator("radial", {"block": 2}).everything(q, k, v, scale=0.3, grid=(4, 2, 3), prefix=prefix)
    heads = (x.transpose(1, 2) for x in (q, k, v))
    expected = scaled_dot_product_attention(*heads, attn_mask=seen, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not bool(seen.all())


@pytest.mark.parametrize("prefix", [0, 1])
def test_an_image_is_no_video(prefix):
    q = torch.randn(1, prefix + 12, 1, 8)
    with pytest.raises(ValueError, match=r"radial.*\(t, y, x\)"):
        Operator("radial").everything(q, q, q, scale=1.0, grid=(3, 4), prefix=prefix)


def test_it_is_not_mixed_with_a_policy_for_visual_tokens(tiny):
    model = tiny()
    model.lm.operators = made({"name": "axial"}).operators
    with pytest.raises(ValueError, match="NAAViT wants softmax attention"):
        model.use(NAAViT())
