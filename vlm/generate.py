"""Text from a model: greedy, sampling and beam search through one loop.

The loop feeds tokens and reads logits; a search says which rows go on and with which token. Rows that are finished
leave the batch, beams come and go: both are a choice of rows of the decoder's state.

Shapes: R rows that are still running, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import nlargest
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gnomon.vlm.layout import Batch, TokenLayout
from gnomon.vlm.model import VLM, Read, Seen

_COLDEST = 1e-6
"""Below it the likeliest token has all the mass, and logits divided by the temperature may overflow."""


@dataclass
class Generation:
    """What one row of a batch was continued with.

    ids             all generated tokens, the stop token included
    finish          "stop": a stop token came; "length": it did not
    seconds_prefill of the whole batch; seconds_decode until this row's last token
    kept            image, row and column of the visual tokens at the last layer; None where none left
    """

    ids: list[int]
    text: str
    finish: str
    prompt_tokens: int
    seconds_prefill: float
    seconds_decode: float
    kept: list[tuple[int, int, int]] | None = None


class Ending(NamedTuple):
    """A row's tokens, why they end, and after how many steps the search knew."""

    ids: list[int]
    finish: str
    steps: int


class Search(Protocol):
    """Chooses tokens. `endings` holds every row of the batch that is done."""

    endings: dict[int, Ending]

    def step(self, logits: Tensor) -> tuple[list[int], list[int]]:
        """From (R,V) logits, the rows that go on, in their new order, and the token that each goes on with."""


@torch.no_grad()
def generate(
    model: VLM,
    batch: Batch,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int = 1,
    seed: int | None = None,
    stop: tuple[int, ...] | None = None,
    on_token: Callable[[int, int], None] | None = None,
    seen: list[Seen] | None = None,
) -> list[Generation]:
    """Continue every row of a left-padded batch.

    temperature  0 takes the likeliest token; top_k and top_p cut the distribution that is sampled from otherwise
    beams        more than 1: beam search, scores divided by length
    seed         with a sample's id it fixes what is drawn for the sample, whatever else is in the batch
    stop         token ids that end a row; by default the tokenizer's end of sequence
    on_token     called with (row, token id) as tokens are chosen; not for beams
    seen         what `model.see` made of the batch's images, to use it more than once
    """
    _check(batch, max_new_tokens, temperature, top_k, top_p, beams, on_token)
    tokenizer = model.tokenizer
    if stop is None:
        stop = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    rows = batch.ids.shape[0]
    if beams > 1:
        search: Search = _Beams(rows, beams, frozenset(stop), max_new_tokens)
    else:
        draw = None if temperature < _COLDEST else _Draw(_seeds(batch, seed), temperature, top_k, top_p)
        search = _Rows(rows, draw, frozenset(stop), max_new_tokens, on_token)
    with _evaluating(model):
        read, prefill, steps = _run(model, batch, search, seen)
    kept = _kept(read.after) if read.rewrites else [None] * rows
    generations = []
    for row, prompt in enumerate(batch.layout.visible.sum(1).tolist()):
        ids, finish, taken = search.endings[row]
        words = ids[:-1] if finish == "stop" else ids
        text = tokenizer.decode(words, skip_special_tokens=True)
        generations.append(Generation(ids, text, finish, prompt, prefill, steps[taken - 1], kept[row]))
    return generations


def _run(model: VLM, batch: Batch, search: Search, seen: list[Seen] | None) -> tuple[Read, float, list[float]]:
    """The loop. Returns what the prefill made, its seconds, and those from there to the end of each step."""
    lm, device = model.lm, batch.ids.device
    start = now(device)
    state = lm.new_state()
    read = model.read(batch, state, seen)
    # later tokens count on from the first layer's positions; each layer knows how far its own are behind
    layout = read.before
    logits = lm.head(read.hidden[:, -1])
    prefilled, ends = now(device), []
    while True:
        rows, tokens = search.step(logits)
        ends.append(now(device) - prefilled)
        if not rows:
            return read, prefilled - start, ends
        chosen = torch.tensor(rows, device=device)
        if rows != list(range(logits.shape[0])):
            state.select(chosen)
        layout = _next(layout, chosen)
        embeds = lm.embed(torch.tensor(tokens, device=device)[:, None])
        logits = lm.head(lm(embeds, layout, state)[:, -1])


class _Rows:
    """One continuation per row: the likeliest token, or a drawn one."""

    def __init__(
        self,
        rows: int,
        draw: Callable[[Tensor, list[int]], Tensor] | None,
        stop: Collection[int],
        limit: int,
        on_token: Callable[[int, int], None] | None,
    ) -> None:
        self.draw, self.stop, self.limit, self.on_token = draw, stop, limit, on_token
        self.running = list(range(rows))
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.endings: dict[int, Ending] = {}

    def step(self, logits: Tensor) -> tuple[list[int], list[int]]:
        chosen = logits.argmax(-1) if self.draw is None else self.draw(logits, self.running)
        keep, tokens = [], []
        for place, (row, token) in enumerate(zip(self.running, chosen.tolist())):
            ids = self.ids[row]
            ids.append(token)
            if self.on_token is not None:
                self.on_token(row, token)
            if token in self.stop or len(ids) == self.limit:
                self.endings[row] = Ending(ids, "stop" if token in self.stop else "length", len(ids))
            else:
                keep.append(place)
                tokens.append(token)
        self.running = [self.running[place] for place in keep]
        return keep, tokens


class _Draw:
    """Sampling. Each row has its own stream of random numbers, one per token, so its company changes nothing."""

    def __init__(self, seeds: list[int], temperature: float, top_k: int | None, top_p: float | None) -> None:
        self.streams = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def __call__(self, logits: Tensor, rows: list[int]) -> Tensor:
        probs, order = distribution(logits, self.temperature, self.top_k, self.top_p)
        # drawn on the CPU and inverted through the cumulative sum: the same on every device
        luck = torch.stack([torch.rand(1, generator=self.streams[row]) for row in rows]).to(probs.device)
        mass = probs.cumsum(-1)
        place = torch.searchsorted(mass, luck * mass[:, -1:], right=True)
        # rounding must not lead past the last token that may be drawn
        place = place.clamp(max=(probs > 0).sum(-1, keepdim=True) - 1)
        return order.gather(1, place)[:, 0]


def distribution(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> tuple[Tensor, Tensor]:
    """(R,V) probabilities, likeliest first, and the tokens that they belong to."""
    scores, order = (logits.float() / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        scores[:, top_k:] = -torch.inf
    probs = scores.softmax(-1)
    if top_p is not None:
        # a token stays while those before it have not reached the mass; so the first always does
        before = probs.cumsum(-1) - probs
        probs = probs.masked_fill(before >= top_p, 0)
        probs = probs / probs.sum(-1, keepdim=True)
    return probs, order


class _Beams:
    """Beam search: per row the `beams` likeliest beginnings, and the best of what has ended, by score per token.

    A row is done when no running beam, at its present length, scores better than the worst of `beams` ended ones.
    """

    def __init__(self, rows: int, beams: int, stop: Collection[int], limit: int) -> None:
        self.beams, self.stop, self.limit = beams, stop, limit
        self.steps = 0
        self.running: dict[int, list[tuple[float, list[int]]]] = {row: [(0.0, [])] for row in range(rows)}
        self.ended: list[list[tuple[float, Ending]]] = [[] for _ in range(rows)]
        self.endings: dict[int, Ending] = {}

    def step(self, logits: Tensor) -> tuple[list[int], list[int]]:
        self.steps += 1
        vocabulary = logits.shape[-1]
        scores = torch.tensor([[score for score, _ in beams] for beams in self.running.values()], device=logits.device)
        total = scores[..., None] + logits.float().log_softmax(-1).view(*scores.shape, vocabulary)
        # so many that, with every beam ended in every way, enough are left to go on
        best, index = total.flatten(1).topk(self.beams * max(2, 1 + len(self.stop)))
        rows, tokens, width = [], [], scores.shape[1]
        for place, (row, found, at) in enumerate(zip(list(self.running), best.tolist(), index.tolist())):
            candidates = [(score, *divmod(i, vocabulary)) for score, i in zip(found, at)]
            going = self._advance(row, candidates)
            rows += [place * width + beam for beam, _ in going]
            tokens += [token for _, token in going]
        return rows, tokens

    def _advance(self, row: int, candidates: list[tuple[float, int, int]]) -> list[tuple[int, int]]:
        """Take (score, beam, token) candidates, best first; returns the (beam, token) that go on."""
        before = [ids for _, ids in self.running[row]]
        last = self.steps == self.limit
        for score, beam, token in candidates[: self.beams]:
            if last or token in self.stop:
                ending = Ending([*before[beam], token], "stop" if token in self.stop else "length", self.steps)
                self.ended[row].append((score / self.steps, ending))
        self.ended[row] = nlargest(self.beams, self.ended[row], key=lambda pair: pair[0])
        going = [candidate for candidate in candidates if candidate[2] not in self.stop][: self.beams]
        full = len(self.ended[row]) == self.beams
        if last or (full and going[0][0] / self.steps <= self.ended[row][-1][0]):
            self.endings[row] = self.ended[row][0][1]._replace(steps=self.steps)
            del self.running[row]
            return []
        self.running[row] = [(score, [*before[beam], token]) for score, beam, token in going]
        return [(beam, token) for _, beam, token in going]


def _next(layout: TokenLayout, rows: Tensor) -> TokenLayout:
    """One text token after each of these rows' last one."""
    document = None if layout.document is None else layout.document[rows, -1:]
    token = TokenLayout.text(len(rows), 1, device=rows.device)
    if layout.position.dim() == 2:
        return replace(token, position=layout.position[rows, -1:] + 1, document=document)
    # an image's last token need not have its largest row or column: text goes on behind all of them
    mine = layout.visible[rows]
    if document is not None:
        mine &= layout.document[rows] == document
    last = layout.position[:, rows].masked_fill(~mine, 0).amax((0, 2))
    return replace(token, position=(last + 1)[None, :, None].expand(3, -1, 1), document=document)


def _seeds(batch: Batch, seed: int | None) -> list[int]:
    """One seed per row, from the seed and the sample's id; without a seed, from torch's global generator."""
    if seed is None:
        seed = int(torch.randint(1 << 62, ()))
    names = batch.samples if len(batch.samples) == batch.ids.shape[0] else map(str, range(batch.ids.shape[0]))
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
    return [int.from_bytes(digest[:8], "big") >> 1 for digest in digests]


def _kept(layout: TokenLayout) -> list[list[tuple[int, int, int]]]:
    """Per row, image, row and column of what stands for a cell."""
    there = layout.is_image & (layout.cell[..., 0] >= 0)
    columns = torch.cat([layout.image[..., None], layout.cell], 2)
    return [[tuple(cell) for cell in columns[row][there[row]].tolist()] for row in range(len(there))]


@contextmanager
def _evaluating(model: VLM) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again: parts may be frozen in theirs."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _check(
    batch: Batch,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    beams: int,
    on_token: Callable[[int, int], None] | None,
) -> None:
    if not bool(batch.layout.visible[:, -1].all()):
        raise ValueError("generation wants rows that end with a real token; pad the batch on the left")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} is less than 1; ask for at least one token")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature} is negative or not finite; use 0 for greedy, more for sampling")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} is less than 1; keep at least one token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not in (0, 1]; give the probability mass to keep")
    if beams < 1:
        raise ValueError(f"beams {beams} is less than 1; use 1 for no beam search")
    if beams > 1 and (temperature > 0 or on_token is not None):
        raise ValueError(f"beams {beams} with sampling or on_token: a beam is known only at its end; use beams 1")
