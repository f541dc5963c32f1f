"""Processor: a sample to token ids, labels and image slots. The same object serves training, evaluation and export.

Every character is tokenised exactly once, in the pieces between images; labels follow from the tokens' offsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from gnomon.data import anyres, views
from gnomon.data.check import check, describe
from gnomon.data.errors import BadSample, TooLong
from gnomon.data.example import Example, Run, join
from gnomon.data.image import load, prepare
from gnomon.data.sample import IMAGE_MARK, Sample
from gnomon.data.template import Span, Template, template
from gnomon.vlm.layout import IGNORE, ImageSpec, ViewsSpec

Overlong = Literal["error", "truncate", "skip"]


@dataclass(frozen=True)
class Processor:
    """Tokenizer, chat template and image rule of one model.

    tokenizer  a fast Hugging Face tokenizer, or anything that is called like one and yields offsets
    template   name of a chat template, see template.py
    overlong   what becomes of samples above `max_length` tokens: "error", "skip" (left out of training without counting
               as bad), or "truncate" (cut at the end; an image that does not fit whole is cut with what follows it).
               A prompt is never cut.
    views      how the views of a sample's scene become pixels; None: the model takes none, and they are left aside
    """

    tokenizer: Any
    template: str
    image: ImageSpec
    max_length: int = 2048
    overlong: Overlong = "error"
    views: ViewsSpec | None = None

    def __post_init__(self) -> None:
        if self.overlong not in ("error", "truncate", "skip"):
            raise ValueError(f"overlong {self.overlong!r} is unknown; use error, truncate or skip")
        if not getattr(self.tokenizer, "is_fast", True):
            raise ValueError(f"{type(self.tokenizer).__name__} yields no character offsets; use the fast tokenizer")
        for token in self._template.tokens:
            pieces = len(self._encode(token)[0])
            if pieces != 1:
                raise ValueError(
                    f"template {self.template!r} needs {token!r} as one token, this tokenizer makes it {pieces}; "
                    "use the template that the language model was trained with"
                )

    @property
    def _template(self) -> Template:
        return template(self.template)

    @property
    def pad_id(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        return 0

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the template's end of turn and the tokenizer's end of text."""
        end, _ = self._encode(self._template.end)
        stops = set(end) if len(end) == 1 else set()
        if self.tokenizer.eos_token_id is not None:
            stops.add(self.tokenizer.eos_token_id)
        return tuple(sorted(stops))

    def prompt(self, sample: Sample) -> str:
        """The text that asks for the last answer, image marks included."""
        check(sample, train=False)
        turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
        return self._template.render(turns, add_generation_prompt=True)[0]

    def example(self, sample: Sample, *, train: bool) -> Example:
        """Tokens of the whole conversation, or (train=False) of what precedes its last answer."""
        if train:
            check(sample, train=True)
            text, spans = self._template.render(sample.turns)
        else:
            text, spans = self.prompt(sample), []
        example = self._assemble(sample, text, spans)
        if len(example) > self.max_length:
            if not train or self.overlong != "truncate":
                remedy = "raise it or set overlong to truncate or skip" if train else "ask less, or show fewer images"
                raise TooLong(
                    f"{describe(sample)} has {len(example)} tokens ({int((example.image >= 0).sum())} of images), "
                    f"max_length is {self.max_length}; {remedy}"
                )
            example = example.cut(self.max_length)
        if train and not bool((example.labels != IGNORE).any()):
            raise BadSample(f"{describe(sample)} has no token to train on within {self.max_length} tokens; drop it")
        return example

    def _encode(self, text: str) -> tuple[list[int], list[Span]]:
        encoding = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        return encoding["input_ids"], encoding["offset_mapping"]

    def _assemble(self, sample: Sample, text: str, spans: list[Span]) -> Example:
        # trained[c]: how many trained characters precede character c; a token is trained on when it holds any
        trained = np.zeros(len(text) + 1, dtype=np.int64)
        for first, last in spans:
            trained[first + 1 : last + 1] = 1
        trained = trained.cumsum()

        name, pixels, firsts, scene = describe(sample), [], [], None
        located = self.views is not None and sample.geometry is not None
        runs: list[Run] = []
        if self._template.bos and self.tokenizer.bos_token_id is not None:
            runs.append(Run.text(np.asarray([self.tokenizer.bos_token_id]), np.asarray([IGNORE])))
        for k, (ids, offsets) in enumerate(self._pieces(text)):
            if k:
                image = load(sample.images[k - 1], name=f"image {k - 1} of {name}")
                parts, run = self._picture(image, len(pixels))
                runs.append(run)
                firsts.append(len(pixels))
                pixels += parts
            if located and k == len(sample.images) and self.views.extra:
                runs.append(Run.geometry(self.views.extra))
            if len(ids):
                first, last = offsets.T
                runs.append(Run.text(ids, np.where(trained[last] > trained[first], ids, IGNORE)))
        if not runs:
            raise BadSample(f"{name} leaves nothing to read with template {self.template!r}; drop it")
        if located:
            scene = views.prepare(sample.geometry, self.views, images=firsts, name=name)
        return join(sample.id, runs, pixels, grid=self.image.positions == "grid", views=scene)

    def _pieces(self, text: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens (T,) of the text before, between and behind the image marks, and their characters (T,2) in it."""
        mark = self._encode(IMAGE_MARK)[0] if IMAGE_MARK in text else []
        if len(mark) == 1 and mark[0] != getattr(self.tokenizer, "unk_token_id", None):
            # such a tokenizer may begin a text otherwise than what follows a mark, and its model knows the latter
            ids, offsets = self._columns(text, 0)
            at = np.flatnonzero(ids == mark[0])
            if len(at) == text.count(IMAGE_MARK):
                bounds = zip([0, *at + 1], [*at, len(ids)])
                return [(ids[first:last], offsets[first:last]) for first, last in bounds]
        pieces, start = [], 0
        for piece in text.split(IMAGE_MARK):
            pieces.append(self._columns(piece, start))
            start += len(piece) + len(IMAGE_MARK)
        return pieces

    def _columns(self, text: str, start: int) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = (np.asarray(column, dtype=np.int64) for column in self._encode(text))
        return ids, offsets.reshape(-1, 2) + start

    def _picture(self, image: np.ndarray, number: int) -> tuple[list[Tensor], Run]:
        """The pixels of one image, whole or in crops, and its tokens; `number` is how many pixels came before."""
        if self.image.fit == "anyres":
            crop, cell = anyres.slots(*image.shape[:2], self.image)
            return anyres.crops(image, self.image), Run.cells(crop + number, cell)
        pixels = prepare(image, self.image)
        return [pixels], Run.slots(number, *self.image.grid(*pixels.shape[1:]))
