"""Tiny random checkpoints, saved by transformers itself: model, tokenizer, image processor. For tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

LLAVA_CHAT = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL_CHAT = (
    "{% for m in messages %}{{ '[INST] ' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{{ ' [/INST]' }}{% endfor %}"
)
QWEN_CHAT = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24], [24, 72]]


def sentences(special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Like Llama's: a text begins with a space of its own, but what follows a special token does not."""
    pieces = ["<unk>", "<s>", "</s>", *special, "\u2581", *map(chr, range(10, 11)), *map(chr, range(33, 127))]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _finished(tokenizer, special, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def spelled(special: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Like Qwen's: bytes, without a beginning."""
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer, special, eos_token="<|im_end|>", pad_token="<|im_end|>")


def _finished(tokenizer: Tokenizer, special: tuple[str, ...], **names: str) -> PreTrainedTokenizerFast:
    known = dict.fromkeys((*names.values(), *special))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known])
    if "bos_token" in names:
        beginning = (names["bos_token"], tokenizer.token_to_id(names["bos_token"]))
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[beginning])
        names["pad_token"] = names["unk_token"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def text_config(kind: str, vocabulary: int) -> dict:
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def tower_config() -> dict:
    tiny = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    return {"model_type": "clip_vision_model", **tiny, "image_size": 24, "patch_size": 4}


def image_processor(kind: str, **options):
    return get_image_processor_class_from_name(kind)(image_mean=MEAN, image_std=STD, **options)


def llava(path: Path, *, pad: bool = False) -> None:
    tokenizer = sentences(("<image>",))
    config = LlavaConfig(
        vision_config=tower_config(),
        text_config=text_config("llama", len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=36,
    )
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    if pad:
        sizes = {"size": {"height": 24, "width": 24}, "do_center_crop": False, "do_pad": True}
    images = image_processor("LlavaImageProcessor" if pad else "CLIPImageProcessor", **sizes)
    _saved(
        path,
        LlavaForConditionalGeneration(config),
        LlavaProcessor(
            images,
            tokenizer,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=LLAVA_CHAT,
        ),
    )


def llava_next(path: Path, *, mistral: bool = False) -> None:
    tokenizer = sentences(("<image>",))
    config = LlavaNextConfig(
        vision_config=tower_config(),
        text_config=text_config("mistral" if mistral else "llama", len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
    )
    sizes = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    images = image_processor("LlavaNextImageProcessor", image_grid_pinpoints=PINPOINTS, **sizes)
    _saved(
        path,
        LlavaNextForConditionalGeneration(config),
        LlavaNextProcessor(
            images,
            tokenizer,
            patch_size=4,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=MISTRAL_CHAT if mistral else LLAVA_CHAT,
        ),
    )


def qwen2_5_vl(path: Path, *, tied: bool = False) -> None:
    tokenizer = spelled(QWEN_TOKENS)
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    vision = {"depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    config = Qwen2_5_VLConfig(
        vision_config={**vision, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1, 3]},
        text_config={
            **text_config("qwen2_5_vl_text", len(tokenizer)),
            "rope_scaling": rope,
            "tie_word_embeddings": tied,
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    images = image_processor("Qwen2VLImageProcessor", patch_size=4, size={"shortest_edge": 256, "longest_edge": 1600})
    films = Qwen2VLVideoProcessor(patch_size=4)
    processor = Qwen2_5_VLProcessor(images, tokenizer, films, chat_template=QWEN_CHAT)
    _saved(path, Qwen2_5_VLForConditionalGeneration(config), processor)


def _saved(path: Path, model: torch.nn.Module, processor) -> None:
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        # the default initial weights are so small that neither attention nor images matter
        if weight.dim() >= 2:
            torch.nn.init.normal_(weight, std=0.15, generator=generator)
        elif bool((weight == 0).all()):
            torch.nn.init.normal_(weight, std=0.02, generator=generator)
    model.save_pretrained(path)
    processor.save_pretrained(path)


MAKERS: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "llava-pad": lambda path: llava(path, pad=True),
    "next": llava_next,
    "next-mistral": lambda path: llava_next(path, mistral=True),
    "qwen": qwen2_5_vl,
    "qwen-tied": lambda path: qwen2_5_vl(path, tied=True),
}
