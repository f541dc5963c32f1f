"""The executor: makes the contexts that reducers plan from, and carries their plans out, so that no method has to.

Images are reduced around the connector (`reduce_images`, `place`); layer_reduction.py does the same for rows of a batch
between decoder layers. Groups of equal size share a context, so a method never sees padding.

Shapes: B rows, T positions, I images, G groups, N tokens of a group, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from gnomon.vlm.layout import Batch, Features, TokenLayout
from gnomon.vlm.plan import Position, ReductionPlan
from gnomon.vlm.ragged import by_count, interleave, together
from gnomon.vlm.reduction.base import ReduceContext, TokenReducer
from gnomon.vlm.rewrite import Placed, Rewrite, rewrite

CHOOSING = "gnomon::choosing"
"""What profilers call the making of scores and plans."""

_TAPPED = ("saliency", "keys", "wide_saliency", "wide_keys", "cls", "xyz")


def reduce_images(
    reducer: TokenReducer, features: Features, *, names: list[str], pixels: Tensor, image: Tensor
) -> Features:
    """Features of images of one size with the reducer's plan carried out; `image` (G,) is their number in their row."""
    parts = []
    for at, part in by_count(features):
        own = [names[i] for i in at]
        parts.append((at, _reduce(reducer, part, names=own, pixels=pixels[at], image=image[at])))
    return together(parts)


def _reduce(reducer: TokenReducer, features: Features, *, names: list[str], pixels: Tensor, image: Tensor) -> Features:
    """The same for images with equally many tokens."""
    count = features.tokens.shape[1]
    needs = reducer.needs
    if "grid" in needs and features.plan is not None:
        raise ValueError(
            f"{type(reducer).__name__} needs a whole grid, but a reducer before it thinned it out; swap them"
        )
    ctx = ReduceContext(
        feats=features.tokens,
        names=names,
        cell=features.cells().round().long(),
        image=image[:, None].expand(-1, count),
        grid=features.grid[0] if features.plan is None else None,
        pixels=pixels if "pixels" in needs else None,
        **{name: getattr(features, name) for name in _TAPPED if name in needs},
    )
    missing = sorted(name for name in needs if name in _TAPPED and name != "cls" and getattr(ctx, name) is None)
    if missing:
        raise ValueError(
            f"{type(reducer).__name__} needs {', '.join(missing)}, which the model or the data does not give"
        )
    with record_function(CHOOSING):
        plan = reducer.plan(ctx)
    return features.reduced(plan)


def place(
    embeds: Tensor, layout: TokenLayout, groups: Sequence[tuple[list[int], Features]], position: Position
) -> tuple[Tensor, Rewrite]:
    """Reduced features in the places of their images; `groups` are numbers of images and their features."""
    grid: dict[int, tuple[int, int]] = {i: g for members, features in groups for i, g in zip(members, features.grid)}
    slots = image_slots(layout, [grid[i] for i in range(len(grid))])
    placed = [
        Placed(slots[members][:, : features.grid[0][0] * features.grid[0][1]], _plan(features))
        for members, features in groups
    ]
    new = rewrite(layout, placed, position)
    return new.fill(embeds, torch.cat([features.tokens.flatten(0, 1) for _, features in groups])), new


def fill(embeds: Tensor, batch: Batch, groups: Sequence[tuple[list[int], Features]], *, crops: bool) -> Tensor:
    """Every token of every image in its slot, none reduced; `crops` take turns row by row."""
    features = interleave([part for _, part in groups], [members for members, _ in groups])
    if crops:
        # not all of their cells are in the sequence
        slots = image_slots(batch.layout, features.grid)
        visual = features.tokens[:, : slots.shape[1]].to(embeds.dtype)
        filled = embeds.flatten(0, 1).index_put((slots[slots >= 0],), visual[slots >= 0])
        return filled.view_as(embeds)
    visual, slots = features.tokens[features.valid], batch.layout.is_image
    if int(slots.sum()) != visual.shape[0]:
        raise ValueError(
            f"the batch has {int(slots.sum())} image slots but its {len(batch.pixels)} images make "
            f"{visual.shape[0]} tokens (samples {', '.join(batch.samples)}); use the model's own processor"
        )
    return embeds.masked_scatter(slots[..., None], visual.to(embeds.dtype))


def _plan(features: Features) -> ReductionPlan:
    if features.plan is not None:
        return features.plan
    return ReductionPlan.identity(len(features.grid), features.tokens.shape[1], features.tokens.device)


def image_slots(layout: TokenLayout, grid: list[tuple[int, int]]) -> Tensor:
    """(I,N) the flat position of every cell of every image in raster order, -1 for those not in the sequence."""
    slots = torch.full((len(grid), max(h * w for h, w in grid)), -1, device=layout.kind.device)
    flat = (layout.is_image & (layout.cell[..., 0] >= 0)).flatten().nonzero()[:, 0]
    number = image_numbers(layout).flatten()[flat]
    columns = torch.tensor([w for _, w in grid], device=flat.device)
    cell = layout.cell.flatten(0, 1)[flat]
    slots[number, cell[:, 0] * columns[number] + cell[:, 1]] = flat
    return slots


def image_numbers(layout: TokenLayout) -> Tensor:
    """(B,T) the number of each token's image in the batch; -1 elsewhere."""
    per_row = layout.image.amax(1) + 1
    offset = per_row.cumsum(0) - per_row
    return torch.where(layout.image >= 0, layout.image + offset[:, None], -1)


def sample_numbers(layout: TokenLayout) -> Tensor:
    """(B,T) the number of each token's sample in the batch: its row, or, packed, its document."""
    if layout.document is None:
        return torch.arange(len(layout.kind), device=layout.kind.device)[:, None].expand(layout.shape)
    begins = layout.visible.clone()
    begins[:, 1:] &= (layout.document[:, 1:] != layout.document[:, :-1]) | ~layout.visible[:, :-1]
    return begins.flatten().long().cumsum(0).view(layout.shape) - 1


def image_rows(layout: TokenLayout) -> Tensor:
    """(I,) the number that each image of the batch has in its row."""
    number = image_numbers(layout)
    number, in_row = number[number >= 0], layout.image[number >= 0]
    return in_row.new_empty(int(number.max()) + 1).scatter_(0, number, in_row)


def image_names(batch: Batch) -> list[str]:
    """What stands for each image of the batch in a random choice: its sample and its number there."""
    image, sample = image_numbers(batch.layout).flatten(), sample_numbers(batch.layout).flatten()
    owners = image.new_zeros(int(image.max()) + 1)
    owners[image[image >= 0]] = sample[image >= 0]
    if len(owners) != len(batch.pixels):
        raise ValueError(
            f"the batch has slots for {len(owners)} images and {len(batch.pixels)} images (samples "
            f"{', '.join(batch.samples)}); use the model's own processor"
        )
    seen: dict[int, int] = {}
    names = []
    for owner in owners.tolist():
        seen[owner] = seen.get(owner, -1) + 1
        names.append(f"{batch.samples[owner] if owner < len(batch.samples) else owner}#{seen[owner]}")
    return names


def policy(reducer: TokenReducer, layout: TokenLayout, *, inside: bool) -> Position:
    """The reducer's own choice of position ids, or what its place in the model asks for."""
    # a method's habit of numbering anew was made for one axis; who asks for it gets it all the same
    if layout.position.dim() == 3 and reducer.position == "repack" and reducer.init_args.get("position") is None:
        return "keep"
    if reducer.position is not None:
        return reducer.position
    return "keep" if inside or layout.position.dim() == 3 else "repack"
