"""The small tokenizer: letters stand alone, nothing is unknown, transformers reads it."""

import pytest
from transformers import AutoTokenizer

from gnomon.data.tokenizer import SPECIAL, save, train

TEXTS = ["Is angle ABC acute or obtuse?", "The line is: BC", "What is the point lying on line DE?", "12, 340"] * 5


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save(train(TEXTS, size=400), folder)
    return AutoTokenizer.from_pretrained(folder)


def test_letters_and_digits_stand_alone(tokenizer):
    assert tokenizer.tokenize(" line BC, 340") == ["Ġline", "Ġ", "B", "C", ",", "Ġ", "3", "4", "0"]
    assert tokenizer.tokenize(" angle") == ["Ġangle"]


@pytest.mark.parametrize("text", ["Is angle XYZ acute?", "40°, 2x+4 — naïve", "a\nb\tc  d", "日本", ""])
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == [0, 1, 2, 3, 4]
    assert tokenizer("<|user|>AB<|end|>")["input_ids"][0] == 3
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


def test_same_texts_same_tokenizer():
    assert train(TEXTS, size=400).to_str() == train(TEXTS, size=400).to_str()
