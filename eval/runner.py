"""Put a benchmark's questions to a model in batches, and keep every answer the moment it is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np
import torch

from gnomon.data.collate import collate
from gnomon.data.image import load
from gnomon.data.processor import Example, Processor
from gnomon.eval.benchmark import Benchmark, Item, Scored
from gnomon.eval.exchange import Mode, exchanged
from gnomon.eval.progress import Advance
from gnomon.eval.record import SCORES, Journal, Key, Record, digest, write_lines
from gnomon.vlm.generate import Generation, generate, now
from gnomon.vlm.layout import Views
from gnomon.vlm.model import VLM
from gnomon.vlm.reduction.base import Stage, TokenReducer

T = TypeVar("T")

AHEAD = 16
"""Batches' worth of questions that are looked at together, to put equally long ones into one batch."""

Answer = Callable[[Sequence[Example], int], list[list[Generation]]]
"""Examples and the most new tokens to a generation each, per variant; greedy: the same text at any batch size."""


@dataclass(frozen=True)
class Variant:
    """A way to run the model on the same items. geometry: of whose scene; see exchange.py."""

    reducers: Sequence[TokenReducer] = ()
    geometry: Mode = "own"


@dataclass(frozen=True)
class Question:
    """An item ready to be asked."""

    key: Key
    item: Item
    prompt: str
    images: list[str]
    example: Example


def answerer(
    model: VLM, processor: Processor, variants: Sequence[Variant] | None = None, others: Sequence[Views] = ()
) -> Answer:
    """Greedy answers of a model, on whatever device it is: one list per variant; by default the model as it is.

    Images are encoded once for all that act behind the encoder; each is charged with the encoder's seconds.
    others: scenes whose geometry is exchanged for an item's own.
    """
    device = next(model.parameters()).device
    variants = [Variant(list(model.reducers))] if variants is None else list(variants)
    own = [v.geometry != "own" or any(r.stage in (Stage.PIXEL, Stage.VIT_LAYER) for r in v.reducers) for v in variants]
    common = [r for v, alone in zip(variants, own) if not alone for r in v.reducers if not r.idle()]

    @torch.no_grad()
    def answer(examples: Sequence[Example], max_new_tokens: int) -> list[list[Generation]]:
        batch = collate(examples, pad_id=processor.pad_id, side="left").to(device)
        seen, seconds = None, 0.0
        if own.count(False) > 1 and batch.pixels:
            begun = now(device)
            seen = model.see(batch.pixels, common, batch.views)
            seconds = now(device) - begun
        found = []
        for variant, alone in zip(variants, own):
            model.reducers, given_batch = list(variant.reducers), batch
            if variant.geometry != "own":
                swapped = [exchanged(example, variant.geometry, others) for example in examples]
                given_batch = collate(swapped, pad_id=processor.pad_id, side="left").to(device)
            given = generate(
                model,
                given_batch,
                max_new_tokens=max_new_tokens,
                stop=processor.stop_ids,
                seen=None if alone else seen,
            )
            if seen is not None and not alone:
                given = [replace(one, seconds_prefill=one.seconds_prefill + seconds) for one in given]
            found.append(given)
        return found

    return answer


def decoding(max_new_tokens: int) -> dict[str, Any]:
    """What, besides the prompt, decides about an answer's text."""
    return {"method": "greedy", "max_new_tokens": max_new_tokens}


def run(
    benchmark: Benchmark,
    journals: Sequence[Journal],
    processor: Processor,
    answer: Answer,
    *,
    batch_size: int,
    limit: int | None = None,
    max_new_tokens: int | None = None,
    advance: Advance = lambda count, *, fresh=True: None,
) -> None:
    """Answer what a journal lacks: `limit` items per task, with `max_new_tokens` in place of each item's own.

    There is a journal per variant of `answer`, in its order.
    """
    waiting = pending(benchmark, journals, processor, limit=limit, max_new_tokens=max_new_tokens, advance=advance)
    for ahead in _chunks(waiting, batch_size * AHEAD):
        ahead.sort(key=lambda question: (question.item.max_new_tokens, len(question.example)))
        for most, group in groupby(ahead, key=lambda question: question.item.max_new_tokens):
            for batch in _chunks(group, batch_size):
                answers = answer([question.example for question in batch], most)
                for journal, given in zip(journals, answers):
                    new = records(benchmark.name, batch, given)
                    journal.append(record for record in new if record.key not in journal.records)
                advance(len(batch))


def pending(
    benchmark: Benchmark,
    journals: Sequence[Journal],
    processor: Processor,
    *,
    limit: int | None,
    max_new_tokens: int | None,
    advance: Advance,
) -> Iterator[Question]:
    """Questions that a journal has no answer to, made one by one as they are asked for."""
    for sample in benchmark.examples(limit):
        item, bare = benchmark.item(sample), benchmark.prompt(sample)
        if max_new_tokens is not None:
            item = replace(item, max_new_tokens=max_new_tokens)
        prompt = processor.prompt(bare)
        key = Key(item.task, item.id, digest(prompt), digest(decoding(item.max_new_tokens)))
        if all(key in journal.records for journal in journals):
            advance(1, fresh=False)
            continue
        pixels = tuple(load(image, name=f"image of {item.id}") for image in bare.images)
        bare = replace(bare, images=pixels)
        yield Question(key, item, prompt, [picture(p) for p in pixels], processor.example(bare, train=False))


def picture(pixels: Any) -> str:
    """Hash of decoded pixels and their shape; the same for every file format that holds them."""
    return digest(repr(pixels.shape).encode() + pixels.tobytes())


def records(benchmark: str, batch: Sequence[Question], answers: Sequence[Generation]) -> list[Record]:
    """A line per answer. The batch's seconds are shared evenly: its rows ran together until the last one ended."""
    size = len(batch)
    decode = max(given.seconds_decode for given in answers) / size
    return [
        Record(
            task=question.key.task,
            sample=question.key.sample,
            prompt_sha256=question.key.prompt,
            decode_sha256=question.key.decode,
            benchmark=benchmark,
            item=asdict(question.item),
            prompt=question.prompt,
            image_sha256=question.images,
            raw=given.text,
            finish=given.finish,
            prompt_tokens=given.prompt_tokens,
            visual_tokens=int((question.example.image >= 0).sum()),
            generated_tokens=len(given.ids),
            seconds_prefill=given.seconds_prefill / size,
            seconds_decode=decode,
            batch_size=size,
            visual_kept=None if given.kept is None else len(given.kept),
            kept=None if given.kept is None else kept_text(question.example, given.kept),
        )
        for question, given in zip(batch, answers)
    ]


def kept_text(example: Example, cells: Sequence[tuple[int, int, int]]) -> list[str]:
    """Per image `HxW:` and, in raster order, one hexadecimal digit for four cells: those that are kept are ones."""
    texts = []
    for image in range(int(example.image.max()) + 1):
        h, w = (example.cell[example.image == image].amax(0) + 1).tolist()
        bits = sum(1 << (h * w - 1 - (r * w + c)) for i, r, c in cells if i == image)
        texts.append(f"{h}x{w}:{bits:0{math.ceil(h * w / 4)}x}")
    return texts


def kept_cells(text: str) -> np.ndarray:
    """(h,w) bool from what `kept_text` wrote."""
    size, _, digits = text.partition(":")
    h, w = map(int, size.split("x"))
    return np.array([bit == "1" for bit in f"{int(digits, 16):0{h * w}b}"]).reshape(h, w)


def score(journal: Journal, benchmark: Benchmark) -> list[Scored]:
    """Scores of all that this benchmark was answered, from the raw texts, in an order of their own."""
    scored = []
    for found in sorted((r for r in journal.records.values() if r.benchmark == benchmark.name), key=lambda r: r.key):
        item = Item(**found.item)
        # questions about one picture are not independent; without a picture an item stands alone
        group = tuple(found.image_sha256) or found.sample
        scored.append(Scored(item, benchmark.score(found.raw, item), group))
    return scored


def write_scores(journal: Journal, scored: Sequence[Scored]) -> None:
    rows = [
        {
            "task": s.item.task,
            "sample": s.item.id,
            "level": s.item.level,
            "value": s.score.value,
            "parsed": s.score.parsed,
            "detail": s.score.detail,
        }
        for s in scored
    ]
    write_lines(journal.folder / SCORES, rows)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
