"""How often an algorithm must read its keys: passes over a rank of a cascade of einsums.

Paper:   FuseMax: Leveraging Extended Einsums to Optimize Attention Accelerator Design. arXiv:2406.10491

A cascade is one statement a line, `SN[m,p] = exp(QK[m,p] - GM[p])`; ranks that the left side lacks are reduced. A
statement that runs over the keys (rank m, or its parts m0 and m1) and needs what was reduced over the same keys before
begins a new pass. `running=True` counts as if such reductions were kept as running values, corrected later: allowed
where the value only scales what is summed (a shift inside exp, a factor, a divisor).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    name: str
    ranks: frozenset[str]

    def over(self, rank: str) -> bool:
        """Whether it has the rank, or a part of it."""
        return any(re.fullmatch(rf"{rank}\d*", r) for r in self.ranks)


@dataclass(frozen=True)
class Statement:
    """`result = function(terms[0] operators[0] terms[1] ...)`."""

    result: Term
    function: str
    terms: tuple[Term, ...]
    operators: str


TERM = re.compile(r"([A-Za-z]\w*)(?:\[([^\]]*)\])?")
STATEMENT = re.compile(r"\s*(?P<left>[^=]+?)\s*=\s*(?:(?P<function>exp|max|sum)\((?P<inner>.*)\)|(?P<plain>.*))\s*")


def parse(cascade: str) -> list[Statement]:
    statements = []
    for line in filter(str.strip, cascade.splitlines()):
        found = STATEMENT.fullmatch(line)
        if found is None:
            raise ValueError(f"passes: {line.strip()!r} is no statement; write 'O[f,p] = A[m,p] * V[f,m]'")
        right = found["inner"] or found["plain"] or ""
        terms = tuple(_term(text) for text in TERM.finditer(right))
        # a comma is what stands between the arguments of max
        operators = re.sub(r"\s", "", TERM.sub("", right))
        left = TERM.fullmatch(found["left"])
        if left is None or len(operators) != len(terms) - 1 or not set(operators) <= set("+-*/,"):
            raise ValueError(f"passes: cannot read {line.strip()!r}; use names, ranks, + - * / and exp, max, sum")
        statements.append(Statement(_term(left), found["function"] or "", terms, operators))
    if not statements:
        raise ValueError("passes: the cascade has no statement; write 'O[f,p] = A[m,p] * V[f,m]'")
    return statements


def passes(cascade: str, *, rank: str = "m", running: bool = False) -> int:
    """How many times the elements along `rank` must be read."""
    statements = parse(cascade)
    made = {s.result.name: s for s in statements}
    # per tensor: the pass in which it is complete, and the inputs along the rank that it comes from
    when: dict[str, int] = {}
    sources: dict[str, frozenset[str]] = {}
    for statement in statements:
        for term in statement.terms:
            if term.name not in made:
                when[term.name] = int(term.over(rank))
                sources[term.name] = frozenset({term.name}) if term.over(rank) else frozenset()
        streamed = frozenset().union(*(sources.get(t.name, frozenset()) for t in statement.terms if t.over(rank)))
        last = 0
        for term in statement.terms:
            # a running value refers to itself, and to statements further down
            done = when.get(term.name, 0)
            if not term.over(rank) and sources.get(term.name, frozenset()) & streamed:
                done += 0 if running and _correctable(statement, term, statements, rank) else 1
            last = max(last, done)
        name = statement.result.name
        when[name] = max(when.get(name, 0), last)
        sources[name] = frozenset().union(*(sources.get(t.name, frozenset()) for t in statement.terms))
    return max(when.values())


def _correctable(statement: Statement, value: Term, statements: list[Statement], rank: str) -> bool:
    """Whether a wrong `value` only scales the result by what can still be made good after the sum."""
    place = statement.terms.index(value)
    shifts = statement.function == "exp" and statement.operators == "-" and place == 1
    scales = statement.function in ("", "sum") and set(statement.operators) <= set("*/")
    return (shifts or scales) and _summed(statement.result, value.ranks, statements, rank)


def _summed(term: Term, wrong: frozenset[str], statements: list[Statement], rank: str) -> bool:
    """Whether all that comes of a tensor along the rank is sums in which it is a factor.

    wrong  the ranks of the value: what was added up over them holds as many wrong factors, and none can be taken out
    """
    if not term.over(rank):
        return True
    if not wrong <= term.ranks:
        return False
    readers = [s for s in statements if term.name in {t.name for t in s.terms}]
    linear = all(s.function in ("", "sum") and set(s.operators) <= set("*/") for s in readers)
    return bool(readers) and linear and all(_summed(s.result, wrong, statements, rank) for s in readers)


def _term(found: re.Match[str]) -> Term:
    # m1+1 is the next place along m1
    ranks = (r.split("+")[0].strip() for r in (found[2] or "").split(","))
    return Term(found[1], frozenset(r for r in ranks if r))
