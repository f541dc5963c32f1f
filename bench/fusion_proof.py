"""Does a language model use geometry tokens, and how much does each fusion make of them?

A small model first learns to name what is where in a picture, and to compare places in it. It is then taught distances
and questions about space, which no single picture answers: once for each condition below and each seed, with the same
questions in the same order. Scores are those of `gnomon evaluate` on the test split; differences are paired by item.

    python bench/fusion_proof.py [--encoder runs/tinygeo/encoder] [--seeds 0 1 2] [--only add GeoSR] [--jobs 2]
                                 [--work runs/fusion_proof] [--out bench/results/fusion_proof]

Runs that are finished are kept in --work, so a repeated command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_diagrams import processor as device
from fusion_stock import SIZE, VIEWS, Remembered, Stock, Text
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
from gnomon.data.sources.scenes.source import Scenes as Sources
from gnomon.data.template import template
from gnomon.data.views import prepare
from gnomon.eval.benchmarks.scenes import Scenes
from gnomon.eval.exchange import donors
from gnomon.eval.geometry.depth import depth_errors
from gnomon.eval.geometry.mean import Mean
from gnomon.eval.geometry.pose import PairErrors, pair_errors
from gnomon.eval.runner import Variant, answerer
from gnomon.vlm.connectors.coord_mlp import CoordMLP
from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.fusion.base import Fusion
from gnomon.vlm.fusion.geosr import GeoSR
from gnomon.vlm.geometry.base import GeometryInput
from gnomon.vlm.geometry.known import Known
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import IGNORE, Batch, Features, Views, ViewsSpec
from gnomon.vlm.model import VLM, Seen
from gnomon.vlm.part import build
from gnomon.vlm.survey import Survey, together

TASKS = ["nearer", "depth_order", "closest", "larger", "distance"]
ITEMS, TEST_SEED = 12_000, 1
BATCH, RATE = 32, 2e-3
# steps: naming what is where, comparing places in the picture, and what the picture alone does not say
WHERE, ORDER, SPACE = 1500, 700, 1000
WIDTH = 64
VIT = {"img_size": SIZE[0], "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 4}
CHAT = template("llava").render([Turn("user", " "), Turn("assistant", " ")])[:1]
FUSIONS = "gnomon.vlm.fusion."
LEARNED = {"add": "add.Add", "masking alone": "MaskedAdd", "gate alone": "gated.Gated", "GeoSR": "geosr.GeoSR"}


class MaskedAdd(GeoSR):
    """GeoSR's masking with plain addition in place of its gate: one of its two parts alone."""

    def mix(self, v: Tensor, g: Tensor, parts: dict[str, Features]) -> Tensor:
        return g + (torch.where(self.kept(parts)[..., None], v, 0) if self.training else v)


@dataclass(frozen=True)
class Condition:
    """learned: tokens of a trained encoder, else of exact points. scene: whose. blind: black pictures."""

    fusion: str | None = None
    options: tuple[tuple[str, Any], ...] = ()
    learned: bool = False
    scene: str = "own"
    blind: bool = False

    def make(self) -> Fusion | None:
        if self.fusion is None:
            return None
        if self.fusion == "MaskedAdd":
            return MaskedAdd(**dict(self.options))
        return build({"class_path": FUSIONS + self.fusion, "init_args": dict(self.options)}, Fusion)


def _fused(path: str, **options: Any) -> Condition:
    return Condition(path, tuple(options.items()))


GATED = {"class_path": f"{FUSIONS}gated.Gated", "init_args": {"merge": 2}}
CONDITIONS: dict[str, Condition] = {
    "2-D alone": Condition(),
    "add": _fused("add.Add", merge=2),
    "add, another scene's": replace(_fused("add.Add", merge=2), scene="other"),
    "add, geometry alone": replace(_fused("add.Add", merge=2), blind=True),
    "GeoSR: masking alone": _fused("MaskedAdd", merge=2),
    "GeoSR: gate alone": _fused("geosr.GeoSR", merge=2, beta=0.0),
    "GeoSR": _fused("geosr.GeoSR", merge=2),
    "GeoSR cross": _fused("geosr_cross.GeoSRCross", merge=2, heads=4),
    "GeoSR dynamic": _fused("geosr_dynamic.GeoSRDynamic", merge=2, heads=4, queries=8, hidden=192),
    "gated": _fused("gated.Gated", merge=2),
    "residual gate": _fused("residual_gate.ResidualGate", fusion=GATED),
    "weighted": _fused("weighted.Weighted", merge=2),
    "concat": _fused("concat.Concat", merge=2),
    "concat, MLP": _fused("concat_mlp.ConcatMLP", align="merge", merge=2),
    "concat, attention": _fused("concat_attention.ConcatAttention", align="merge", merge=2, heads=4),
    "cross-attention (VLM-3R)": _fused("cross.Cross", heads=4),
    "transformer": _fused("transformer.Transformer", heads=4),
    "Spatial-MLLM": _fused("spatial_mllm.SpatialMLLM", merge=2),
    "SVE-Math": _fused("sve_math.SVEMath", layers=(-3, -2, -1)),
    "coordinates, MLP": _fused("coordinate_embedding.CoordinateEmbedding"),
    "coordinates, sines": _fused("sinusoidal_coordinates.SinusoidalCoordinates", voxel=0.05),
    "GST-VLA": _fused("gst_vla.GSTVLA", tokens=16, width=WIDTH, heads=4),
    **{f"TinyGeo: {name}": replace(_fused(path), learned=True) for name, path in LEARNED.items()},
}


def tokenizer(texts: Sequence[str], folder: Path) -> Path:
    """Words with the space before them, single figures and marks; whatever stands in these texts."""
    split = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|\s|."), "isolated")
    words = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer, made.decoder = split, decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder)
    return folder


def model(words: Path, seed: int) -> VLM:
    """Two layers of ViT on the geometry encoder's cells, and two of Qwen3: normed queries and keys learn faster."""
    torch.manual_seed(seed)
    config = {
        "model_type": "qwen3",
        "vocab_size": 256,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": 2,
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


def train(vlm: VLM, steps: int, seed: int, loss: Callable[[list[int]], Tensor], count: int) -> float:
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
        with torch.autocast("cpu", torch.bfloat16):
            lost = loss(order[step * BATCH : (step + 1) * BATCH].tolist())
        vlm.zero_grad()
        lost.backward()
        nn.utils.clip_grad_norm_(list(taught.values()), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        if step % 100 == 99:
            print(f"  step {step + 1}/{steps}  loss {lost.item():.3f}", flush=True)
    return time.monotonic() - begun


def _loss(vlm: VLM, batch: Batch, seen: list[Seen] | None) -> Tensor:
    """As the model's own, from what the encoders saw already."""
    read = vlm.read(batch, seen=seen)
    following = F.pad(batch.labels[:, 1:], (0, 1), value=IGNORE)
    at = following != IGNORE
    return F.cross_entropy(vlm.lm.head(read.hidden[at]).float(), following[at]) + read.loss


def first_lesson(stock: Stock, words: Path, seed: int) -> tuple[dict[str, Tensor], float]:
    """The model that finds objects in pictures, and its loss on the last batch."""
    vlm = model(words, seed)
    processor, generator = processing(vlm), np.random.default_rng(seed)

    def loss(items: list[int], say: Callable[[Text, np.random.Generator], tuple[str, str]]) -> Tensor:
        told = [stock.sample(item, say(stock.texts[item], generator)) for item in items]
        examples = [processor.example(sample, train=True) for sample in told]
        return _loss(vlm, collate(examples, pad_id=processor.pad_id), None)

    train(vlm, WHERE, seed, partial(loss, say=Text.places), stock.count)
    train(vlm, ORDER, seed, partial(loss, say=Text.places_or_order), stock.count)
    vlm.eval()
    with torch.no_grad():
        last = loss(list(range(128)), say=Text.places_or_order).item()
    return vlm.state_dict(), last


def seen_by(vlm: VLM, batch: Batch, told: Remembered | None, items: list[int]) -> list[Seen] | None:
    """What the model sees of a batch, with the geometry that its frozen encoder was found to say before."""
    if told is None:
        return None
    # the encoder is not to look again
    scenery, vlm.scenery = vlm.scenery, None
    seen = vlm.see(batch.pixels)[0]
    vlm.scenery = scenery
    layers = vlm.fusion.layers
    output = told.output(items, tuple(layers))
    read = torch.cat([output.layers[layer] for layer in layers], -1) if layers else output.tokens
    where = {i: (0, i, 0) for i in range(len(items))}
    tokens = together(read, output.valid, vlm.fusion.frames)
    seen.survey = Survey([output], [tokens], [list(range(len(items)))], where)
    return [seen]


def second_lesson(name: str, seed: int, work: Path, encoder: str | None, count: int) -> dict[str, Any]:
    """A condition's scores, item by item."""
    torch.set_num_threads(1)
    condition = CONDITIONS[name]
    stock = Stock(work / "stock", count=count, seed=0, tasks=TASKS, jobs=1)
    vlm = model(work / "words", seed)
    vlm.load_state_dict(torch.load(work / f"first-{seed}.pt", weights_only=True))
    told, fusion = None, condition.make()
    if fusion is not None:
        torch.manual_seed(seed)
        vlm.join(TinyGeo(weights=encoder) if condition.learned else Known(patch=4), fusion)
        told = Remembered(work / "stock" / "encoder") if condition.learned else None
    processor = processing(vlm)

    generator = np.random.default_rng(seed)

    def example(item: int) -> Example:
        # every other time the distances of all objects, which teach what geometry tokens say much faster
        said = stock.texts[item].distances(generator) if generator.random() < 0.5 else None
        made = processor.example(stock.sample(item, said), train=True)
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

    seconds = train(vlm, SPACE, seed, loss, count)
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
    parser.add_argument("--encoder", help="weights of TinyGeo xs, of `gnomon fit-geometry`; adds conditions with it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=list(CONDITIONS), metavar="CONDITION", help="by default all")
    parser.add_argument("--items", type=int, default=ITEMS, help="training items")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, one thread each")
    parser.add_argument("--work", type=Path, default=Path("runs/fusion_proof"), help="what is finished is kept here")
    parser.add_argument("--out", type=Path, help="directory for the JSON, the table and the picture")
    options = parser.parse_args()
    work: Path = options.work
    (work / "runs").mkdir(parents=True, exist_ok=True)
    print("scenes", flush=True)
    stock = Stock(work / "stock", count=options.items, seed=0, tasks=TASKS, jobs=options.jobs)
    words = work / "words"
    if not (words / "tokenizer.json").is_file():
        generator = np.random.default_rng(0)
        lessons = [say(generator) for text in stock.texts for say in (text.places_or_order, text.distances)]
        texts = [f"{text.question} {text.answer}" for text in stock.texts]
        tokenizer([*sum(lessons, ()), *texts, *CHAT], words)
    names = options.only or [n for n, c in CONDITIONS.items() if options.encoder or not c.learned]
    quality = None
    if options.encoder is not None:
        print("geometry", flush=True)
        encoder = TinyGeo(weights=options.encoder)
        stock.remember(encoder, "encoder")
        quality = measured(encoder)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        lessons = {pool.submit(_first, seed, work, options.items): seed for seed in options.seeds}
        waiting = {}
        for done in as_completed(lessons):
            done.result()
            for name in names:
                file = _file(work, name, lessons[done])
                if not file.is_file():
                    run = pool.submit(second_lesson, name, lessons[done], work, options.encoder, options.items)
                    waiting[run] = file
        for done in as_completed(waiting):
            found = done.result()
            waiting[done].write_text(json.dumps(found))
            mean = np.mean(list(found["scores"]["own"].values()))
            print(f"{found['condition']}, seed {found['seed']}: {mean:.1%} in {found['seconds']:.0f} s", flush=True)
    runs = [json.loads(_file(work, name, seed).read_text()) for name in names for seed in options.seeds]
    result = {
        "device": device(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "items": options.items,
        "steps": [WHERE, ORDER, SPACE],
        "batch": BATCH,
        "seeds": options.seeds,
        "encoder": quality,
        "runs": runs,
    }
    print(markdown(result))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "fusion_proof.json").write_text(json.dumps(result) + "\n")
        (options.out / "fusion_proof.md").write_text(markdown(result))
        picture(result, options.out / "fusion_proof.png")


def measured(encoder: TinyGeo, *, scenes: int = 200) -> dict[str, float]:
    """On scenes of the test split: depth after its median is made right, in all views and from the first one alone."""
    source = Sources(count=scenes, split="test", seed=TEST_SEED, tasks=TASKS, views=VIEWS, size=SIZE)
    depth, single, flat, pairs = Mean(), Mean(), Mean(), []
    for sample in source:
        known = sample.geometry
        views = prepare(known, ViewsSpec(encoder.multiple), images=[0], name=sample.id)
        given = GeometryInput.stack([views], "cpu")
        out = encoder.measure(given, heads=("depth", "camera"))
        alone = encoder.measure(replace(given, images=given.images[:, :1], valid=given.valid[:, :1]), heads=("depth",))
        truth = known.depth.astype(np.float64)
        for mean, guess, true in (
            (depth, out.depth[0].numpy(), truth),
            (single, alone.depth[0].numpy(), truth[:1]),
            (flat, np.ones_like(truth), truth),
        ):
            factor = np.median(true[true > 0]) / np.median(guess[true > 0])
            mean.add(depth_errors(factor * guess, true))
        pairs.append(pair_errors(out.extrinsics[0].numpy(), known.extrinsics))
    found = {"scenes": scenes, "AUC@30": PairErrors.join(pairs).auc(30)}
    for name, mean in (("", depth), (" of one view", single), (" of the median depth", flat)):
        found |= {f"AbsRel{name}": mean.result()["abs_rel"], f"delta1{name}": mean.result()["delta_1"]}
    return found


def _first(seed: int, work: Path, count: int) -> None:
    if (work / f"first-{seed}.pt").is_file():
        return
    torch.set_num_threads(1)
    stock = Stock(work / "stock", count=count, seed=0, tasks=TASKS, jobs=1)
    state, last = first_lesson(stock, work / "words", seed)
    print(f"first lesson, seed {seed}: loss {last:.3f}", flush=True)
    torch.save(state, work / f"first-{seed}.pt")


def _file(work: Path, name: str, seed: int) -> Path:
    return work / "runs" / f"{re.sub('[^A-Za-z0-9]+', '-', name)}-{seed}.json"


if __name__ == "__main__":
    main()
