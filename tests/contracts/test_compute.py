"""What every policy of vlm/compute promises; the members are whatever stands in that folder."""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sequences import cells, padded, picture, text
from torch import Tensor

from gnomon.data.collate import collate
from gnomon.data.processor import Processor
from gnomon.data.sample import Sample, Turn
from gnomon.vlm.compute import base
from gnomon.vlm.compute.base import VisualCompute
from gnomon.vlm.freeze import freeze
from gnomon.vlm.generate import generate
from gnomon.vlm.importing.checkpoint import convert, read
from gnomon.vlm.layout import Batch, Kind, TokenLayout
from gnomon.vlm.model import VLM
from gnomon.vlm.save import load, save

DEPTH, HEADS = 3, 4
HEAVY = {
    "start": 1,
    "window": 3,
    "inactive": [[], [1], [0, 3]],
    "ffn": 0.5,
    "cut": 2,
}
"""Options that ask for everything that a member has."""
NEUTRAL = {"start": DEPTH, "window": None, "inactive": [], "ffn": 1.0, "cut": DEPTH}


def members() -> list[type[VisualCompute]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.compute.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, VisualCompute) and cls is not VisualCompute]
    return found


every = pytest.mark.parametrize("cls", members(), ids=lambda cls: cls.__name__)


def made(cls: type[VisualCompute], options: dict = HEAVY) -> VisualCompute:
    known = inspect.signature(cls.__init__).parameters
    return cls(**{name: value for name, value in options.items() if name in known})


image = partial(picture, (32, 32))


def batch_of(model: VLM, rows: list[list[int | Tensor]], *, left: bool, packed: bool = False) -> Batch:
    """Rows of token ids and images; text is labelled but for the first token of a row and behind an image."""
    built, images = [], itertools.count()
    for row in rows:
        # of a packed row, images are numbered through
        images, said, slots = images if packed else itertools.count(), False, []
        for item in row:
            if isinstance(item, int):
                slots += text([item], asked=int(not said))
            else:
                slots += cells(next(images), model.image.grid(*item.shape[1:]))
            said = isinstance(item, int)
        built.append(slots)
    pixels = [item for row in rows for item in row if not isinstance(item, int)]
    if not packed:
        return padded(built, pixels, left=left)
    batch = padded([list(itertools.chain(*built))], pixels)
    batch.layout.position = torch.tensor([[i for slots in built for i in range(len(slots))]])
    batch.layout.document = torch.tensor([[number for number, slots in enumerate(built) for _ in slots]])
    return replace(batch, samples=[f"s{i}" for i in range(len(rows))])


ROWS = [
    [3, image(1), 4, 5, 6],
    [7, 8, image(2), 9, 10, 11, 12, 13],
    [3, 4, 5],
    [image(3), 6, image(1), 5, 4],
]


@pytest.fixture
def build(tiny: Callable[..., VLM]) -> Callable[..., VLM]:
    return lambda compute=None, **lm: tiny(lm={"num_hidden_layers": DEPTH, **lm}, compute=compute)


def text_hidden(model: VLM, batch: Batch) -> list[Tensor]:
    """Of each row, what stands behind the last layer at text."""
    read = model.read(batch)
    return [hidden[kind == Kind.TEXT] for hidden, kind in zip(read.hidden, read.after.kind)]


@every
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@torch.no_grad()
def test_neutral_options_are_the_model_itself(cls, build, left):
    plain, neutral = build(), build(made(cls, NEUTRAL))
    batch = batch_of(plain, ROWS, left=left)
    assert torch.equal(neutral(batch).logits, plain(batch).logits)


@every
@torch.no_grad()
def test_it_changes_what_text_gets_from_images(cls, build):
    plain, model = build(), build(made(cls))
    batch = batch_of(plain, ROWS[:1], left=False)
    before, after = text_hidden(plain, batch)[0], text_hidden(model, batch)[0]
    # text before the image never saw it
    torch.testing.assert_close(after[:1], before[:1], atol=1e-5, rtol=1e-5)
    assert float((after[1:] - before[1:]).abs().max()) > 1e-3


@every
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@pytest.mark.parametrize("lm", [{}, {"model_type": "mistral", "sliding_window": 9}], ids=["qwen2", "window"])
@torch.no_grad()
def test_a_row_of_a_batch_equals_the_row_alone(cls, build, left, lm):
    model = build(made(cls), **lm)
    together = text_hidden(model, batch_of(model, ROWS, left=left))
    for row, found in zip(ROWS, together):
        alone = text_hidden(model, batch_of(model, [row], left=left))[0]
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)


@every
@torch.no_grad()
def test_a_packed_row_equals_its_samples_alone(cls, build):
    model = build(made(cls))
    packed = text_hidden(model, batch_of(model, ROWS, left=False, packed=True))[0]
    alone = [text_hidden(model, batch_of(model, [row], left=False))[0] for row in ROWS]
    torch.testing.assert_close(packed, torch.cat(alone), atol=2e-5, rtol=1e-4)


@every
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_cached_decoding_equals_the_whole_sequence_at_once(cls, build, attention):
    model = build(made(cls))
    model.lm.model.config._attn_implementation = model.lm.attention = attention
    rows = [ROWS[0], ROWS[1]]
    found = generate(model, batch_of(model, rows, left=True), max_new_tokens=5, stop=())
    for row, generation in zip(rows, found):
        for count in range(5):
            batch = batch_of(model, [row + generation.ids[:count]], left=True)
            values = model.lm.head(model.read(batch).hidden[:, -1])[0]
            best = values.sort().values
            assert best[-1] - best[-2] < 1e-4 or int(values.argmax()) == generation.ids[count]


@every
@torch.no_grad()
def test_the_next_token_through_the_cache_has_the_same_logits(cls, build):
    """And so have beams, which take rows of the cache in another order."""
    model = build(made(cls))
    batch, state = batch_of(model, ROWS[:2], left=True), model.lm.new_state()
    read = model.read(batch, state)
    state.select(torch.tensor([1, 0]))
    position = read.before.position[..., -1:].flip(0) + 1
    layout = replace(TokenLayout.text(2, 1), position=position)
    hidden = model.lm(model.lm.embed(torch.tensor([[8], [9]])), layout, state)[:, -1]
    for found, row in zip(hidden, [[*ROWS[1], 8], [*ROWS[0], 9]]):
        alone = model.read(batch_of(model, [row], left=True)).hidden[0, -1]
        torch.testing.assert_close(found, alone, atol=2e-5, rtol=1e-4)


@every
@torch.no_grad()
def test_a_batch_without_images_is_untouched(cls, build):
    plain, model = build(), build(made(cls))
    batch = batch_of(plain, [[3, 4, 5], [6, 7]], left=True)
    assert torch.equal(model(batch).logits, plain(batch).logits)
    found = [generate(m, batch, max_new_tokens=4, stop=())[0].ids for m in (plain, model)]
    assert found[0] == found[1]


@every
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(cls, build, checkpointing):
    model = build(made(cls)).train()
    model.lm.checkpointing = checkpointing
    loss, count = model.loss(batch_of(model, ROWS, left=False))
    (loss / count).backward()
    assert bool(torch.isfinite(loss)) and int(count) > 0
    for name, parameter in model.named_parameters():
        if name.startswith(("lm.", "connector.", "compute.")):
            assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    assert float(model.connector.layers[0].weight.grad.abs().sum()) > 0


@every
def test_recomputing_layers_gives_the_same_gradients(cls, build):
    gradients = []
    for checkpointing in (False, True):
        model = build(made(cls)).train()
        model.lm.checkpointing = checkpointing
        model.loss(batch_of(model, ROWS, left=False))[0].backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed, atol=1e-5, rtol=1e-4)


@every
def test_a_text_batch_touches_all_that_images_touch(cls, build):
    model = build(made(cls)).train()
    model.loss(batch_of(model, [[3, 4, 5], [6, 7]], left=False))[0].backward()
    assert all(
        p.grad is not None for n, p in model.named_parameters() if n.startswith(("lm.", "connector.", "compute."))
    )


@every
def test_only_declared_parameters_move_and_the_loss_falls(cls, build):
    model = build(made(cls)).train()
    own = any(name.startswith("compute.") for name, _ in model.named_parameters())
    trained = ("compute.", "connector.") if own else ("lm.", "connector.")
    freeze(model, [f"{name}*" for name in trained])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch, losses = batch_of(model, ROWS, left=False), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=0)
    for _ in range(12):
        loss, count = model.loss(batch)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        losses.append(float(loss.detach() / count))
    assert losses[-1] < losses[0] - 0.1
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith(trained) for name in moved)
    if own:
        assert {name for name in before if name.startswith("compute.")} <= moved


@every
@torch.no_grad()
def test_options_and_weights_come_back_from_a_saved_model(cls, build, tmp_path):
    model = build(made(cls))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.compute.spec() == made(cls).spec()
    batch = batch_of(model, ROWS, left=True)
    assert torch.equal(again(batch).logits, model(batch).logits)


@pytest.fixture(scope="session")
def imported(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("imported")
    templates = {"llava": "llava", "next": "llava", "qwen": "qwen2.5_vl"}
    return {name: convert(read(str(checkpoint(name))), out / name, template=t) for name, t in templates.items()}


@every
@pytest.mark.parametrize("name", ["llava", "next", "qwen"])
@torch.no_grad()
def test_it_runs_on_imported_models(cls, name, imported):
    """Class tokens, crops with row ends, merged cells and three axes of positions."""
    model = load(imported[name])
    processor = Processor(model.tokenizer, model.template, model.image, max_length=4096)
    draw = np.random.default_rng(0)

    def batch(*sizes: tuple[int, int]) -> Batch:
        examples = []
        for height, width in sizes:
            picture = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            sample = Sample("s", (Turn("user", "<image>\nWhat is this?"),), [picture])
            examples.append(processor.example(sample, train=False))
        return collate(examples, pad_id=processor.pad_id, side="left")

    depth, both = len(model.lm.layers), batch((31, 90), (50, 37))
    plain = model(both).logits
    model.use(made(cls, {**NEUTRAL, "start": depth, "cut": depth}))
    assert torch.equal(model(both).logits, plain)
    model.use(made(cls, {**HEAVY, "inactive": [[], [1], *[[0, 3]] * (depth - 2)], "cut": depth - 1}))
    together = model.read(both)
    draw = np.random.default_rng(0)
    for i, size in enumerate([(31, 90), (50, 37)]):
        alone = model.read(batch(size))
        texts = [r.hidden[k][r.after.visible[k] & ~r.after.is_cell[k]] for r, k in ((together, i), (alone, 0))]
        torch.testing.assert_close(*texts, atol=5e-5, rtol=1e-3)
    assert [len(g.ids) for g in generate(model, both, max_new_tokens=3, stop=())] == [3, 3]
