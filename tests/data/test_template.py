import pytest

from gnomon.data.sample import Turn
from gnomon.data.template import TEMPLATES, matching, template

TALK = (
    Turn("user", "<image>\nWhat {is} this?"),
    Turn("assistant", "A dog."),
    Turn("user", "Sure?"),
    Turn("assistant", " Yes {0}. "),
)
SYSTEM = Turn("system", "Be brief.")
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)

# text of TALK, and what of it is trained on
EXPECTED = {
    "demo": (
        "<|user|><image>\nWhat {is} this?<|assistant|>A dog.<|end|><|user|>Sure?<|assistant|> Yes {0}. <|end|>",
        ["A dog.<|end|>", " Yes {0}. <|end|>"],
    ),
    "plain": ("<image>A dog.\n Yes {0}. \n", ["A dog.\n", " Yes {0}. \n"]),
    "vicuna": (
        VICUNA + "USER: <image>\nWhat {is} this? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT:  Yes {0}. </s>",
        [" A dog.</s>", "  Yes {0}. </s>"],
    ),
    "llava": (
        "USER: <image>\nWhat {is} this? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT:  Yes {0}. </s>",
        [" A dog.</s>", "  Yes {0}. </s>"],
    ),
    "mistral": (
        "[INST] <image>\nWhat {is} this? [/INST] A dog.</s> [INST] Sure? [/INST]  Yes {0}. </s> ",
        [" A dog.</s>", "  Yes {0}. </s>"],
    ),
    "qwen2.5_vl": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><image><|vision_end|>What {is} this?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n Yes {0}. <|im_end|>\n",
        ["A dog.<|im_end|>", " Yes {0}. <|im_end|>"],
    ),
    "chatml": (
        "<|im_start|>user\n<image>\nWhat {is} this?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n Yes {0}. <|im_end|>\n",
        ["A dog.<|im_end|>", " Yes {0}. <|im_end|>"],
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat {is} this?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA dog.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes {0}.<|eot_id|>",
        ["A dog.<|eot_id|>", "Yes {0}.<|eot_id|>"],
    ),
}
PROMPT_END = {
    "demo": "Sure?<|assistant|>",
    "plain": "A dog.\n",
    "vicuna": "USER: Sure? ASSISTANT:",
    "llava": "USER: Sure? ASSISTANT:",
    "mistral": "[INST] Sure? [/INST]",
    "chatml": "Sure?<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "Sure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_text_and_spans_by_hand(name):
    text, spans = template(name).render(TALK)
    assert text == EXPECTED[name][0]
    assert [text[a:b] for a, b in spans] == EXPECTED[name][1]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_the_beginning_of_the_conversation(name):
    whole, spans = template(name).render(TALK)
    prompt, _ = template(name).render(TALK[:-1], add_generation_prompt=True)
    assert whole.startswith(prompt) and len(prompt) == spans[-1][0]
    assert prompt.endswith(PROMPT_END.get(name, PROMPT_END["chatml"]))


def test_a_template_is_known_by_what_it_makes():
    plain, asked = (Turn("user", "Why?"),), (Turn("user", "<image>\nWhy?"),)
    llava = [(plain, "USER: Why? ASSISTANT:"), (asked, "USER: <image>\nWhy? ASSISTANT:")]
    assert matching(llava, "<s>") == ["llava"]
    # a text may hold the beginning already
    assert matching([(turns, "<s>" + text) for turns, text in llava], "<s>") == ["llava"]
    assert matching([(turns, text + " ") for turns, text in llava], "<s>") == []
    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    question = default + "<|im_start|>user\n{}Why?<|im_end|>\n<|im_start|>assistant\n"
    assert matching([(asked, question.format("<|vision_start|><image><|vision_end|>"))], None) == ["qwen2.5_vl"]
    assert matching([(asked, question.format("<image>\n"))], None) == ["qwen2"]


def test_system_turns():
    assert template("demo").render((SYSTEM, *TALK))[0].startswith("<|system|>Be brief.<|user|>")
    assert template("vicuna").render((SYSTEM, *TALK))[0].startswith("Be brief. USER: ")
    assert template("plain").render((SYSTEM, *TALK)) == template("plain").render(TALK)
    start = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user"
    assert template("llama3").render((SYSTEM, *TALK))[0].startswith(start)
    defaults = {name: template(name).render(TALK)[0].split("<|im_end|>")[0] for name in ("qwen2", "qwen2.5")}
    assert defaults["qwen2"] == "<|im_start|>system\nYou are a helpful assistant."
    assert defaults["qwen2.5"].startswith("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud.")


@pytest.mark.parametrize("turns", [TALK, (SYSTEM, *TALK), TALK[:1]], ids=["default", "system", "single"])
def test_smollm2_is_what_its_own_template_says(smollm2, turns):
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    for add in (False, True):
        theirs = smollm2.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        assert template("smollm2").render(turns, add_generation_prompt=add)[0] == theirs


def test_unknown_name():
    with pytest.raises(ValueError, match=r"'chatlm' is unknown; use one of demo, plain"):
        template("chatlm")
