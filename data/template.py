"""Chat templates: a conversation as one string, with the character spans that are trained on.

A span holds an assistant's text and its end-of-turn token. Labels are taken from these spans by character offset, so no
prefix is ever tokenised twice. `plain` is LLaVA-1.5's first stage: the image, then the caption, without the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gnomon.data.sample import IMAGE_MARK, Turn

Span = tuple[int, int]


@dataclass(frozen=True)
class Template:
    """How turns become text.

    system, user   text around these turns; "{}" is the turn's text
    assistant      what opens the assistant's turn; a generation prompt ends with it
    end, after     the end-of-turn token, which is trained on, and what follows it, which is not
    lead           what separates the opening from the answer and is trained on (generation begins with it)
    start          opens the conversation; `bos` puts the tokenizer's own token there, if it has one
    default        system text of conversations that have none
    image          what becomes of an image's mark and of a line break behind it; by default both stay
    tokens         what the tokenizer must know as single tokens
    """

    name: str
    system: str
    user: str
    assistant: str
    end: str
    after: str = ""
    lead: str = ""
    start: str = ""
    bos: bool = False
    default: str | None = None
    image: str = ""
    tokens: tuple[str, ...] = ()
    text: Literal["keep", "strip", "answers"] = "keep"

    def render(self, turns: Sequence[Turn], *, add_generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """The whole text, image marks included, and the spans to train on."""
        if self.default is not None and turns and turns[0].role != "system":
            turns = [Turn("system", self.default), *turns]
        pieces, spans, length = [self.start], [], len(self.start)
        for turn in turns:
            text = turn.text.strip() if self.text == "strip" else turn.text
            if self.image:
                text = text.replace(f"{IMAGE_MARK}\n", IMAGE_MARK).replace(IMAGE_MARK, self.image)
            if turn.role == "assistant":
                piece = self.assistant + self.lead + text + self.end + self.after
                first = length + len(self.assistant)
                spans.append((first, length + len(piece) - len(self.after)))
            elif self.text == "answers":
                piece = IMAGE_MARK * text.count(IMAGE_MARK)
            else:
                # not str.format: the text may hold braces of its own
                piece = (self.system if turn.role == "system" else self.user).replace("{}", text, 1)
            pieces.append(piece)
            length += len(piece)
        if add_generation_prompt:
            pieces.append(self.assistant)
        return "".join(pieces), spans


def _chatml(name: str, default: str | None = None, image: str = "") -> Template:
    return Template(
        name,
        system="<|im_start|>system\n{}<|im_end|>\n",
        user="<|im_start|>user\n{}<|im_end|>\n",
        assistant="<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
        default=default,
        image=image,
        tokens=("<|im_start|>", "<|im_end|>"),
    )


_TEMPLATES = (
    Template(
        "demo",
        system="<|system|>{}",
        user="<|user|>{}",
        assistant="<|assistant|>",
        end="<|end|>",
        tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    Template("plain", system="", user="", assistant="", end="\n", bos=True, text="answers"),
    Template(
        "vicuna",
        system="{} ",
        user="USER: {} ",
        assistant="ASSISTANT:",
        lead=" ",
        end="</s>",
        bos=True,
        default="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        tokens=("</s>",),
    ),
    # what Hugging Face's processors make of LLaVA-1.5's, and of LLaVA-NeXT's on Vicuna and on Mistral
    Template(
        "llava",
        system="{} ",
        user="USER: {} ",
        assistant="ASSISTANT:",
        lead=" ",
        end="</s>",
        bos=True,
        tokens=("</s>",),
    ),
    Template(
        "mistral",
        system="<<SYS>>\n{}\n<</SYS>>\n\n",
        user="[INST] {} [/INST]",
        assistant="",
        lead=" ",
        end="</s>",
        after=" ",
        bos=True,
        tokens=("</s>",),
    ),
    _chatml("chatml"),
    _chatml("smollm2", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    _chatml("qwen2", "You are a helpful assistant."),
    _chatml("qwen2.5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    _chatml("qwen2.5_vl", "You are a helpful assistant.", f"<|vision_start|>{IMAGE_MARK}<|vision_end|>"),
    Template(
        "llama3",
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        start="<|begin_of_text|>",
        tokens=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        text="strip",
    ),
)
TEMPLATES = {template.name: template for template in _TEMPLATES}


def matching(prompts: Sequence[tuple[Sequence[Turn], str]], bos: str | None) -> list[str]:
    """Templates that make these texts of these conversations, with or without the tokenizer's own beginning."""
    found = []
    for name, one in TEMPLATES.items():
        # the tokenizer puts its beginning before a text that has none
        begin = bos if one.bos and bos else ""
        texts = [begin + one.render(turns, add_generation_prompt=True)[0] for turns, _ in prompts]
        if all(text in (given, begin + given) for text, (_, given) in zip(texts, prompts)):
            found.append(name)
    return found


def template(name: str) -> Template:
    """The template of that name."""
    if name not in TEMPLATES:
        raise ValueError(f"chat template {name!r} is unknown; use one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
