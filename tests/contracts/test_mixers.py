"""What every mixer of vlm/mixers promises; the members are whatever stands in that folder."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.generate import generate
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import IGNORE, Batch, Kind, TokenLayout
from gnomon.vlm.mixers import base
from gnomon.vlm.mixers.base import Mimic, Mixer, lessons
from gnomon.vlm.model import VLM
from gnomon.vlm.save import load, save

SMALL = {"window": 5, "rank": 4, "feature": 3, "agents": (2, 2)}
"""Options that matter at these sizes."""
ROWS = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13], [14, 15, 16, 17], [18, 19, 20, 21, 22, 23, 24, 25]]


def members() -> list[type[Mixer]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.mixers.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, Mixer) and path.stem != "base"]
    return found


causal = pytest.mark.parametrize("cls", [c for c in members() if c.causal], ids=lambda cls: cls.__name__)
bidirectional = pytest.mark.parametrize("cls", [c for c in members() if not c.causal], ids=lambda cls: cls.__name__)


def made(cls: type[Mixer], layers: list[int] | str = "all") -> Mixer:
    known = inspect.signature(cls.__init__).parameters
    return cls(layers, **{name: value for name, value in SMALL.items() if name in known})


def stirred(model: torch.nn.Module) -> None:
    """Weights that are large enough for everything to matter; initial ones are small, and convolutions the identity."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.1)


@pytest.fixture
def build(tiny: Callable[..., VLM]) -> Callable[..., VLM]:
    def make(cls: type[Mixer], layers: list[int] | str = "all", **lm) -> VLM:
        model = tiny(lm={"num_hidden_layers": 2, **lm}, mixers=[made(cls, layers)])
        stirred(model.lm)
        return model

    return make


def of_kind(kind: str, cls: type[Mixer], layers: list[int] | str = "all") -> CausalLM:
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    more = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    config = {"model_type": kind, **sizes, **more}
    lm = CausalLM(config=config, attention="eager" if kind == "gemma2" else "sdpa").eval()
    lm.mix([made(cls, layers)])
    stirred(lm)
    return lm


def layout_of(rows: list[list[int]], *, side: str) -> tuple[Tensor, TokenLayout]:
    """Padding stands on one side of the tokens, or one piece of it behind each of them."""
    length = max(map(len, rows)) * (2 if side == "among" else 1)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    layout = TokenLayout.text(len(rows), length)
    layout.kind[:] = Kind.PAD
    for i, row in enumerate(rows):
        places = {
            "left": slice(length - len(row), length),
            "right": slice(0, len(row)),
            "among": slice(0, 2 * len(row), 2),
        }
        place = places[side]
        ids[i, place], layout.kind[i, place] = torch.tensor(row), Kind.TEXT
    layout.position = (layout.visible.long().cumsum(1) - 1).clamp(min=0)
    return ids, layout


def batch_of(rows: list[list[int]], *, side: str = "left") -> Batch:
    ids, layout = layout_of(rows, side=side)
    return Batch(ids, torch.where(layout.visible, ids, IGNORE), layout, samples=[f"s{i}" for i in range(len(rows))])


def hidden(lm: CausalLM, rows: list[list[int]], *, side: str = "left") -> list[Tensor]:
    ids, layout = layout_of(rows, side=side)
    found = lm(lm.embed(ids), layout)
    return [one[real] for one, real in zip(found, layout.visible)]


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=1e-4)


@causal
@pytest.mark.parametrize("side", ["left", "right", "among"])
@torch.no_grad()
def test_a_padded_row_of_a_batch_equals_the_row_alone(cls, build, side):
    lm = build(cls).lm
    for found, row in zip(hidden(lm, ROWS, side=side), ROWS):
        near(found, hidden(lm, [row])[0])


@causal
@torch.no_grad()
def test_packed_samples_equal_the_samples_alone(cls, build):
    lm = build(cls).lm
    layout = TokenLayout.text(1, sum(map(len, ROWS)))
    layout.position = torch.tensor([[i for row in ROWS for i in range(len(row))]])
    layout.document = torch.tensor([[i for i, row in enumerate(ROWS) for _ in row]])
    found = lm(lm.embed(torch.tensor([[i for row in ROWS for i in row]])), layout)[0]
    near(found, torch.cat([hidden(lm, [row])[0] for row in ROWS]))


@causal
@torch.no_grad()
def test_decoding_from_memory_equals_the_whole_at_once(cls, build):
    """Padded rows, token by token, reordered on the way, as beams are."""
    lm = build(cls).lm
    ids, layout = layout_of(ROWS, side="left")
    state = lm.new_state()
    found = lm(lm.embed(ids), layout, state)[:, -1]
    rows = [list(row) for row in ROWS]
    position = layout.position[:, -1:]
    for step, order in enumerate([[0, 1, 2], [2, 0, 1], [1, 1, 0], [0, 1, 2], [2, 1, 0], [0, 1, 2]]):
        for one, row in zip(found, rows):
            near(one, hidden(lm, [row])[0][-1])
        chosen = torch.tensor(order)
        state.select(chosen)
        rows = [[*rows[i], 30 + step] for i in order]
        position = position[chosen] + 1
        token = replace(TokenLayout.text(3, 1), position=position)
        found = lm(lm.embed(torch.full((3, 1), 30 + step)), token, state)[:, -1]


@causal
@pytest.mark.parametrize("side", ["left", "right", "among"])
@torch.no_grad()
def test_padding_of_any_call_counts_for_nothing(cls, build, side):
    """Rows bring different numbers of tokens to each call, some of them none, and go on afterwards."""
    lm = build(cls).lm
    state, seen = lm.new_state(), [0, 0, 0]
    for new in ([4, 1, 0], [2, 0, 3], [1, 2, 4], [0, 1, 1], [1, 0, 0], [3, 0, 0]):
        ids, layout = layout_of([row[at : at + n] for row, at, n in zip(ROWS, seen, new)], side=side)
        layout.position = layout.position + torch.tensor(seen)[:, None]
        found, seen = lm(lm.embed(ids), layout, state), [at + n for at, n in zip(seen, new)]
        for one, real, row, end, n in zip(found, layout.visible, ROWS, seen, new):
            if n:
                near(one[real], hidden(lm, [row[:end]])[0][-n:])
    assert seen == [len(row) for row in ROWS]


@causal
@torch.no_grad()
def test_decoding_goes_on_from_the_last_of_packed_samples(cls, build):
    lm = build(cls).lm
    layout = TokenLayout.text(1, len(ROWS[0]) + len(ROWS[1]))
    layout.position = torch.tensor([[*range(len(ROWS[0])), *range(len(ROWS[1]))]])
    layout.document = torch.tensor([[0] * len(ROWS[0]) + [1] * len(ROWS[1])])
    state = lm.new_state()
    lm(lm.embed(torch.tensor([ROWS[0] + ROWS[1]])), layout, state)
    token = replace(TokenLayout.text(1, 1, start=len(ROWS[1])), document=torch.tensor([[1]]))
    found = lm(lm.embed(torch.tensor([[9]])), token, state)[0, 0]
    near(found, hidden(lm, [[*ROWS[1], 9]])[0][-1])


@causal
def test_nothing_depends_on_what_comes_later(cls, build):
    lm = build(cls).lm
    embeds = lm.embed(torch.tensor([ROWS[0]])).detach().requires_grad_()
    out = lm(embeds, TokenLayout.text(1, len(ROWS[0])))
    at = 6
    (gradient,) = torch.autograd.grad(out[0, at].sum(), embeds)
    assert float(gradient[0, at + 1 :].abs().max()) == 0
    assert float(gradient[0, : at + 1].abs().sum(1).min()) > 0


@causal
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_gradients_reach_every_parameter(cls, build, checkpointing):
    model = build(cls).train()
    model.lm.checkpointing = checkpointing
    model.loss(batch_of(ROWS, side="right"))[0].backward()
    for name, parameter in model.lm.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


@causal
@torch.no_grad()
def test_options_and_weights_come_back_from_a_saved_model(cls, build, tmp_path):
    model = build(cls, [1])
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert [mixer.spec() for mixer in again.mixers] == [made(cls, [1]).spec()]
    batch = batch_of(ROWS)
    assert torch.equal(again(batch).logits, model(batch).logits)


@causal
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_generation_equals_reading_everything_anew(cls, build, beams):
    """Greedy and by beams, in a hybrid with a layer of softmax attention."""
    model = build(cls, [0])
    together = generate(model, batch_of(ROWS), max_new_tokens=5, stop=(), beams=beams)
    for row, found in zip(ROWS, together):
        assert found.ids == generate(model, batch_of([row]), max_new_tokens=5, stop=(), beams=beams)[0].ids
        if beams == 1:
            logits = model.lm.head(hidden(model.lm, [row + found.ids])[0])[len(row) - 1 : -1]
            best = logits.topk(2).values
            assert bool(((logits.argmax(1) == torch.tensor(found.ids)) | (best[:, 0] - best[:, 1] < 1e-4)).all())


@causal
@pytest.mark.parametrize("kind", ["gemma2", "phi3"])
@torch.no_grad()
def test_other_architectures_take_it(cls, kind):
    """One whose masks are added and whose norms are behind the attention, and one with a single map for q, k and v."""
    lm = of_kind(kind, cls, [0])
    for found, row in zip(hidden(lm, ROWS), ROWS):
        near(found, hidden(lm, [row])[0])


def seeing(tiny: Callable[..., VLM], cls: type[Mixer]) -> VLM:
    """A model whose encoder has a noncausal mixer in its first block."""
    mixer = made(cls, [0])
    vit = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    model = tiny(encoder=Timm("vit_tiny_patch16_224", args=vit, mixers=[mixer.spec()]))
    stirred(model.encoder)
    return model


def images(count: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw))


@bidirectional
def test_an_image_of_a_batch_equals_the_image_alone(cls, tiny):
    model = seeing(tiny, cls)
    together = model.encode(images(3)).tokens
    for found, image in zip(together, images(3)):
        near(found, model.encode([image]).tokens[0])


@bidirectional
def test_every_cell_sees_every_cell_and_all_parameters_learn(cls, tiny):
    encoder = seeing(tiny, cls).encoder
    pixels = torch.randn(1, 3, 32, 32, requires_grad=True)
    out = encoder(pixels).tokens
    (gradient,) = torch.autograd.grad(out[0, 0].square().sum(), pixels, retain_graph=True)
    assert float(gradient.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((0, 1, 4, 5)).min()) > 0
    out.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        if "mixer" in name and "k_proj.bias" not in name:
            assert float(parameter.grad.abs().sum()) > 0, name


@bidirectional
@torch.no_grad()
def test_an_encoder_comes_back_with_its_mixers(cls, tiny, tmp_path):
    model = seeing(tiny, cls)
    save(model, tmp_path / "m")
    assert torch.equal(load(tmp_path / "m").encode(images(2)).tokens, model.encode(images(2)).tokens)


@bidirectional
def test_a_decoder_refuses_what_sees_the_future(cls, tiny):
    with pytest.raises(ValueError, match="for encoders only"):
        tiny(mixers=[made(cls)])


@causal
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_it_is_run_in_bfloat16_too(cls, kind):
    """Under autocast, norms of queries and keys answer in the float32 of their weights."""
    lm = of_kind(kind, cls)
    expected = hidden(lm, ROWS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = hidden(lm, ROWS)[0]
        state = lm.new_state()
        lm(lm.embed(torch.tensor([ROWS[0][:-1]])), TokenLayout.text(1, 10), state)
        last = lm(lm.embed(torch.tensor([ROWS[0][-1:]])), TokenLayout.text(1, 1, start=10), state)[0]
        found.sum().backward()
    for one, truth in ((found, expected), (last, expected[-1:])):
        assert bool((one - truth).norm() < 0.1 * truth.norm())
    lm = lm.to(torch.bfloat16)
    found = hidden(lm, ROWS)[0]
    assert found.dtype == torch.bfloat16 and bool(found.isfinite().all())


@pytest.mark.parametrize("cls", [c for c in members() if issubclass(c, Mimic)], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_lessons_are_given_in_bfloat16_too(cls, kind):
    lm = of_kind(kind, cls)
    with lessons(lm) as given:
        hidden(lm, ROWS)
    expected = given.errors
    with torch.autocast("cpu", torch.bfloat16), lessons(lm) as given:
        torch.cat(hidden(lm, ROWS)).sum().backward()
    for layer, error in expected.items():
        assert float(given.errors[layer]) == pytest.approx(float(error), rel=0.1)
    assert all(float(p.grad.abs().sum()) > 0 for name, p in lm.named_parameters() if ".learned_" in name)
