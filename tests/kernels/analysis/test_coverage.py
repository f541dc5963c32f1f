"""The matrix says what the operators do: every cell is tried."""

import pytest
import torch

from gnomon.kernels.analysis.coverage import coverage, markdown
from gnomon.kernels.example import Sizes
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.members import members
from gnomon.kernels.op import PATTERNS

MEMBERS = members()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.op.name)
def test_a_cell_is_yes_where_the_call_runs(member, pattern):
    grid = (3, 5) if member.op.grid else (15,)
    queries = 15 if pattern[1] == "S" else 6
    sizes = Sizes(torch.Generator().manual_seed(0), queries=queries, keys=15, grid=grid)
    example = member.op.example(sizes)
    q, k, v = (mine if own is None else own for own, mine in zip((example.q, example.k, example.v), sizes.qkv()))
    named = {**example.per_query, **example.per_key, **example.parameters, **example.options}
    mask = CAUSAL if pattern[0] == "C" else None
    (row,) = coverage([member])
    if pattern in row.patterns:
        o, _ = member.function(q, k, v, mask=mask, **named)
        assert o.shape[:2] == (2, queries)
    else:
        with pytest.raises(ValueError):
            member.function(q, k, v, mask=mask, **named)


def test_known_rows():
    rows = {row.name: row for row in coverage(MEMBERS)}
    assert rows["exact"].patterns == set(PATTERNS) and rows["exact"].mask == "any" and rows["exact"].state == "growing"
    assert rows["mala"].patterns == {"NS", "CS", "NC"} and rows["mala"].state == "fixed" and rows["mala"].packed
    assert rows["agent"].patterns == {"NS"} and rows["agent"].grid and not rows["agent"].packed
    assert rows["rala"].mask == "none" and rows["rala"].state == "none"


def test_markdown():
    rows = coverage(MEMBERS)
    lines = markdown(rows).splitlines()
    assert len(lines) == len(rows) + 2 and len({line.count("|") for line in lines}) == 1
    assert "| linear/rala | yes | - | yes | - | none | none | yes | - | reference, chunk, triton |" in lines
