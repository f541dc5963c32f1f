"""What every reducer promises; the members are whatever stands in vlm/reduction.

On bare tensors for the plan, and inside a tiny model for all that the executor makes of it.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from sequences import cells, padded, picture, text
from torch import Tensor, nn

from gnomon.vlm.decoder import decode
from gnomon.vlm.generate import generate
from gnomon.vlm.layout import Batch, Features, Kind, TokenLayout
from gnomon.vlm.model import VLM
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.reduction import base
from gnomon.vlm.reduction.base import ReduceContext, Stage, TokenReducer
from gnomon.vlm.save import load, save

LAYERS = {"num_hidden_layers": 6}


def members() -> list[type[TokenReducer]]:
    found = []
    for path in sorted(Path(base.__file__).parent.glob("*.py")):
        module = importlib.import_module(f"gnomon.vlm.reduction.{path.stem}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        found += [cls for cls in own if issubclass(cls, TokenReducer) and cls is not TokenReducer]
    return found


MEMBERS = members()
every = pytest.mark.parametrize("cls", MEMBERS, ids=lambda cls: cls.__name__)
inside = pytest.mark.parametrize(
    "cls", [c for c in MEMBERS if c.stage is Stage.LLM_LAYER], ids=lambda cls: cls.__name__
)
planning = pytest.mark.parametrize(
    "cls", [c for c in MEMBERS if c.stage in (Stage.POST_ENCODER, Stage.POST_PROJECTOR)], ids=lambda cls: cls.__name__
)


def made(cls: type[TokenReducer], ratio: float = 0.5) -> TokenReducer:
    """With stages early enough for a language model of six layers."""
    early = {"layers": (1, 2, 4), "layer": 2}
    known = inspect.signature(cls.__init__).parameters
    return cls(ratio, **{name: value for name, value in early.items() if name in known})


def context(groups: int = 3, side: int = 6, width: int = 8, seed: int = 0) -> ReduceContext:
    """Everything that a reducer outside the language model may ask for."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    count = side * side
    cell = torch.cartesian_prod(torch.arange(side), torch.arange(side)).expand(groups, -1, -1)
    return ReduceContext(
        feats=normal(groups, count, width),
        names=[f"sample{i}#0" for i in range(groups)],
        cell=cell,
        image=torch.zeros(groups, count, dtype=torch.long),
        grid=(side, side),
        saliency=normal(groups, count).softmax(1),
        keys=normal(groups, count, 4),
        wide_saliency=normal(groups, count).mul(3).softmax(1),
        wide_keys=normal(groups, count, 8),
        cls=normal(groups, width),
        pixels=normal(groups, 3, side * 8, side * 8).sigmoid(),
        xyz=normal(groups, count, 3),
    )


def row_of(ctx: ReduceContext, i: int) -> ReduceContext:
    values = {f.name: getattr(ctx, f.name) for f in fields(ctx)}
    cut = {name: value[i : i + 1] for name, value in values.items() if isinstance(value, (Tensor, list))}
    return replace(ctx, **cut)


@planning
@pytest.mark.parametrize("ratio", [0.05, 0.25, 0.5, 0.9])
def test_budget_and_order(cls: type[TokenReducer], ratio: float):
    reducer, ctx = made(cls, ratio), context()
    plan = reducer.plan(ctx)
    count = ctx.feats.shape[1]
    assert plan.index.min() >= 0 and plan.index.max() < count + (0 if plan.extra is None else plan.extra.shape[1])
    if not reducer.adaptive:
        assert plan.counts.tolist() == [reducer.budget(count)] * 3
    for anchors, real in zip(plan.anchor, plan.real):
        kept = [a for a in anchors[real].tolist() if a < count]
        assert len(set(kept)) == len(kept), "a token stands twice"
        if reducer.ordered:
            assert kept == sorted(kept), "not in raster order"


@planning
def test_a_row_of_a_context_equals_the_group_alone(cls: type[TokenReducer]):
    reducer, ctx = made(cls), context()
    together = reducer.plan(ctx)
    for i in range(3):
        alone = reducer.plan(row_of(ctx, i))
        count = int(alone.counts[0])
        assert int(together.counts[i]) == count
        torch.testing.assert_close(
            together.apply(ctx.feats)[i, :count], alone.apply(ctx.feats[i : i + 1])[0, :count], atol=1e-5, rtol=1e-5
        )


@planning
def test_a_plan_changes_nothing_and_repeats(cls: type[TokenReducer]):
    reducer, ctx = made(cls), context()
    before = {f.name: v.clone() for f in fields(ctx) if isinstance(v := getattr(ctx, f.name), Tensor)}
    first, second = reducer.plan(ctx), reducer.plan(ctx)
    assert torch.equal(first.index, second.index)
    assert all(torch.equal(getattr(ctx, name), value) for name, value in before.items())


@every
@pytest.mark.parametrize("ratio", [0, -0.5, 1.5, float("nan"), True, "half"])
def test_a_ratio_outside_zero_to_one_is_refused(cls: type[TokenReducer], ratio):
    with pytest.raises(ValueError, match=r"ratio .* \(0, 1\]"):
        cls(ratio)


@planning
def test_a_grid_of_one_cell_is_left_alone(cls: type[TokenReducer]):
    plan = made(cls, 0.5).plan(context(side=1))
    assert bool((plan.counts >= 1).all()) and bool(plan.survivors(1).all())


image = partial(picture, (32, 32))


def batch_of(model: VLM, rows: list[list[int | Tensor]], *, left: bool) -> Batch:
    """Rows of token ids and images, padded on one side; text is labelled."""
    built = []
    for row in rows:
        images, slots = itertools.count(), []
        for item in row:
            slots += text([item]) if isinstance(item, int) else cells(next(images), model.image.grid(*item.shape[1:]))
        built.append(slots)
    return padded(built, [item for row in rows for item in row if not isinstance(item, int)], left=left)


ROWS = [
    [3, image(1), 4, 5, 6],
    [7, 8, image(2), 9, 10, 11, 12, 13],
    [3, 4, 5],
    [image(3), 6, image(1), 5],
]


@pytest.fixture
def model(tiny) -> VLM:
    return tiny(lm=LAYERS)


def reduced(model: VLM, reducer: TokenReducer) -> VLM:
    model.reducers = [reducer]
    if "xyz" in reducer.needs:
        # as an encoder would that knows where surfaces are
        model.encoder.register_forward_hook(_located)
    return model


def _located(encoder: nn.Module, inputs: tuple, features: Features) -> Features:
    return replace(features, xyz=features.tokens[..., :3].detach())


@every
@torch.no_grad()
def test_ratio_one_is_the_model_itself(cls: type[TokenReducer], model: VLM):
    for left in (True, False):
        batch = batch_of(model, ROWS, left=left)
        model.reducers = []
        expected = model(batch).logits
        model.reducers = [made(cls, 1.0)]
        assert torch.equal(model(batch).logits, expected)


@every
@torch.no_grad()
def test_text_stays_and_visual_tokens_leave(cls: type[TokenReducer], model: VLM):
    batch = batch_of(model, ROWS, left=False)
    read = reduced(model, made(cls)).read(batch)
    text = read.carry(batch.ids, -1)
    for row, (before, after) in enumerate(zip(batch.layout.kind, read.after.kind)):
        assert batch.ids[row][before == Kind.TEXT].tolist() == text[row][after == Kind.TEXT].tolist()
        assert int((after == Kind.IMAGE).sum()) <= int((before == Kind.IMAGE).sum())
    if not made(cls).adaptive:
        assert int(read.after.is_image.sum()) < int(batch.layout.is_image.sum())
    assert read.hidden.shape[:2] == read.after.shape


@every
@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
@torch.no_grad()
def test_a_row_of_a_batch_equals_the_row_alone(cls: type[TokenReducer], model: VLM, left: bool):
    reduced(model, made(cls))
    together = model.read(batch_of(model, ROWS, left=left))
    for i, row in enumerate(ROWS):
        single = replace(batch_of(model, [row], left=left), samples=[f"s{i}"])
        alone = model.read(single)
        found = together.hidden[i][together.after.visible[i]]
        torch.testing.assert_close(found, alone.hidden[0][alone.after.visible[0]], atol=2e-5, rtol=1e-4)


class Frozen(TokenReducer):
    """Carries out plans that were made before, in their order."""

    def __init__(self, reducer: TokenReducer, plans: list[ReductionPlan]) -> None:
        super().__init__(0.5)
        self.stage, self.needs, self.layers = reducer.stage, frozenset(), reducer.layers
        self.position, self.score = reducer.position, reducer.score
        self.plans = plans

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        return self.plans.pop(0)


class Watching(Frozen):
    """Plans as the reducer does, and remembers the plans."""

    def __init__(self, reducer: TokenReducer) -> None:
        super().__init__(reducer, [])
        self.reducer, self.needs = reducer, reducer.needs

    def queries(self, ctx: ReduceContext) -> Tensor | None:
        return self.reducer.queries(ctx)

    def plan(self, ctx: ReduceContext) -> ReductionPlan:
        self.plans.append(self.reducer.plan(ctx))
        return self.plans[-1]


@inside
@torch.no_grad()
def test_removing_equals_masking(cls: type[TokenReducer], model: VLM):
    """Layers see the same whether a token has left or is hidden from all others, as long as ids are kept.

    Where tokens merge: the same as a shorter sequence, put together by hand: text, the plan's weighted sums with ids of
    their anchors, text.
    """
    reducer = made(cls)
    reducer.layers, reducer.position = reducer.layers[:1], "keep"
    watching, layer = Watching(reducer), reducer.layers[0]
    batch = batch_of(model, [ROWS[0], ROWS[0][:1] + ROWS[1][2:4] + [4, 5]], left=False)
    read = reduced(model, watching).read(batch)
    plan, count = watching.plans[0], int(batch.layout.is_image[0].sum())
    lm, (embeds, layout, _) = model.lm, model.embed(batch)
    common = {"rotary": lm.rotary, "windows": lm.windows}
    middle = decode(embeds, layout, layers=lm.layers[:layer], **common)
    if plan.weight is not None:
        for b, (found, left) in enumerate(zip(read.hidden, read.after.visible)):
            visual, text = (where[b].nonzero()[:, 0] for where in (layout.is_image, layout.kind == Kind.TEXT))
            real = plan.real[b]
            sums = (plan.weight[b][..., None] * middle[b, visual[plan.index[b]]]).sum(1)[real]
            before, after = text[text < visual[0]], text[text > visual[-1]]
            at = torch.cat([before, visual[plan.anchor[b]][real], after])
            tokens = torch.cat([middle[b, before], sums, middle[b, after]])
            short = replace(TokenLayout.text(1, len(at)), position=at[None])
            expected = decode(tokens[None], short, layers=lm.layers[layer:], **common)
            torch.testing.assert_close(found[left], lm.normed(expected)[0], atol=1e-5, rtol=1e-4)
        return
    kind = layout.kind.clone()
    kind[layout.is_image] = torch.where(plan.survivors(count), Kind.IMAGE, Kind.PAD).flatten()
    masked = lm.normed(decode(middle, replace(layout, kind=kind), layers=lm.layers[layer:], **common))
    for found, left, seen, there in zip(read.hidden, read.after.visible, masked, kind != Kind.PAD):
        torch.testing.assert_close(found[left], seen[there], atol=1e-5, rtol=1e-4)


@inside
@torch.no_grad()
def test_cached_decoding_equals_the_whole_sequence_at_once(cls: type[TokenReducer], model: VLM):
    watching = Watching(made(cls))
    row = [3, image(1), 4, 5, 6]
    found = generate(reduced(model, watching), batch_of(model, [row], left=True), max_new_tokens=6, stop=())[0].ids
    for count in range(6):
        model.reducers = [Frozen(made(cls), list(watching.plans))]
        logits = model.lm.head(model.read(batch_of(model, [row + found[:count]], left=True)).hidden[:, -1])
        values = logits[0].sort().values
        assert values[-1] - values[-2] < 1e-4 or int(logits.argmax()) == found[count]


@every
@torch.no_grad()
def test_generation_in_a_batch_equals_generation_alone(cls: type[TokenReducer], model: VLM):
    reduced(model, made(cls))
    together = generate(model, batch_of(model, ROWS, left=True), max_new_tokens=5, stop=())
    for i, row in enumerate(ROWS):
        single = replace(batch_of(model, [row], left=True), samples=[f"s{i}"])
        assert generate(model, single, max_new_tokens=5, stop=())[0].ids == together[i].ids


@every
def test_a_training_step_reaches_what_is_kept(cls: type[TokenReducer], model: VLM):
    batch = batch_of(model, ROWS, left=False)
    loss, count = reduced(model, made(cls)).loss(batch)
    (loss / count).backward()
    assert bool(torch.isfinite(loss)) and int(count) > 0
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.lm.parameters())
    assert float(model.connector.layers[0].weight.grad.abs().sum()) > 0


@every
@torch.no_grad()
def test_a_batch_without_images_is_untouched(cls: type[TokenReducer], model: VLM):
    batch = batch_of(model, [[3, 4, 5], [6, 7]], left=True)
    expected = model(batch).logits
    assert torch.equal(reduced(model, made(cls))(batch).logits, expected)


@every
def test_options_come_back_from_a_saved_model(cls: type[TokenReducer], model: VLM, tmp_path):
    save(reduced(model, made(cls)), tmp_path / "m")
    assert [r.spec() for r in load(tmp_path / "m").reducers] == [made(cls).spec()]
