from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gnomon.data.collate import collate, collate_rows
from gnomon.data.errors import BadImage, BadSample, TooLong
from gnomon.data.processor import Processor
from gnomon.data.sample import Sample, Turn
from gnomon.data.template import TEMPLATES, template
from gnomon.vlm.layout import IGNORE, ImageSpec

GRID = ImageSpec((4, 6), 2)
PICTURE = np.zeros((8, 8, 3), np.uint8)


def sample(*texts: str, images: int | None = None, roles: str = "ua" * 9) -> Sample:
    names = {"u": "user", "a": "assistant", "s": "system"}
    turns = tuple(Turn(names[role], text) for role, text in zip(roles, texts))
    marks = sum(text.count("<image>") for text in texts) if images is None else images
    return Sample("x7", turns, (PICTURE,) * marks)


def trained_text(tokenizer, example) -> str:
    return tokenizer.decode(example.labels[example.labels != IGNORE].tolist())


@pytest.fixture
def demo(demo_tokenizer) -> Processor:
    return Processor(demo_tokenizer, "demo", GRID)


def test_every_position_by_hand(demo, demo_tokenizer):
    example = demo.example(sample("a<image>b", "cd"), train=True)
    user, assistant, end = demo_tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>", "<|end|>"])
    a, b, c, d = demo_tokenizer.convert_tokens_to_ids(list("abcd"))
    # an image of 4x6 pixels with 2 pixels per cell is 2 rows of 3 tokens
    assert example.ids.tolist() == [user, a, 0, 0, 0, 0, 0, 0, b, assistant, c, d, end]
    assert example.labels.tolist() == [IGNORE] * 10 + [c, d, end]
    assert example.image.tolist() == [-1] * 2 + [0] * 6 + [-1] * 5
    assert example.cell[2:8].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert (example.cell[[0, 1, 8, 9, 10, 11, 12]] == -1).all()
    assert [tuple(p.shape) for p in example.pixels] == [(3, 4, 6)]


def test_native_images_have_their_own_grids(demo_tokenizer):
    processor = Processor(demo_tokenizer, "demo", ImageSpec(None, 4, fit="native"))
    shapes = ((8, 4, 3), (4, 12, 3))
    pictures = tuple(np.zeros(shape, np.uint8) for shape in shapes)
    example = processor.example(replace(sample("<image>?<image>", "y"), images=pictures), train=True)
    assert [(example.image == k).sum().item() for k in (0, 1)] == [2, 3]
    assert example.cell[example.image == 0].tolist() == [[0, 0], [1, 0]]
    assert example.cell[example.image == 1].tolist() == [[0, 0], [0, 1], [0, 2]]


@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_text_is_exactly_the_answers(name, byte_tokenizer):
    shape = template(name)
    tokenizer = byte_tokenizer(shape.tokens, eos=shape.end if shape.end in shape.tokens else None)
    talk = sample("<image>\nPourquoi ça ?", "Ça dépend ☃.", "USER: ok\n\n", "Non", images=1)
    example = Processor(tokenizer, name, GRID).example(talk, train=True)
    expected = "".join(shape.lead + turn.text + shape.end for turn in talk.turns if turn.role == "assistant")
    assert trained_text(tokenizer, example) == expected


@pytest.mark.parametrize("name", ["smollm2", "chatml"])
def test_trained_text_with_the_real_tokenizer(name, smollm2):
    talk = sample("<image>\nWhy?", "It's 3.5 cm — ☃.\n\n", "\n\nand?", "No 12  ")
    example = Processor(smollm2, name, GRID).example(talk, train=True)
    assert trained_text(smollm2, example) == "It's 3.5 cm — ☃.\n\n<|im_end|>No 12  <|im_end|>"
    # this tokenizer makes one token of a line break and the spaces after it: the answer needs it, so it is trained on
    example = Processor(smollm2, name, GRID).example(sample("Why?", "  So."), train=True)
    assert trained_text(smollm2, example) == "\n  So.<|im_end|>"
    # without pictures, the ids are those of the model's own way to tokenise a conversation
    talk = sample("Why?", "It's 3.5 cm — ☃.\n\n", "\n\nand?", "No 12")
    example = Processor(smollm2, "smollm2", GRID).example(talk, train=True)
    messages = [{"role": turn.role, "content": turn.text} for turn in talk.turns]
    assert example.ids.tolist() == smollm2.apply_chat_template(messages, return_dict=False)


def test_no_token_reaches_across_an_image(byte_tokenizer):
    tokenizer = byte_tokenizer(template("demo").tokens, merges=[("Ċ", "Ċ")])
    newline, double = tokenizer.convert_tokens_to_ids(["Ċ", "ĊĊ"])
    processor = Processor(tokenizer, "demo", GRID)
    assert double in processor.example(sample("\n\n", "y"), train=True).ids
    example = processor.example(sample("\n<image>\n", "y"), train=True)
    assert double not in example.ids and (example.ids == newline).sum() == 2


def test_the_mark_is_never_tokenised(demo, demo_tokenizer):
    example = demo.example(sample("<image>", "y"), train=True)
    assert "image" not in demo_tokenizer.decode(example.ids[example.image < 0].tolist())


def test_a_token_that_holds_the_space_and_the_answer_is_trained_on(byte_tokenizer):
    tokenizer = byte_tokenizer(("</s>", "<s>"), merges=[("Ġ", "y")], bos="<s>", eos="</s>")
    processor = Processor(tokenizer, "vicuna", GRID)
    example = processor.example(sample("a?", "y"), train=True)
    assert example.ids[0] == tokenizer.bos_token_id
    assert trained_text(tokenizer, example) == " y</s>"
    # what generation starts from is what training predicted from
    prompt = processor.example(sample("a?", "y"), train=False)
    assert example.ids[: len(prompt)].tolist() == prompt.ids.tolist()
    assert example.labels[: len(prompt)].eq(IGNORE).all()


def test_prompts_leave_the_last_answer_out(demo):
    talk = sample("<image>a", "b", "c", "d<image>", images=2)
    assert demo.prompt(talk) == "<|user|><image>a<|assistant|>b<|end|><|user|>c<|assistant|>"
    example = demo.example(talk, train=False)
    assert len(example.pixels) == 1 and example.labels.eq(IGNORE).all()
    assert demo.prompt(sample("a")) == "<|user|>a<|assistant|>"


def test_stop_and_pad_ids(byte_tokenizer, smollm2):
    tokenizer = byte_tokenizer(("<|im_start|>", "<|im_end|>", "<|endoftext|>"), eos="<|endoftext|>")
    ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert Processor(tokenizer, "chatml", GRID).stop_ids == tuple(sorted(ids))
    assert Processor(tokenizer, "plain", GRID).stop_ids == tuple(sorted([tokenizer.convert_tokens_to_ids("Ċ"), ids[1]]))
    assert Processor(tokenizer, "chatml", GRID).pad_id == ids[1]
    assert Processor(smollm2, "smollm2", GRID).stop_ids == (2,)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (sample("<image>a", "b", images=2), "1 <image> marks and 2 images"),
        (sample("a<image><image>", "b", images=0), "2 <image> marks and 0 images"),
        (sample(), "no conversation"),
        (sample("s", roles="s"), "no conversation"),
        (sample("a", "b", roles="au"), "turns assistant, user; user and assistant must alternate"),
        (sample("a", "b", "c", roles="uua"), "must alternate"),
        (sample("a", "b", "s", roles="uas"), "must alternate"),
        (sample("a"), "no answer to train on"),
        (sample("a", " \n"), "no answer to train on"),
        (sample("a", "\ud800"), "not Unicode"),
        (replace(sample("<image>", "b"), images=(b"junk",)), "image 0 of sample 'x7'"),
        (replace(sample("a"), meta={"where": "d.jsonl line 3"}), "(d.jsonl line 3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "sample",
)
def test_bad_samples_are_named_in_one_line(demo, bad, says):
    with pytest.raises(BadSample) as error:
        demo.example(bad, train=True)
    assert says in str(error.value) and "'x7'" in str(error.value) and "\n" not in str(error.value)


def test_bad_image_is_a_bad_sample(demo):
    with pytest.raises(BadImage):
        demo.example(replace(sample("<image>", "b"), images=(b"",)), train=False)


def test_nothing_to_read(byte_tokenizer):
    with pytest.raises(BadSample, match="'x7' leaves nothing to read"):
        Processor(byte_tokenizer(), "plain", GRID).example(sample("a"), train=False)


def test_plain_drops_the_question_and_never_trains_the_first_token(byte_tokenizer):
    tokenizer = byte_tokenizer()
    example = Processor(tokenizer, "plain", GRID).example(sample("a", "bcd"), train=True)
    assert tokenizer.decode(example.ids.tolist()) == "bcd\n" and trained_text(tokenizer, example) == "cd\n"


class TestTooLong:
    # <|user|> + 6 slots + <|assistant|> + n letters + <|end|>
    def test_limit_is_inclusive(self, demo):
        assert len(replace(demo, max_length=12).example(sample("<image>", "abc"), train=True)) == 12
        with pytest.raises(TooLong, match=r"'x7' has 12 tokens \(6 of images\), max_length is 11; raise it or set"):
            replace(demo, max_length=11).example(sample("<image>", "abc"), train=True)

    def test_truncation_cuts_the_end(self, demo, demo_tokenizer):
        cut = replace(demo, max_length=10, overlong="truncate").example(sample("<image>", "abc"), train=True)
        assert len(cut) == 10 and trained_text(demo_tokenizer, cut) == "ab" and len(cut.pixels) == 1

    @pytest.mark.parametrize("limit", [5, 6, 9, 10])
    def test_no_image_is_cut_in_two(self, demo, limit):
        # <|user|> <|assistant|> a b <|end|>, then the second question's <|user|> at 5 and its image at 6 to 11
        talk = sample("", "ab", "<image>", "c")
        cut = replace(demo, max_length=limit, overlong="truncate").example(talk, train=True)
        assert len(cut) == min(limit, 6) and not cut.pixels and cut.image.eq(-1).all()

    def test_whole_images_stay(self, demo):
        cut = replace(demo, max_length=12, overlong="truncate").example(sample("", "ab", "<image>", "c"), train=True)
        assert len(cut) == 12 and len(cut.pixels) == 1

    def test_nothing_left_to_train_on(self, demo):
        with pytest.raises(BadSample, match="'x7' has no token to train on within 8 tokens"):
            replace(demo, max_length=8, overlong="truncate").example(sample("<image>", "abc"), train=True)

    def test_prompts_are_never_cut(self, demo):
        # whoever only asks has no such options
        with pytest.raises(TooLong, match=r"max_length is 5; ask less, or show fewer images$"):
            replace(demo, max_length=5, overlong="truncate").example(sample("<image>"), train=False)


def test_user_mistakes(demo_tokenizer):
    with pytest.raises(ValueError, match=r"template 'chatml' needs '<.im_start.>' as one token, .* makes it 12"):
        Processor(demo_tokenizer, "chatml", GRID)
    with pytest.raises(ValueError, match="overlong 'cut' is unknown"):
        Processor(demo_tokenizer, "demo", GRID, overlong="cut")


def test_three_axes_by_hand(demo_tokenizer):
    """Text counts on all axes alike; an image stands at one time, and text goes on behind its longer side."""
    processor = Processor(demo_tokenizer, "demo", replace(GRID, positions="grid"))
    example = processor.example(sample("a<image>b", "cd"), train=True)
    words, after = [0, 1], [5, 6, 7, 8, 9]
    assert example.position.tolist() == [
        [*words, 2, 2, 2, 2, 2, 2, *after],
        [*words, 2, 2, 2, 3, 3, 3, *after],
        [*words, 2, 3, 4, 2, 3, 4, *after],
    ]
    assert torch.equal(example.cut(5).position, example.position[:, :2])
    rows = collate_rows([[example, processor.example(sample("x", "y"), train=True)]], pad_id=9)
    assert rows.layout.position.shape == (3, 1, 18)
    assert rows.layout.position[:, 0, 13:].tolist() == [list(range(5))] * 3
    padded = collate([example, processor.example(sample("x", "y"), train=True)], pad_id=9, side="left")
    assert padded.layout.position[:, 1].tolist() == [[0] * 8 + list(range(5))] * 3


def test_crops_of_an_image_by_hand(demo_tokenizer):
    spec = ImageSpec((2, 2), 2, fit="anyres", canvases=((2, 4), (4, 2)))
    pictures = tuple(np.zeros(shape, np.uint8) for shape in ((2, 4, 3), (8, 4, 3)))
    talk = replace(sample("a<image><image>b", "c"), images=pictures)
    example = Processor(demo_tokenizer, "demo", spec).example(talk, train=True)
    # whole, two crops side by side, end of the row; whole, crop, end, crop, end
    assert example.image.tolist() == [-1, -1, 0, 1, 2, 2, 3, 4, 4, 5, 5, *[-1] * 4]
    ends = [[-1, -1]]
    assert example.cell[2:11].tolist() == [[0, 0]] * 3 + ends + [[0, 0]] * 2 + ends + [[0, 0]] + ends
    assert [tuple(p.shape) for p in example.pixels] == [(3, 2, 2)] * 6
    # an image that does not fit whole goes, with all its crops
    for length, left, crops in ((10, 6, 3), (7, 6, 3), (6, 6, 3), (5, 2, 0), (3, 2, 0)):
        assert (len(example.cut(length)), len(example.cut(length).pixels)) == (left, crops)
    layout = collate([example], pad_id=0).layout
    assert layout.is_image.sum() == 9 and layout.position.tolist() == [list(range(15))]


@pytest.mark.parametrize("template", ["llava", "mistral"])
def test_a_tokenizer_that_knows_the_mark_reads_the_text_whole(template):
    """Llama's tokenizers begin a text with a space of their own, and not what follows an image."""
    pieces = ["<unk>", "<s>", "</s>", "<image>", "\u2581", "\n", *map(chr, range(33, 127))]
    words = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", "<image>")]
    words.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    processor = Processor(tokenizer, template, GRID)
    example = processor.example(sample("<image>\nWhy<image>?", "Yes"), train=True)
    text, _ = processor._template.render(sample("<image>\nWhy<image>?", "Yes").turns)
    whole = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert example.ids[example.image < 0].tolist() == [token for token in whole if token != 3]
    assert example.image.unique().tolist() == [-1, 0, 1]
    assert tokenizer.convert_ids_to_tokens(example.labels[example.labels >= 0].tolist()) == [*"\u2581Yes", "</s>"]
