"""The new sequence against one that is built row by row and token by token."""

from __future__ import annotations

import pytest
import torch

from gnomon.vlm.layout import Kind, TokenLayout
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.rewrite import Placed, rewrite

PAD, TEXT, IMAGE = Kind.PAD, Kind.TEXT, Kind.IMAGE


def layout_of(*rows: str, left: bool = False, documents: bool = False) -> TokenLayout:
    """A letter for each token: t is text, i an image's, | ends an image or a document."""
    length = max(len(row.replace("|", "")) for row in rows)
    shape = (len(rows), length)
    kind, image, document = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1), torch.full(shape, -1)
    cell, position = torch.full((*shape, 2), -1), torch.zeros(shape, dtype=torch.long)
    for b, row in enumerate(rows):
        parts = row.split("|")
        place = length - sum(map(len, parts)) if left else 0
        count, seen = 0, -1
        for number, part in enumerate(parts):
            if documents:
                count = 0
            seen += "i" in part
            column = 0
            for letter in part:
                kind[b, place], document[b, place] = (TEXT if letter == "t" else IMAGE), number
                position[b, place] = count
                if letter == "i":
                    image[b, place], cell[b, place] = seen, torch.tensor([0, column])
                    column += 1
                place, count = place + 1, count + 1
    return TokenLayout(kind, image, cell, position, document if documents else None)


def slots_of(layout: TokenLayout, *images: tuple[int, int]) -> torch.Tensor:
    """The flat positions of (row, image) pairs of equal size."""
    found = [((layout.image[b] == i).nonzero()[:, 0] + b * layout.shape[1]).tolist() for b, i in images]
    return torch.tensor(found)


def by_hand(layout: TokenLayout, placed: list[Placed]) -> list[list[tuple[int, int, bool]]]:
    """Per row (source, origin, extra) of its tokens."""
    length, taken, entries = layout.shape[1], set(), []
    made = layout.kind.numel()
    for part in placed:
        for g, slots in enumerate(part.slots.tolist()):
            taken |= set(slots)
            anchors = part.plan.anchor[g].tolist()
            numbers = [made + g * part.plan.length + t for t in range(part.plan.length)]
            real = list(zip(numbers, anchors))[: int(part.plan.counts[g])]
            places = sorted(slots[a] for _, a in real if a < len(slots))
            done = 0
            for order, (number, anchor) in enumerate(real):
                if anchor < len(slots):
                    entries.append((places[done], order, number, slots[anchor], False))
                    done += 1
                else:
                    edge = slots[0] if done == 0 else slots[-1]
                    entries.append((edge, order, number, edge, True))
        made += part.plan.index[..., 0].numel()
    for flat in range(layout.kind.numel()):
        if flat not in taken and layout.kind.flatten()[flat] != PAD:
            entries.append((flat, 0, flat, flat, False))
    rows: list[list[tuple[int, int, bool]]] = [[] for _ in range(len(layout.kind))]
    for place, _, source, origin, extra in sorted(entries):
        rows[place // length].append((source, origin, extra))
    return rows


def check(layout: TokenLayout, placed: list[Placed], *, left: bool = False) -> None:
    expected = by_hand(layout, placed)
    for position in ("keep", "repack"):
        new = rewrite(layout, placed, position)
        assert new.layout.shape[1] == max(map(len, expected))
        for b, row in enumerate(expected):
            there = new.layout.visible[b]
            assert there.sum() == len(row)
            assert bool(there[-1]) == (left or len(row) == there.numel())
            assert new.source[b][there].tolist() == [source for source, _, _ in row]
            assert new.origin[b][there].tolist() == [origin for _, origin, _ in row]
            ids = [int(layout.position.flatten()[origin]) for _, origin, _ in row]
            if position == "repack" and layout.document is None:
                ids = list(range(len(row)))
            elif position == "repack":
                owner = [int(layout.document.flatten()[origin]) for _, origin, _ in row]
                ids = [owner[:i].count(owner[i]) for i in range(len(row))]
                assert new.layout.document[b][there].tolist() == owner
            assert new.layout.position[b][there].tolist() == ids
            kinds = [int(layout.kind.flatten()[origin]) for _, origin, _ in row]
            assert new.layout.kind[b][there].tolist() == kinds
            assert [c[1] == -1 for c in new.layout.cell[b][there].tolist()] == [
                extra or kind == TEXT for (_, _, extra), kind in zip(row, kinds)
            ]


KEEP = ReductionPlan.keep(torch.tensor([[0, 3], [1, 2]]))
MERGED = ReductionPlan(
    torch.tensor([[[0, 0], [3, 1]], [[2, 1], [3, 0]]]), torch.tensor([[[1.0, 0], [0.4, 0.6]], [[0.5, 0.5], [1.0, 0]]])
)
FIRST = ReductionPlan.keep(torch.tensor([[4, 1], [4, 3]]))
LAST = ReductionPlan.keep(torch.tensor([[2, 4, 4], [0, 3, 4]]), torch.tensor([3, 2]))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("plan", [KEEP, MERGED, FIRST, LAST], ids=["keep", "merged", "extra first", "extra last"])
def test_padded_rows(plan, left):
    layout = layout_of("tiiiitt", "tttiiiitttt", "ttt", left=left)
    check(layout, [Placed(slots_of(layout, (0, 0), (1, 0)), plan)], left=left)


def test_images_of_two_sizes_in_one_row():
    layout = layout_of("tiiii|iit|iiiitt", "tt")
    small = ReductionPlan.keep(torch.tensor([[1]]))
    check(layout, [Placed(slots_of(layout, (0, 0), (0, 2)), KEEP), Placed(slots_of(layout, (0, 1)), small)])


def test_packed_documents():
    layout = layout_of("tiiiitt|tiit|iiiit", documents=True)
    check(layout, [Placed(slots_of(layout, (0, 0), (0, 2)), MERGED)])


def test_slots_that_are_not_in_the_sequence():
    layout = layout_of("tiiit")
    slots = torch.tensor([[1, 2, 3, -1]])
    new = rewrite(layout, [Placed(slots, ReductionPlan.keep(torch.tensor([[1, 3]])))], "keep")
    assert new.origin.tolist() == [[0, 2, 4]]


def test_centroid_is_the_mean_of_the_sources_on_every_axis():
    layout = layout_of("tiiiit")
    layout.position = torch.stack([layout.position, layout.position * 10, layout.position * 2])
    plan = ReductionPlan(torch.tensor([[[0, 2], [3, 3]]]), torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]))
    new = rewrite(layout, [Placed(slots_of(layout, (0, 0)), plan)], "centroid")
    # tokens 1 and 3, and token 4 by itself
    assert new.layout.position[:, 0].tolist() == [[0, 2, 4, 5], [0, 20, 40, 50], [0, 4, 8, 10]]


def test_side_tensors_go_along_and_padding_is_what_was_asked_for():
    layout = layout_of("tiiiitt", "tt")
    new = rewrite(layout, [Placed(slots_of(layout, (0, 0)), ReductionPlan.keep(torch.tensor([[1, 3]])))], "keep")
    labels = torch.arange(14).view(2, 7)
    assert new.carry(labels, -100).tolist() == [[0, 2, 4, 5, 6], [7, 8, -100, -100, -100]]
    filled = new.fill(labels[..., None].float(), torch.tensor([[50.0], [51.0]]))
    assert filled[..., 0].tolist() == [[0, 50, 51, 5, 6], [7, 8, 0, 0, 0]]
