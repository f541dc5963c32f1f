"""The Jinja texts say the same as the templates that models are trained with."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gnomon.data.sample import Turn
from gnomon.data.template import TEMPLATES, template
from gnomon.vlm.export.chat import chat_template

CHATS = {
    "question": [("user", "Is AB = CD?")],
    "system": [("system", "Be brief."), ("user", "Why?")],
    "turns": [
        ("user", ' {x} "quoted" \\n '),
        ("assistant", "An answer.\n"),
        ("user", "And\nnow?"),
        ("assistant", "Done"),
    ],
}


def rendered(name: str, messages: list[dict], **options) -> str:
    """As transformers renders it."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(chat_template(name)).render(messages=messages, **options)


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain", "demo"}))
def test_equals_the_training_template(name: str, chat, prompt: bool):
    ours, _ = template(name).render([Turn(*turn) for turn in chat], add_generation_prompt=prompt)
    bos = "<s>" if template(name).bos else ""
    messages = [{"role": role, "content": text} for role, text in chat]
    assert rendered(name, messages, add_generation_prompt=prompt, bos_token="<s>") == bos + ours


def test_parts_are_put_together():
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Compare."}]
    text = rendered("chatml", [{"role": "user", "content": parts}])
    assert text == "<|im_start|>user\n<image>\n<image>\nCompare.<|im_end|>\n"


@pytest.mark.parametrize("name", ["plain", "demo"])
def test_templates_that_are_not_for_chats(name: str):
    assert name in TEMPLATES and chat_template(name) is None
