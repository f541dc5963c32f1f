"""`gnomon methods`: the matrix of the attention operators."""

import json

import pytest

from gnomon.cli.main import main
from gnomon.cli.methods import FAMILIES, files


def test_patterns_are_a_row_for_every_operator(capsys):
    assert main(["methods", "--patterns"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    found = {row[0]: dict(zip(head, row)) for row in rows[1:]}
    families = [name for name, folder in FAMILIES.items() if folder.startswith("kernels/")]
    assert found.keys() == {f"{family}/{file.stem}" for family in families for file in files(family)}
    # softmax takes everything, agents stand on a grid, and a delta rule reads its tokens in order
    every = ("NS", "CS", "NC", "CC")
    assert [found["softmax/exact"][p] for p in every] == ["yes"] * 4
    assert [found["linear/agent"][p] for p in every] == ["yes", "-", "-", "-"]
    assert found["linear/agent"]["grid"] == "yes"
    assert [found["linear/deltanet"][p] for p in every] == ["-", "yes", "-", "-"]
    assert all(f"{short}: " in lines[-1] for short in every) and "CC: causal cross" in lines[-1]


def test_patterns_of_one_family_for_machines(capsys):
    assert main(["methods", "sparse", "--patterns", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {file.stem for file in files("sparse")}
    assert rows["power"]["patterns"] == ["CC", "CS"] and rows["sla"]["mask"] == "none"


def test_patterns_of_what_has_none_is_a_mistake(capsys):
    assert main(["methods", "connectors", "--patterns"]) == 2
    printed = capsys.readouterr()
    assert "'connectors', which has no attention operators; use softmax, linear, sparse" in printed.err
    assert printed.err.count("\n") == 1 and not printed.out


def test_help_says_what_the_patterns_are(capsys):
    with pytest.raises(SystemExit):
        main(["methods", "--help"])
    assert "--patterns" in capsys.readouterr().out


def test_what_has_no_paper_says_where_it_comes_from(capsys):
    assert main(["methods", "geometry"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[1]: lines[i + 1].split()[0] for i, line in enumerate(lines) if line.startswith("geometry")}
    assert told["VGGT:"] == "paper" and told["Known:"] == "origin"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_that_is_offered_has_methods(family):
    assert files(family)
