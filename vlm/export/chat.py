"""Chat templates as Jinja, the form in which Hugging Face processors carry them.

A message's content is a string, or a list of {"type": "image"} and {"type": "text", "text": ...}.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

_JINJA = """\
{%- macro flat(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}{{ "<image>\\n" if part["type"] == "image" else part["text"] }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token if bos else start -}}
{%- if default and messages[0]["role"] != "system" -%}{{ system[0] + default + system[1] }}{%- endif -%}
{%- for message in messages -%}
{%- set text = flat(message["content"]) -%}
{%- if image -%}{%- set text = text | replace("<image>\\n", "<image>") | replace("<image>", image) -%}{%- endif -%}
{%- if strip -%}{%- set text = text | trim -%}{%- endif -%}
{%- if message["role"] == "system" -%}{{ system[0] + text + system[1] }}
{%- elif message["role"] == "user" -%}{{ user[0] + text + user[1] }}
{%- else -%}{{ assistant + lead + text + end }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ assistant }}{%- endif -%}
"""


@dataclass(frozen=True)
class _Chat:
    """What surrounds each role's text; `lead` separates the assistant's opening from its answer.

    image: what becomes of an image's mark and of a line break behind it; by default both stay.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: str
    end: str
    lead: str = ""
    start: str = ""
    bos: bool = False
    default: str = ""
    image: str = ""
    strip: bool = False

    def jinja(self) -> str:
        # JSON's lists, strings and booleans are Jinja's too
        return "".join(f"{{%- set {name} = {json.dumps(value)} -%}}\n" for name, value in asdict(self).items()) + _JINJA


def _chatml(default: str = "", image: str = "") -> _Chat:
    def role(name: str) -> tuple[str, str]:
        return f"<|im_start|>{name}\n", "<|im_end|>\n"

    return _Chat(role("system"), role("user"), *role("assistant"), default=default, image=image)


def _llama3(name: str) -> tuple[str, str]:
    return f"<|start_header_id|>{name}<|end_header_id|>\n\n", "<|eot_id|>"


_CHATS = {
    "chatml": _chatml(),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen2": _chatml("You are a helpful assistant."),
    "qwen2.5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen2.5_vl": _chatml("You are a helpful assistant.", "<|vision_start|><image><|vision_end|>"),
    "llava": _Chat(("", " "), ("USER: ", " "), "ASSISTANT:", "</s>", lead=" ", bos=True),
    "mistral": _Chat(("<<SYS>>\n", "\n<</SYS>>\n\n"), ("[INST] ", " [/INST]"), "", "</s> ", lead=" ", bos=True),
    "vicuna": _Chat(
        ("", " "),
        ("USER: ", " "),
        "ASSISTANT:",
        "</s>",
        lead=" ",
        bos=True,
        default="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    "llama3": _Chat(_llama3("system"), _llama3("user"), *_llama3("assistant"), start="<|begin_of_text|>", strip=True),
}


def chat_template(name: str) -> str | None:
    """The Jinja text of one of our templates; None where the template is not for chats with other software."""
    return _CHATS[name].jinja() if name in _CHATS else None
