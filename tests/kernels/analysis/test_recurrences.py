"""Cascades of linear operators, computed statement by statement, are the operators; and their passes by hand."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from gnomon.kernels.analysis.passes import passes
from gnomon.kernels.mask import CAUSAL
from gnomon.kernels.members import members

CHUNKS, CHUNK, K, V = 3, 4, 5, 2
TOKENS = CHUNKS * CHUNK
# As written, and with running values. Whatever only adds to a memory needs one pass; a softmax first needs the largest
# score of all keys, which a running value mends
BY_HAND = {
    "based": (1, 1), "deltanet": (1, 1), "gated_deltanet": (1, 1), "gla": (1, 1), "hedgehog": (1, 1), "hgrn2": (1, 1),
    "kda": (1, 1), "lightning": (1, 1), "lightnet": (2, 1), "lolcats": (2, 1),
}  # fmt: skip
MEMBERS = {member.op.name: member for member in members()}
WHOLE = ("based", "hedgehog", "lightnet", "lolcats")
TERM = r"[A-Za-z]\w*(?:\[[^\]]*\])?"


class Einsums:
    """Runs a cascade; tensors have their ranks in the order of the text, without m1, which is walked along."""

    def __init__(self, sizes: dict[str, int]):
        self.sizes = sizes

    def run(self, cascade: str, given: dict[str, Tensor], chunks: int = 1, state: Tensor | None = None) -> list[Tensor]:
        lines = [line.strip() for line in cascade.splitlines() if line.strip()]
        outputs, found = [], {} if state is None else {"S": state}
        for chunk in range(chunks):
            streamed = {name for name in given if re.search(rf"\b{name}\[[^\]]*m1\b", cascade)}
            found |= {name: x[chunk] if name in streamed else x for name, x in given.items()}
            for line in lines:
                left, right = (side.strip() for side in line.split("=", 1))
                name, ranks = self.term(left)
                # forward substitution: each round settles one more place
                rounds = CHUNK if re.search(rf"\b{name}\[", right) and "m1+1" not in left else 1
                if rounds > 1:
                    found[name] = torch.zeros([self.sizes[r] for r in ranks], dtype=torch.float64)
                for _ in range(rounds):
                    found[name] = self.right(right, ranks, found)
            outputs.append(found["O"])
        return outputs

    @staticmethod
    def term(text: str) -> tuple[str, list[str]]:
        name, _, ranks = text.rstrip("]").partition("[")
        return name, [r for r in ranks.split(",") if r and not r.startswith("m1")]

    def right(self, text: str, ranks: list[str], found: dict[str, Tensor]) -> Tensor:
        function, inner = re.fullmatch(r"(exp|max|sum)\((.*)\)|(.*)", text).group(1, 2)
        sign, parts = 1.0, []
        tokens = re.findall(rf"{TERM}|[-+*/]", inner if function else text)
        for before, token in zip(["+", *tokens], tokens):
            if token in "+-*/":
                continue
            name, own = self.term(token)
            x = found[name]
            if before in "+-":
                sign = -1.0 if before == "-" else 1.0
                parts.append((sign, []))
            parts[-1][1].append((x.reciprocal() if before == "/" else x, own))
        if function == "max":
            ((_, [(x, own)]),) = parts
            return x.amax([own.index(r) for r in own if r not in ranks])
        whole = sum(sign * self.product(factors, ranks) for sign, factors in parts)
        return whole.exp() if function == "exp" else whole

    def product(self, factors: list[tuple[Tensor, list[str]]], ranks: list[str]) -> Tensor:
        letters = {rank: chr(97 + i) for i, rank in enumerate(self.sizes)}
        ones = [(torch.ones(self.sizes[r], dtype=torch.float64), [r]) for r in ranks]
        every = [*factors, *ones]
        inputs = ",".join("".join(letters[r] for r in own) for _, own in every)
        return torch.einsum(f"{inputs}->{''.join(letters[r] for r in ranks)}", *(x for x, _ in every))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def tokens(x: Tensor) -> Tensor:
    """(T,W) to the (B,T,H,W) of the operators."""
    return x[None, :, None]


def chunks(x: Tensor) -> Tensor:
    """(T,W) to chunks of (W,places), (T,) to chunks of (places)."""
    return x.unflatten(0, (CHUNKS, CHUNK)).mT if x.ndim == 2 else x.unflatten(0, (CHUNKS, CHUNK))


@pytest.mark.parametrize("name", BY_HAND)
def test_passes_counted_by_hand(name):
    cascade = MEMBERS[name].op.cascade
    assert (passes(cascade), passes(cascade, running=True)) == BY_HAND[name]


@pytest.mark.parametrize("name", [name for name in BY_HAND if name not in WHOLE])
def test_a_recurrence_is_its_operator(name):
    torch.manual_seed(0)
    q, k, v = draw(TOKENS, K), draw(TOKENS, K) / K**0.5, draw(TOKENS, V)
    one, each, strength = -draw(TOKENS).square(), -draw(TOKENS, K).square(), torch.rand(TOKENS, dtype=torch.float64)
    rate, beta = torch.tensor([0.3], dtype=torch.float64), strength[None, :, None]
    options = {
        "deltanet": {"beta": beta},
        "gated_deltanet": {"g": one[None, :, None], "beta": beta},
        "gla": {"g": tokens(each)},
        "hgrn2": {},
        "kda": {"g": tokens(each), "beta": beta},
        "lightning": {"decay": rate},
    }
    gates = {"gated_deltanet": one, "lightning": -rate.expand(TOKENS), "hgrn2": k.sigmoid().log()}.get(name, each)
    order = torch.ones(CHUNK, CHUNK, dtype=torch.float64)
    given = {"Q": chunks(q), "V": chunks(v), "H": chunks(strength), "G": chunks(gates)}
    given |= {"T": order.tril(), "U": order.tril(-1), "I": order[0, 0]}
    if name != "hgrn2":
        given["K"] = chunks(k)
    einsums = Einsums({"e": K, "f": V, "m0": CHUNK, "n0": CHUNK})
    found = einsums.run(MEMBERS[name].op.cascade, given, CHUNKS, torch.zeros(K, V, dtype=torch.float64))
    expected, _ = MEMBERS[name].function(*map(tokens, (q, k, v)), mask=CAUSAL, scale=1.0, **options[name])
    torch.testing.assert_close(torch.cat(found, 1).T, expected[0, :, 0])


@pytest.mark.parametrize("name", WHOLE)
def test_a_cascade_of_all_keys_is_its_operator(name):
    torch.manual_seed(0)
    q, k, v, factor, window = draw(TOKENS, K), draw(TOKENS, K), draw(TOKENS, V), draw(1), 3
    gap = torch.arange(TOKENS) - torch.arange(TOKENS)[:, None]
    near = torch.zeros(TOKENS, TOKENS, dtype=torch.float64).masked_fill((gap < 0) | (gap >= window), -torch.inf)
    given = {"Q": q.T, "K": k.T, "V": v.T, "KM": k.T, "I": torch.ones(TOKENS, dtype=torch.float64)}
    given |= {"H": torch.tensor(0.5, dtype=torch.float64), "D": torch.tensor([1.0, -1.0], dtype=torch.float64)}
    given |= {"FQ": torch.stack([q.softmax(1).T, (-q).softmax(1).T]), "MU": factor.sigmoid()[0]}
    given |= {"NEAR": near, "OLD": (gap >= window).double()}
    sizes = {"e": K, "g": K, "f": V, "h": 2, "m": TOKENS, "p": TOKENS}
    (found,) = Einsums(sizes).run(MEMBERS[name].op.cascade, given)
    options = {"factor": factor, "window": window, "mask": CAUSAL} if name == "lolcats" else {}
    expected, _ = MEMBERS[name].function(*map(tokens, (q, k, v)), scale=1.0, **options)
    torch.testing.assert_close(found.T, expected[0, :, 0])
