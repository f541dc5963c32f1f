"""Reduction between the layers of several kinds of decoders: what reducers are told, and what the layers then see.

The oracle for scores is transformers' own attention of each sample alone; for what has left, the same tokens hidden.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gnomon.vlm.decoder import decode
from gnomon.vlm.executor import policy
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layer_reduction import LayerReduction
from gnomon.vlm.layout import IGNORE, Kind, TokenLayout
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction.base import ReduceContext, Stage, TokenReducer
from gnomon.vlm.reduction.fastv import FastV
from gnomon.vlm.reduction.pyramiddrop import PyramidDrop

BASE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS = {
    "llama": {"model_type": "llama"},
    "qwen3": {"model_type": "qwen3"},
    "mistral": {"model_type": "mistral", "sliding_window": 9},
    "gemma2": {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,
        "sliding_window": 9,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
}
LAYER = 2
# text before the image, its tokens, text behind it
ROWS = [(3, 8, 4), (1, 8, 6), (2, 5, 3)]
every_model = pytest.mark.parametrize("name", MODELS)


def make(name: str, attention: str | None = None, **options) -> CausalLM:
    torch.manual_seed(0)
    attention = attention or ("eager" if name == "gemma2" else "sdpa")
    lm = CausalLM(config=BASE | MODELS[name], attention=attention, **options).eval()
    for weight in lm.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=0.2)
    return lm


def layout_of(rows: list[tuple[int, int, int]], how: str) -> TokenLayout:
    """Rows side by side, padded left or right, or packed into one."""
    lines = []
    for number, (before, visual, after) in enumerate(rows):
        for place in range(before + visual + after):
            seen = before <= place < before + visual
            image = number if how == "packed" else 0
            what = (Kind.IMAGE, image, 0, place - before) if seen else (Kind.TEXT, -1, -1, -1)
            lines.append([*what, place, number])
    if how == "packed":
        full = torch.tensor([lines])
    else:
        length, pad = max(map(sum, rows)), [Kind.PAD, -1, -1, -1, 0, -1]
        full, start = [], 0
        for row in rows:
            part, fill = lines[start : start + sum(row)], [pad] * (length - sum(row))
            full.append(fill + part if how == "left" else part + fill)
            start += sum(row)
        full = torch.tensor(full)
    kind, image, cell, position, document = full[..., 0], full[..., 1], full[..., 2:4], full[..., 4], full[..., 5]
    return TokenLayout(kind, image, cell, position, document if how == "packed" else None)


def embeds_of(layout: TokenLayout, samples: list[Tensor]) -> Tensor:
    embeds = torch.zeros(*layout.shape, 32)
    embeds[layout.visible] = torch.cat(samples)
    return embeds


class Spy(TokenReducer):
    """Wants to know everything, keeps every other token."""

    stage = Stage.LLM_LAYER
    layers = (LAYER,)
    needs = frozenset({"rows", "head_rows", "received", "lm_keys", "normed", "text", "first", "rotary"})

    def __init__(self, score: str = "previous") -> None:
        super().__init__(0.5)
        self.score = score
        self.seen: dict[str, tuple[ReduceContext, int]] = {}

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        self.seen |= {name: (ctx, i) for i, name in enumerate(ctx.names)}
        return ReductionPlan.keep(torch.arange(0, ctx.feats.shape[1], 2).expand(len(ctx.feats), -1))


@every_model
@pytest.mark.parametrize("score", ["previous", "own"])
@pytest.mark.parametrize("how", ["left", "right", "packed"])
@torch.no_grad()
def test_a_reducer_is_told_what_transformers_computes_for_the_sample_alone(name, score, how):
    lm, eager = make(name), make(name, "eager")
    samples = [torch.randn(sum(row), 32, generator=torch.Generator().manual_seed(i)) for i, row in enumerate(ROWS)]
    layout = layout_of(ROWS, how)
    spy = Spy(score)
    reduction = LayerReduction([spy], samples=["a", "b", "c"], probe=lm, depth=4)
    lm(embeds_of(layout, samples), layout, reduction=reduction)
    assert set(spy.seen) == {"a", "b", "c"}
    for sample, row, (ctx, i) in zip(samples, ROWS, map(spy.seen.get, "abc")):
        visual = slice(row[0], row[0] + row[1])
        alone = whole(eager, sample)
        matrix = alone.attentions[LAYER if score == "own" else LAYER - 1][0][..., visual]
        torch.testing.assert_close(ctx.head_rows[i, :, 0], matrix[:, -1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ctx.rows[i, 0], matrix[:, -1].mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ctx.received[i], matrix.mean(0).sum(0), atol=1e-5, rtol=1e-4)
        states = alone.hidden_states[LAYER][0]
        torch.testing.assert_close(ctx.feats[i], states[visual], atol=1e-5, rtol=1e-4)
        place = ctx.visual[i]
        torch.testing.assert_close(ctx.normed[i][place], eager.normed(states[visual]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ctx.first[i], sample[visual])
        words = ctx.text_at[i] >= 0
        torch.testing.assert_close(ctx.text[i][words], torch.cat([sample[: visual.start], sample[visual.stop :]]))


def whole(lm: CausalLM, sample: Tensor):
    """transformers' own forward of one sample; some versions scale embeddings on the way, which is undone."""
    options = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    scale = lm.model.model(inputs_embeds=sample[None], **options).hidden_states[0][0, 0, 0] / sample[0, 0]
    return lm.model.model(inputs_embeds=sample[None] / scale, **options)


@every_model
@pytest.mark.parametrize("how", ["left", "right", "packed"])
@torch.no_grad()
def test_what_has_left_is_as_good_as_hidden(name, how):
    lm, spy = make(name), Spy()
    layout = layout_of(ROWS, how)
    embeds = embeds_of(layout, [torch.randn(sum(row), 32, generator=torch.Generator().manual_seed(1)) for row in ROWS])
    reduction = LayerReduction([spy], samples="abc", probe=lm, depth=4)
    found = lm(embeds, layout, reduction=reduction)
    common = {"rotary": lm.rotary, "windows": lm.windows, "additive": name == "gemma2"}
    states = decode(embeds, layout, layers=lm.layers[:LAYER], **common)
    kind = torch.where(layout.is_image & (layout.cell[..., 1] % 2 == 1), Kind.PAD, layout.kind)
    common["windows"] = lm.windows[LAYER:]
    # rotary tables come per layer: those of the second half
    common["rotary"] = lambda hidden, position: lm.rotary(hidden, position)[LAYER:]
    hidden = lm.normed(decode(states, replace(layout, kind=kind), layers=lm.layers[LAYER:], **common))
    new = reduction.rewrites[0].layout
    torch.testing.assert_close(found[new.visible], hidden[kind != Kind.PAD], atol=1e-5, rtol=1e-4)


@every_model
@pytest.mark.parametrize("position", ["keep", "repack"])
@torch.no_grad()
def test_cached_decoding_goes_on_where_the_whole_sequence_would(name, position):
    lm = make(name)
    prompt = layout_of([(3, 8, 4), (1, 8, 6)], "left")
    samples = [torch.randn(15, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    tail = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(9))

    def reduction(labels: Tensor | None = None) -> LayerReduction:
        acting = PyramidDrop(0.25, layers=[1, 3], position=position)
        return LayerReduction([acting], samples="ab", probe=lm, depth=4, labels=labels)

    state = lm.new_state()
    lm(embeds_of(prompt, samples), prompt, state, reduction())
    cached = []
    for step in range(3):
        at = TokenLayout.text(2, 1, start=15 + step)
        cached.append(lm(tail[:, step : step + 1], at, state))
    lengths = [cache.keys.shape[2] for cache in state.layers]
    full = [15 + 3, 15 - 4 + 3, 15 - 4 + 3, 15 - 6 + 3]
    assert lengths == [
        length if window is None else min(length, window - 1) for length, window in zip(full, lm.windows)
    ]
    longer = layout_of([(3, 8, 7), (1, 8, 9)], "left")
    labels = torch.full(longer.shape, IGNORE)
    # what follows the prompt counts as an answer: the token before it asks, as it did in the prompt
    labels[:, 15:] = 1
    joined = embeds_of(longer, [torch.cat([a, b]) for a, b in zip(samples, tail)])
    expected = lm(joined, longer, reduction=reduction(labels))
    torch.testing.assert_close(torch.cat(cached, 1), expected[:, -3:], atol=1e-5, rtol=1e-4)


@every_model
@pytest.mark.parametrize("position", ["keep", "repack"])
@torch.no_grad()
def test_beams_go_on_as_if_they_had_been_read_in_that_order(name, position):
    lm, order = make(name), [2, 0, 0, 1]
    samples = [torch.randn(sum(row), 32, generator=torch.Generator().manual_seed(i)) for i, row in enumerate(ROWS)]
    ends = []
    for reread in (False, True):
        at = order if reread else range(3)
        layout, state = layout_of([ROWS[i] for i in at], "left"), lm.new_state()
        reducers = [FastV(0.5, layer=1, position=position), PyramidDrop(0.25, layers=[2, 3], position=position)]
        reduction = LayerReduction(reducers, samples=[str(i) for i in at], probe=lm, depth=4)
        lm(embeds_of(layout, [samples[i] for i in at]), layout, state, reduction)
        last = layout.position[:, -1:]
        if not reread:
            state.select(torch.tensor(order))
            last = last[order]
        token = torch.randn(4, 1, 32, generator=torch.Generator().manual_seed(7))
        ends.append(lm(token, replace(TokenLayout.text(4, 1), position=last + 1), state))
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_checkpointing_changes_no_gradient(name):
    layout = layout_of(ROWS, "right")
    embeds = embeds_of(layout, [torch.randn(sum(row), 32, generator=torch.Generator().manual_seed(1)) for row in ROWS])
    gradients = []
    for checkpointing in (False, True):
        lm = make(name, checkpointing=checkpointing).train()
        given = embeds.clone().requires_grad_()
        reducers = [FastV(0.5, layer=1), PyramidDrop(0.5, layers=[2, 3])]
        lm(
            given, layout, reduction=LayerReduction(reducers, samples="abc", probe=lm, depth=4)
        ).square().sum().backward()
        gradients.append([given.grad, *(weight.grad for weight in lm.layers.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_answers_are_asked_for_and_not_asked():
    """In training the tokens before each answer ask, document by document, and answers are no text to go by."""
    layout = layout_of([(2, 4, 6), (1, 4, 5)], "packed")
    labels = torch.full((1, 22), IGNORE)
    # in the first document two answers, in the second one that begins right behind the image
    labels[0, 7:9] = labels[0, 10] = labels[0, 17:20] = 1
    spy, lm = Spy(), make("llama")
    reduction = LayerReduction([spy], samples="ab", probe=lm, depth=4, labels=labels)
    lm(torch.randn(1, 22, 32), layout, reduction=reduction)
    ctx, first = spy.seen["a"]
    assert ctx.asking[first].tolist() == [6, 9]
    assert [at for at in ctx.text_at[first].tolist() if at >= 0] == [0, 1, 6, 9, 11]
    ctx, second = spy.seen["b"]
    assert ctx.asking[second].tolist() == [16, -1]
    assert bool((ctx.rows[second, 1] == 0).all())
    # afterwards: two of four visual tokens left each time
    assert reduction.labels[0].ne(IGNORE).nonzero()[:, 0].tolist() == [5, 6, 8, 13, 14, 15]


def test_three_axes_are_numbered_anew_only_for_whoever_asks_for_it():
    flat = layout_of(ROWS, "right")
    spatial = replace(flat, position=flat.position.expand(3, -1, -1))
    assert policy(PyramidDrop(0.5), flat, inside=True) == "repack"
    assert policy(PyramidDrop(0.5), spatial, inside=True) == "keep"
    assert policy(PyramidDrop(0.5, position="repack"), spatial, inside=True) == "repack"
    assert policy(FastV(0.5), spatial, inside=True) == "keep"
    assert policy(Spy(), flat, inside=False) == "repack" and policy(Spy(), spatial, inside=False) == "keep"


@pytest.mark.parametrize(
    ("reducers", "message"),
    [
        ([FastV(0.5, layer=4)], "layer 4, but the language model has 4 layers"),
        ([FastV(0.5, layer=2), PyramidDrop(0.5, layers=[1, 2])], "two at one layer"),
    ],
)
def test_layers_that_cannot_be_are_refused(reducers, message):
    with pytest.raises(ValueError, match=message):
        LayerReduction(reducers, samples="a", probe=make("llama"), depth=4)
