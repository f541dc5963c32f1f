"""What can be guessed about diagrams without looking at them properly?

Two classifiers per task, each trained on one stream of items and tested on another. The first sees the question's text
alone: it should stay at chance. The second sees global statistics of the image (ink, extent, bounding box) and the kind
of question and its options: what it reaches is the floor that a model must beat to have seen anything.

Chance is 1/k where the question offers k answers, otherwise the best constant answer to each kind of question.

    python bench/audit_diagrams.py [--items 10000] [--image-items 3000] [--out bench/results/audit_diagrams.json]
"""

from __future__ import annotations

import argparse
import json
import re
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from gnomon.data.sources.diagrams.question import Question
from gnomon.data.sources.diagrams.render import render
from gnomon.data.sources.diagrams.source import TASKS, Diagrams, Item

_BUCKETS = 4096


def target(task: str, question: Question) -> str:
    """What a guesser could know: the answer itself, or how many names it has, or roughly where it is."""
    if task in ("point_on_line", "point_on_circle"):
        return str(len(question.meta["points"]))
    if task in ("parallel", "perpendicular"):
        return str(len(question.meta["lines"]))
    if task == "longer":
        return str(question.meta["choices"].index(question.answer))
    if task == "grounding":
        x1, y1, x2, y2 = question.answer
        return f"{(x1 + x2) // 400} {(y1 + y2) // 400}"
    if task == "transcribe":
        return str(len(question.answer["lines"]))
    return str(question.answer)


def template(question: Question) -> str:
    """The kind of question: its first line without names."""
    return re.sub(r"\b[A-Z]{1,4}\b", "#", question.text.split("\n")[0])


def text_features(question: Question) -> list[int]:
    """Hashed words, word pairs, letter triples, and each option with its letter."""
    words = re.findall(r"\w+|[^\w\s]", question.text)
    grams = [*words, *(f"{a} {b}" for a, b in pairwise(words))]
    grams += [question.text[k : k + 3] for k in range(len(question.text) - 2)]
    options = question.meta.get("choices", [])
    grams += [f"{k}={option}" for k, option in enumerate(options)]
    grams += [f"{k}={a}|{j}={b}" for k, a in enumerate(options) for j, b in enumerate(options) if k < j]
    return sorted({zlib.crc32(gram.encode()) % _BUCKETS for gram in grams})


def image_features(image: np.ndarray) -> np.ndarray:
    """Ink, bounding box, centre and spread of all that differs from the paper."""
    ink = np.abs(image.astype(int) - image[0, 0].astype(int)).sum(axis=2) > 60
    height, width = ink.shape
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    y, x = np.nonzero(ink)
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]]) / np.array([width, height, width, height])
    wide, tall = box[2] - box[0], box[3] - box[1]
    quarters = [ink[: height // 2, : width // 2].mean(), ink[: height // 2, width // 2 :].mean()]
    return np.array([
        ink.mean(), *box, wide, tall, wide * tall, ink.mean() / (wide * tall + 0.01), wide / (tall + 0.05),
        x.mean() / width, y.mean() / height, x.std() / width, y.std() / height, *quarters,
    ])  # fmt: skip


def fit(inputs: tuple[torch.Tensor, ...], labels: torch.Tensor, model: torch.nn.Module, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-5)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(256):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(*(part[batch] for part in inputs)), labels[batch]).backward()
            optimizer.step()


class Bag(torch.nn.Module):
    """Logistic regression on sets of hashed features."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.table = torch.nn.EmbeddingBag(_BUCKETS + 1, classes, mode="sum", padding_idx=_BUCKETS)
        torch.nn.init.zeros_(self.table.weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.table(features)


def padded(rows: list[list[int]]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [_BUCKETS] * (longest - len(row)) for row in rows])


def classes_of(labels: list[str], most: int = 200) -> dict[str, int]:
    return {label: k for k, (label, _) in enumerate(Counter(labels).most_common(most))}


def accuracy(scores: torch.Tensor, labels: list[str], classes: dict[str, int]) -> float:
    names = list(classes)
    return float(np.mean([names[k] == label for k, label in zip(scores.argmax(1).tolist(), labels)]))


def chance(task: str, train: list[Question], test: list[Question]) -> float:
    options = train[0].meta.get("choices")
    if options:
        return 1 / len(options)
    best: dict[str, Counter] = {}
    for question in train:
        best.setdefault(template(question), Counter())[target(task, question)] += 1
    return float(np.mean([
        template(q) in best and best[template(q)].most_common(1)[0][0] == target(task, q) for q in test
    ]))  # fmt: skip


def text_only(task: str, train: list[Question], test: list[Question]) -> float:
    labels = [target(task, question) for question in train]
    classes = classes_of(labels)
    known = [(question, classes[label]) for question, label in zip(train, labels) if label in classes]
    model = Bag(len(classes))
    fit((padded([text_features(q) for q, _ in known]),), torch.tensor([k for _, k in known]), model, epochs=6)
    with torch.no_grad():
        scores = model(padded([text_features(question) for question in test]))
    return accuracy(scores, [target(task, question) for question in test], classes)


def image_only(
    task: str, train: list[Question], test: list[Question], pictures: tuple[np.ndarray, np.ndarray]
) -> float:
    """A small network on the statistics, the kind of question and the options by position."""
    labels = [target(task, question) for question in train]
    classes = classes_of(labels)
    kinds = sorted({template(question) for question in train})
    options = sorted({f"{k}={o}" for q in train for k, o in enumerate(q.meta.get("choices", [])) if task != "longer"})

    def inputs(questions: list[Question], statistics: np.ndarray) -> torch.Tensor:
        extra = np.zeros((len(questions), len(kinds) + len(options)))
        for row, question in enumerate(questions):
            said = {template(question), *(f"{k}={o}" for k, o in enumerate(question.meta.get("choices", [])))}
            extra[row] = [name in said for name in (*kinds, *options)]
        centred = (statistics - pictures[0].mean(0)) / (pictures[0].std(0) + 1e-6)
        return torch.tensor(np.hstack([centred, extra]), dtype=torch.float32)

    known = [k for k, label in enumerate(labels) if label in classes]
    x = inputs(train, pictures[0])
    model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 128), torch.nn.GELU(), torch.nn.Linear(128, len(classes)))
    fit((x[known],), torch.tensor([classes[labels[k]] for k in known]), model, epochs=20)
    with torch.no_grad():
        scores = model(inputs(test, pictures[1]))
    return accuracy(scores, [target(task, question) for question in test], classes)


def audit(task: str, items: int, image_items: int) -> dict[str, float]:
    torch.manual_seed(0)
    questions: dict[str, list[Question]] = {}
    pictures: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        source = Diagrams(count=items, seed=1, split=split, tasks=[task])
        drawn: list[Item] = [source.compose(k) for k in range(items)]
        questions[split] = [item.questions[0][1] for item in drawn]
        seen = drawn[:image_items]
        images = (render(item.figure, item.style, item.texts, source.size) for item in seen)
        pictures[split] = np.stack([image_features(image) for image in images])
    train, test = questions["train"], questions["test"]
    return {
        "chance": chance(task, train, test),
        "text": text_only(task, train, test),
        "image": image_only(task, train[:image_items], test[:image_items], (pictures["train"], pictures["test"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=10000, help="per task, to train and again to test on")
    parser.add_argument("--image-items", type=int, default=3000, help="as many of these with image statistics")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=Path("bench/results/audit_diagrams.json"))
    options = parser.parse_args()
    rows = {}
    print(f"{'task':16}{'chance':>8}{'text':>8}{'diff':>8}{'image statistics':>18}")
    for task in options.tasks:
        row = rows[task] = audit(task, options.items, min(options.items, options.image_items))
        difference = row["text"] - row["chance"]
        print(f"{task:16}{row['chance']:8.1%}{row['text']:8.1%}{difference:+8.1%}{row['image']:18.1%}", flush=True)
    mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in ("chance", "text", "image")}
    print(
        f"{'mean':16}{mean['chance']:8.1%}{mean['text']:8.1%}{mean['text'] - mean['chance']:+8.1%}{mean['image']:18.1%}"
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"items": options.items, "image_items": options.image_items, "tasks": rows, "mean": mean}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
