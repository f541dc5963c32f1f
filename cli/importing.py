"""`gnomon import`: a model directory from a Hugging Face checkpoint, and a comparison of the two."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnomon.vlm.importing.checkpoint import Checkpoint

QUESTION = "What is this?"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="gnomon import",
        description="Make a model directory of a checkpoint in Hugging Face's format: LLaVA-1.5, LLaVA-NeXT or "
        "Qwen2.5-VL. Both are then shown the same image and question, and their logits are compared.",
    )
    parser.add_argument("checkpoint", help="directory, or a hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write the model directory")
    parser.add_argument("--template", help="chat template (default: the one that makes the checkpoint's own prompt)")
    parser.add_argument(
        "--no-check", action="store_true", help="do not compare (the check needs both models in memory)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    args = parser.parse_args(argv)
    if args.out.exists() and not args.overwrite:
        raise ValueError(f"{args.out} exists; choose another --out or add --overwrite")
    if args.template is not None:
        from gnomon.data.template import template

        template(args.template)

    from transformers.utils import logging

    from gnomon.vlm.importing.checkpoint import convert, read

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    checkpoint = read(args.checkpoint)
    name = args.template or _template(checkpoint)
    convert(checkpoint, args.out, template=name)
    print(f"wrote {args.out}; chat template {name}")
    if not args.no_check:
        print(f"largest logit difference to the checkpoint {_difference(checkpoint, args.out):.2e}")
    return 0


def _template(checkpoint: Checkpoint) -> str:
    """The template that renders a question about an image, and one without, as the checkpoint does."""
    from gnomon.data.sample import Turn
    from gnomon.data.template import TEMPLATES, matching

    text = {"type": "text", "text": QUESTION}
    prompts = []
    for marks, content in (("<image>\n", [{"type": "image"}, text]), ("", [text])):
        given = checkpoint.chat([{"role": "user", "content": content}])
        if given is None:
            known = ", ".join(TEMPLATES)
            raise ValueError(f"{checkpoint.path} has no chat template; name one of {known} with --template")
        prompts.append(([Turn("user", marks + QUESTION)], given))
    names = matching(prompts, checkpoint.processor.tokenizer.bos_token)
    if not names:
        raise ValueError(
            f"no template renders a question as {checkpoint.path} does ({prompts[0][1]!r}); name the nearest of "
            f"{', '.join(TEMPLATES)} with --template"
        )
    return names[0]


def _difference(checkpoint: Checkpoint, out: Path) -> float:
    """Largest absolute difference of the next-token logits, each model with its own processor."""
    import numpy as np
    import torch
    from PIL import Image

    from gnomon.data.collate import collate
    from gnomon.data.processor import Processor
    from gnomon.data.sample import Sample, Turn
    from gnomon.vlm.save import load

    ramp = np.linspace(0, 255, 120 * 200 * 3).reshape(120, 200, 3)
    pixels = (ramp + np.random.default_rng(0).integers(0, 60, ramp.shape)).clip(0, 255).astype(np.uint8)
    model = load(out)
    processor = Processor(model.tokenizer, model.template, model.image, max_length=1 << 20)
    sample = Sample("check", (Turn("user", f"<image>\n{QUESTION}"),), (pixels,))
    batch = collate([processor.example(sample, train=False)], pad_id=processor.pad_id)
    inputs = checkpoint.inputs(processor.prompt(sample), Image.fromarray(pixels))
    ids = batch.ids.masked_fill(batch.layout.is_image, checkpoint.model.config.image_token_id)
    if not torch.equal(ids, inputs["input_ids"]):
        raise ValueError(f"{out} reads a prompt as other tokens than the checkpoint does; do not use it")
    with torch.no_grad():
        ours = model(batch).logits[0, -1].float()
        theirs = checkpoint.model.eval()(**inputs).logits[0, -1].float()
    difference = (ours - theirs).abs().max().item()
    exact = all(p.dtype == torch.float32 for p in model.parameters())
    limit = (1e-4 if exact else 2e-2) * max(1.0, ours.abs().max().item())
    # not "difference > limit": a nan must not pass
    if not difference <= limit:
        raise ValueError(
            f"{out} is {difference:.2e} apart from the checkpoint's logits, over {limit:.0e}; do not use it"
        )
    return difference
