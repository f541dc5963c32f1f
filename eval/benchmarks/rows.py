"""Rows: a user's own questions, from a LLaVA JSON or JSONL file.

Origin:  this project
Rule:    the last answer of a row is the right one: a number above 0 by mean relative accuracy (VSI-Bench,
         arXiv:2412.14171), any other number and a letter exactly, words whole and alone; mean per task, unweighted mean
         of tasks
Where:   files with "task" in their rows have a row of the table for each; the images of a row may be views of one scene
Differs: our parsers, which never guess, read the answer, so a published benchmark's own scorer may say otherwise
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from gnomon.data.check import check as check_sample
from gnomon.data.sample import IMAGE_MARK, Sample
from gnomon.data.sources.jsonl import LlavaJson
from gnomon.eval.answer import lmms_number, tagged
from gnomon.eval.benchmark import Benchmark, Item, Score
from gnomon.eval.names import check
from gnomon.eval.record import digest
from gnomon.eval.scorers import scenes as scorers

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_LETTER = re.compile(r"[A-Z]")
_SCORINGS = {
    "auto": "strict scoring, numbers by mean relative accuracy",
    "words": "strict scoring, words whole and alone",
    "choice": "strict scoring of letters",
    "number": "numbers by mean relative accuracy",
}


class Rows(Benchmark):
    """Questions of a file in its order; a row is known by its place.

    rows     the file
    images   folder that the rows' image names are relative to; the file's own by default
    scenes   each row's images are the views of one scene, see `LlavaJson`
    scoring  of all rows: `words`, `choice` (a letter) or `number`; `auto`: what each row's answer looks like
    tasks    which of those that the rows name; all by default
    """

    name, overall = "rows", "rows"

    def __init__(
        self,
        *,
        rows: str | None = None,
        images: str | None = None,
        scenes: bool = False,
        scoring: Literal["auto", "words", "choice", "number"] = "auto",
        tasks: list[str] | None = None,
    ) -> None:
        if rows is None:
            raise ValueError("rows: no file was given; name one with --rows")
        check("scoring", scoring, list(_SCORINGS))
        self._path, self._scoring = Path(rows), scoring
        self._source = LlavaJson(rows, Path(rows).parent if images is None else images, scenes=scenes)
        # all rows are read now, so that one that cannot be asked or scored is told before any work
        found = [self._task(sample) for sample in self._source]
        for task in tasks or ():
            check("task", task, sorted(set(found)))
        self._tasks = {index: task for index, task in enumerate(found) if tasks is None or task in tasks}
        kind = "rows, their images views of one scene," if scenes else "rows"
        self.protocol = f"{len(self._tasks)} {kind} of {self._path.name}; greedy decoding; {_SCORINGS[scoring]}"

    def settings(self) -> dict[str, Any]:
        """The bytes of the file and of its images are part of them: another picture is another question."""
        pictures: dict[str, str] = {}
        for index in self._tasks:
            sample = self._source[index]
            for path in sample.images if sample.geometry is None else sample.geometry.views:
                if str(path) in pictures:
                    continue
                if not path.is_file():
                    raise ValueError(
                        f"{sample.meta['where']}: image {path} is not there; bring it, or correct the name"
                    )
                pictures[str(path)] = digest(path.read_bytes())
        return {**self.spec(), "rows_sha256": digest(self._path.read_bytes()), "images_sha256": digest(pictures)}

    def count(self, limit: int | None = None) -> int:
        counts = Counter(self._tasks.values()).values()
        return sum(count if limit is None else min(count, limit) for count in counts)

    def examples(self, limit: int | None = None) -> Iterator[Sample]:
        seen: Counter[str] = Counter()
        for index, task in self._tasks.items():
            seen[task] += 1
            if limit is None or seen[task] <= limit:
                yield self._sample(index)

    def _sample(self, index: int) -> Sample:
        return replace(self._source[index], id=str(index))

    def sample(self, item: Item) -> Sample:
        return self._sample(int(item.id))

    def _task(self, sample: Sample) -> str:
        """The task of a row that can be asked and scored."""
        check_sample(sample, train=True)
        where, last = sample.meta["where"], sample.turns[-1]
        if last.role != "assistant" or not last.text.strip():
            raise ValueError(f"{where}: has no answer to its last question; add it as the last turn")
        rule, answer = self._rule(sample), last.text.strip()
        if (rule == "number" and not _NUMBER.fullmatch(answer)) or (rule == "choice" and not _LETTER.fullmatch(answer)):
            wanted = {"number": "number", "choice": "letter"}[rule]
            raise ValueError(f"{where}: the answer {answer!r:.40} is no {wanted}; correct it, or use scoring auto")
        return sample.meta.get("task", self._path.stem)

    def _rule(self, sample: Sample) -> str:
        if self._scoring != "auto":
            return self._scoring
        answer = sample.turns[-1].text.strip()
        return "number" if _NUMBER.fullmatch(answer) else "choice" if _LETTER.fullmatch(answer) else "words"

    def item(self, sample: Sample) -> Item:
        rule, answer = self._rule(sample), sample.turns[-1].text.strip()
        question = [turn.text for turn in sample.turns if turn.role == "user"][-1]
        return Item(
            id=sample.id,
            family=self.overall,
            task=f"rows/{sample.meta.get('task', self._path.stem)}",
            level=1,
            question=question.replace(IMAGE_MARK, "").strip(),
            reference=float(answer) if rule == "number" else answer,
            target=answer,
            meta={"rule": rule},
        )

    def score(self, raw: str, item: Item) -> Score:
        if item.meta["rule"] == "number":
            return _number(raw, item.reference)
        if item.meta["rule"] == "choice":
            return scorers.choice(raw, reference=item.reference, choices=[""] * 26)
        return scorers.word(raw, reference=item.reference)


def _number(raw: str, reference: float) -> Score:
    if reference > 0:
        return scorers.number(raw, reference=reference)
    # no error is relative to nothing
    found = lmms_number(tagged(raw))
    return Score(float(found == reference), None if found is None else f"{found:g}")
