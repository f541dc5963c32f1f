"""Does a language model use geometry tokens, and how much does each fusion make of them?

A small model first learns to name what is where in a picture, and to compare places in it. From there it is taught
distances and questions about space, which no single picture answers: once for each condition below and each seed, with
the same questions in the same order. Scores are those of `gnomon evaluate` on the test split; differences are paired by
item.

    python bench/fusion_proof.py [--seeds 0 1 2] [--encoder runs/plane_sweep/encoder] [--only add GeoSR] [--steps 1000]
                                 [--jobs 2] [--work runs/fusion_proof] [--out bench/results/fusion_proof]

Runs that are finished are kept in --work, so a repeated command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from io import BytesIO
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_diagrams import processor as device
from fusion_conditions import CONDITIONS, WIDTH, Condition
from fusion_encoder import measured, opened
from fusion_stock import GRID, SIZE, VIEWS, Remembered, Stock, Text
from fusion_table import markdown, picture
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerFast

from gnomon.data.collate import collate
from gnomon.data.example import Example
from gnomon.data.processor import Processor
from gnomon.data.sample import Turn
from gnomon.data.template import template
from gnomon.eval.benchmarks.scenes import Scenes
from gnomon.eval.exchange import donors
from gnomon.eval.record import write_bytes, write_json
from gnomon.eval.runner import Variant, answerer
from gnomon.vlm.connectors.coord_mlp import CoordMLP
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import IGNORE, Batch, Views
from gnomon.vlm.model import VLM, Seen
from gnomon.vlm.survey import Survey, together

ENCODER = "configs:geometry/plane_sweep"
TASKS = ["nearer", "depth_order", "closest", "larger", "distance"]
ITEMS, TEST_SEED = 12_000, 1
BATCH, RATE = 32, 2e-3
# steps: naming what is where, and comparing places in the picture
FIRST = WHERE, ORDER = 1500, 3000
VIT = {"img_size": SIZE[0], "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 4}
CHAT = template("llava").render([Turn("user", " "), Turn("assistant", " ")])[:1]


def tokenizer(texts: Sequence[str], names: Iterable[str], folder: Path) -> Path:
    """Names of objects and other words with the space before them, single figures and marks; whatever stands in these
    texts. A name in one piece is found in a picture, and repeated in an answer, in one step.
    """
    named = "|".join(map(re.escape, sorted(names)))
    split = pre_tokenizers.Split(Regex(rf" ?(?:{named})| ?[A-Za-z]+|\s|."), "isolated")
    words = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer, made.decoder = split, decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def model(words: Path, seed: int) -> VLM:
    """Two layers of ViT on the geometry encoder's cells, and three of Qwen3: normed queries and keys learn faster."""
    torch.manual_seed(seed)
    config = {
        "model_type": "qwen3",
        "vocab_size": 256,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": WIDTH // 4,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    return VLM(
        Timm("vit_tiny_patch16_224", args=VIT),
        CoordMLP(octaves=4),
        CausalLM(config=config, tokenizer=str(words)),
        image_size=SIZE,
        template="llava",
    )


def processing(vlm: VLM) -> Processor:
    return Processor(vlm.tokenizer, vlm.template, vlm.image, views=vlm.views)


def train(vlm: VLM, label: str, steps: int, seed: int, loss: Callable[[list[int]], Tensor], count: int) -> float:
    """Muon for the blocks' matrices and AdamW for the rest; seconds taken. The order of items is the seed's alone."""
    order = (
        np.random.default_rng(seed).permuted(np.tile(np.arange(count), (-(-steps * BATCH // count), 1)), axis=1).ravel()
    )
    taught = {name: p for name, p in vlm.named_parameters() if p.requires_grad}
    matrices = [p for name, p in taught.items() if p.dim() == 2 and ("layers" in name or "blocks" in name)]
    others = [p for p in taught.values() if all(p is not matrix for matrix in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98)),
    ]
    schedules = [LambdaLR(one, lambda s: min((s + 1) / 50, (steps - s) / steps * 1.5, 1)) for one in optimizers]
    torch.manual_seed(seed)
    vlm.train()
    if vlm.geometry is not None:
        vlm.geometry.eval()
    begun = time.monotonic()
    for step in range(steps):
        lost = loss(order[step * BATCH : (step + 1) * BATCH].tolist())
        vlm.zero_grad()
        lost.backward()
        nn.utils.clip_grad_norm_(list(taught.values()), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        if step % 100 == 99:
            print(f"  {label}: step {step + 1}/{steps}  loss {lost.item():.3f}", flush=True)
    return time.monotonic() - begun


def _loss(vlm: VLM, batch: Batch, seen: list[Seen] | None) -> Tensor:
    """As the model's own, from what the encoders saw already."""
    read = vlm.read(batch, seen=seen)
    following = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
    at = following != IGNORE
    return F.cross_entropy(vlm.lm.head(read.hidden[at]).float(), following[at]) + read.loss


def first_lesson(stock: Stock, words: Path) -> tuple[dict[str, Tensor], float]:
    """The model that finds and compares objects in pictures, and its loss on some of them."""
    vlm = model(words, 0)
    processor, generator = processing(vlm), np.random.default_rng(0)

    def loss(items: list[int], say: Callable[[Text, np.random.Generator], tuple[str, str]], times: int) -> Tensor:
        told = [stock.sample(item, [say(stock.texts[item], generator) for _ in range(times)]) for item in items]
        examples = [processor.example(sample, train=True) for sample in told]
        return _loss(vlm, collate(examples, pad_id=processor.pad_id), None)

    train(vlm, "where", WHERE, 0, partial(loss, say=Text.places, times=1), stock.count)
    train(vlm, "order", ORDER, 0, partial(loss, say=Text.places_or_order, times=2), stock.count)
    vlm.eval()
    with torch.no_grad():
        last = loss(list(range(128)), say=Text.places_or_order, times=2).item()
    return vlm.state_dict(), last


def seen_by(vlm: VLM, batch: Batch, told: Remembered | None, items: list[int]) -> list[Seen] | None:
    """What the model sees of a batch, with the geometry that its frozen encoder was found to say before."""
    if told is None:
        return None
    # the encoder is not to look again
    scenery, vlm.scenery = vlm.scenery, None
    seen = vlm.see(batch.pixels)[0]
    vlm.scenery = scenery
    output = told.output(items)
    where = {i: (0, i, 0) for i in range(len(items))}
    tokens = together(output.tokens, output.valid, vlm.fusion.frames)
    seen.survey = Survey([output], [tokens], [list(range(len(items)))], where)
    return [seen]


def second_lesson(name: str, seed: int, work: Path, encoder: str | None, count: int, steps: int) -> dict[str, Any]:
    """A condition's scores, item by item."""
    torch.set_num_threads(1)
    condition = CONDITIONS[name]
    stock = Stock(work / "stock", count=count, seed=0, tasks=TASKS, jobs=1)
    vlm = model(work / "words", seed)
    vlm.load_state_dict(torch.load(work / "first.pt", weights_only=True))
    geometry = opened(encoder) if condition.predicted else Known(patch=4)
    told, fusion = None, condition.make(SIZE[0] // GRID // geometry.patch)
    if fusion is not None:
        torch.manual_seed(seed)
        vlm.join(geometry, fusion)
        told = Remembered(work / "tokens.npy") if condition.predicted else None
    processor = processing(vlm)

    generator = np.random.default_rng(seed)

    def example(item: int) -> Example:
        # the distances of all objects behind it, which teach what geometry tokens say much faster
        text = stock.texts[item]
        made = processor.example(stock.sample(item, [text.asked, text.distances(generator)]), train=True)
        if fusion is not None:
            # of remembered geometry, that there is a scene is all that is asked
            made.views = stock.views(item) if told is None else Views.blank(*SIZE, "cpu")
        return darkened(made) if condition.blind else made

    def loss(items: list[int]) -> Tensor:
        examples = [example(item) for item in items]
        if condition.scene == "other":
            examples = [replace(own, views=other.views) for own, other in zip(examples, examples[1:] + examples[:1])]
        batch = collate(examples, pad_id=processor.pad_id)
        return _loss(vlm, batch, seen_by(vlm, batch, told, items))

    seconds = train(vlm, f"{name}, seed {seed}", steps, seed, loss, count)
    return {"condition": name, "seed": seed, "seconds": seconds, "scores": examined(vlm, processor, condition)}


def darkened(example: Example) -> Example:
    return replace(example, pixels=[torch.zeros_like(pixels) for pixels in example.pixels])


@torch.no_grad()
def examined(vlm: VLM, processor: Processor, condition: Condition, *, each: int = 200) -> dict[str, dict[str, float]]:
    """Scores by item, of the model as it is and, where it has geometry, with another scene's."""
    vlm.eval()
    benchmark = Scenes(tasks=TASKS, seed=TEST_SEED, size=SIZE, views=VIEWS, prompt="words")
    modes = ["own"] if condition.fusion is None else ["own", "other"]
    others = donors([benchmark], processor) if "other" in modes else ()
    answer = answerer(vlm, processor, [Variant(geometry=mode) for mode in modes], others)
    found: dict[str, dict[str, float]] = {mode: {} for mode in modes}
    samples = list(benchmark.examples(each))
    for start in range(0, len(samples), BATCH):
        group = samples[start : start + BATCH]
        examples = [processor.example(benchmark.prompt(sample), train=False) for sample in group]
        if condition.blind:
            examples = [darkened(example) for example in examples]
        for mode, given in zip(modes, answer(examples, 12)):
            for sample, one in zip(group, given):
                found[mode][sample.id] = benchmark.score(one.text, benchmark.item(sample)).value
    # a model that was taught with another scene's geometry is asked with it
    return {"own": found["other"]} if condition.scene == "other" else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--encoder",
        default=ENCODER,
        help="of conditions with predicted geometry: a directory of "
        "`gnomon fit-geometry`; by default the one that comes with the package",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(CONDITIONS), metavar="CONDITION", help="by default all")
    parser.add_argument("--items", type=int, default=ITEMS, help="training items")
    parser.add_argument("--steps", type=int, default=1000, help="of each condition, behind what all have in common")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/fusion_proof"), help="what is finished is kept here")
    parser.add_argument("--out", type=Path, help="directory for the JSON, the table and the picture")
    options = parser.parse_args()
    for sent in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sent, partial(stop, options.work))
    try:
        # hours before there is something to write
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        result = proof(options)
    except OSError as error:
        sys.exit(f"fusion_proof: {error.filename}: {error.strerror}; choose another place for --work or --out")
    except ValueError as error:
        sys.exit(f"fusion_proof: {error}")
    print(markdown(result))
    if options.out is not None:
        (options.out / "fusion_proof.json").write_text(json.dumps(result) + "\n")
        (options.out / "fusion_proof.md").write_text(markdown(result))
        picture(result, options.out / "fusion_proof.png")


def stop(work: Path, *_: Any) -> None:
    """At once: an interrupted pool would first wait for workers in the middle of their runs."""
    for worker in active_children():
        worker.kill()
    print(f"stopped; finished runs are kept in {work}, the same command goes on", file=sys.stderr)
    os._exit(130)


def proof(options: argparse.Namespace) -> dict[str, Any]:
    """All runs that are asked for, those that lack made anew."""
    work: Path = options.work
    if options.items < BATCH or options.jobs < 1 or options.steps < 1:
        given = f"{options.items} items, {options.jobs} jobs, {options.steps} steps"
        raise ValueError(f"{given}: give {BATCH} items, a batch, and one of the others at least")
    names = options.only or list(CONDITIONS)
    encoder = opened(options.encoder) if any(CONDITIONS[name].predicted for name in names) else None
    work.mkdir(parents=True, exist_ok=True)
    told = None if encoder is None else options.encoder
    _same(work / "settings.json", {"items": options.items, "steps": [*FIRST], "encoder": told})
    print("scenes", flush=True)
    stock = Stock(work / "stock", count=options.items, seed=0, tasks=TASKS, jobs=options.jobs)
    words = work / "words"
    if not (words / "tokenizer.json").is_file():
        generator = np.random.default_rng(0)
        lessons = [say(generator) for text in stock.texts for say in (text.places_or_order, text.distances)]
        objects = {name for text in stock.texts for name, *_ in text.where}
        tokenizer([*sum(lessons, ()), *(" ".join(text.asked) for text in stock.texts), *CHAT], objects, words)
    quality = None
    if encoder is not None:
        print("geometry", flush=True)
        stock.remember(encoder, work / "tokens.npy")
        quality = measured(encoder, tasks=TASKS, seed=TEST_SEED)
    deaf = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), signal.signal, deaf) as pool:
        pool.submit(_first, work, options.items).result()
        asked = (work, options.encoder, options.items, options.steps)
        waiting = [pool.submit(_second, name, seed, *asked) for name in names for seed in options.seeds]
        for done in as_completed(waiting):
            done.result()
    return {
        "device": device(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "items": options.items,
        "steps": [*FIRST, options.steps],
        "batch": BATCH,
        "seeds": options.seeds,
        "only": options.only,
        "encoder": quality,
        "encoder_name": None if encoder is None else type(encoder).__name__,
        "encoder_from": None if encoder is None or options.encoder == ENCODER else options.encoder,
        "runs": [
            json.loads(_file(work, options.steps, name, seed).read_text()) for name in names for seed in options.seeds
        ],
    }


def _same(file: Path, settings: dict[str, Any]) -> None:
    """A ValueError where the work so far was done with other settings."""
    try:
        kept = json.loads(file.read_text()) if file.is_file() else settings
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); choose another --work") from error
    for name, value in settings.items():
        # an encoder may come later, with conditions of its own
        if kept.get(name) != value and not (name == "encoder" and None in (kept.get(name), value)):
            raise ValueError(f"{file.parent} was made with {name} {kept.get(name)}, not {value}; choose another --work")
    if settings["encoder"] is not None or not file.is_file():
        write_json(file, settings)


def _first(work: Path, count: int) -> None:
    file = work / "first.pt"
    if not file.is_file():
        torch.set_num_threads(1)
        stock = Stock(work / "stock", count=count, seed=0, tasks=TASKS, jobs=1)
        state, last = first_lesson(stock, work / "words")
        print(f"first lesson: loss {last:.3f}", flush=True)
        held = BytesIO()
        torch.save(state, held)
        write_bytes(file, held.getvalue())


def _second(name: str, seed: int, work: Path, encoder: str | None, count: int, steps: int) -> None:
    file = _file(work, steps, name, seed)
    if not file.is_file():
        file.parent.mkdir(exist_ok=True)
        found = second_lesson(name, seed, work, encoder, count, steps)
        write_json(file, found)
        mean = np.mean(list(found["scores"]["own"].values()))
        print(f"{name}, seed {seed}: {mean:.1%} in {found['seconds']:.0f} s", flush=True)


def _file(work: Path, steps: int, name: str, seed: int) -> Path:
    return work / f"runs-{steps}" / f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{seed}.json"


if __name__ == "__main__":
    main()
