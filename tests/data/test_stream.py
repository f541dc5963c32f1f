import logging
import pickle
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from gnomon.data.order import Order
from gnomon.data.processor import Processor
from gnomon.data.stream import Made, Maker, Stream, Windows
from gnomon.vlm.layout import IGNORE, Batch, ImageSpec, TokenLayout


@pytest.fixture
def processor(demo_tokenizer):
    return Processor(demo_tokenizer, "demo", ImageSpec((4, 4), 2), max_length=200)


def batches(source, processor, count, *, workers=0, step=0, bad_share=1.0, **order):
    order = Order(len(source), **order)
    stream = Stream(Maker(source, processor), lambda: order.stream(step), workers=workers, bad_share=bad_share)
    return stream, list(islice(stream, count))


def same(a: Batch, b: Batch) -> bool:
    fields = ("kind", "image", "cell", "position")
    return (
        a.samples == b.samples
        and torch.equal(a.ids, b.ids)
        and torch.equal(a.labels, b.labels)
        and all(torch.equal(getattr(a.layout, name), getattr(b.layout, name)) for name in fields)
        and all(torch.equal(p, q) for p, q in zip(a.pixels, b.pixels, strict=True))
    )


def test_batches_do_not_depend_on_workers(numbers, processor):
    source = numbers(23, bad=[4], long=[11])
    _, alone = batches(source, processor, 12, batch=3)
    for workers in (1, 2):
        stream, shared = batches(source, processor, 12, batch=3, workers=workers)
        assert all(same(a, b) for a, b in zip(alone, shared, strict=True))
    # both unusable samples, in the first and in the second epoch, come back from the workers
    assert len(stream.bad) == 3 and stream.seen == 39


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_leaves_the_random_state_of_the_run_alone(numbers, processor, workers):
    before = torch.get_rng_state()
    batches(numbers(5), processor, 4, workers=workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_resuming_at_a_step_goes_on_where_the_run_was(numbers, processor):
    source = numbers(23, bad=[4])
    _, whole = batches(source, processor, 20, batch=2, accumulate=2)
    _, rest = batches(source, processor, 6, batch=2, accumulate=2, step=7, workers=2)
    assert all(same(a, b) for a, b in zip(whole[14:], rest, strict=True))


def test_a_bad_sample_gives_way_to_the_next_and_is_named(numbers, processor, caplog):
    with caplog.at_level(logging.WARNING):
        stream, [batch] = batches(numbers(6, bad=[2, 3]), processor, 1, batch=6, shuffle=False)
    assert batch.samples == ["0", "1", "4", "4", "4", "5"]
    assert stream.bad[0].startswith("sample '2' has no answer")
    assert "passed over: sample '3' has no answer" in caplog.text
    # 2 and 3 for place 2, then 3 again
    assert len(stream.bad) == 3 and stream.seen == 9


def test_too_long_is_bad_or_skipped(numbers, processor):
    source = numbers(4, long=[1])
    stream, _ = batches(source, processor, 1, batch=4)
    assert len(stream.bad) == 1 and "'1' has 409 tokens" in stream.bad[0] and stream.skipped == 0
    stream, _ = batches(source, replace(processor, overlong="skip"), 1, batch=4, bad_share=0.0)
    assert not stream.bad and stream.skipped == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_samples_stop_the_run_with_their_names(numbers, processor, workers):
    # one in a thousand is borne, two in the first thousand are not
    batches(numbers(50, bad=[7]), processor, 1, batch=50, bad_share=0.001)
    with pytest.raises(ValueError) as error:
        batches(numbers(50, bad=[7, 30]), processor, 1, batch=50, bad_share=0.001, workers=workers, shuffle=False)
    assert str(error.value).startswith("2 bad and 0 skipped of 52 samples, bad_share is 0.001; repair")
    assert "'7' has no answer" in str(error.value) and "'30' has no answer" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_share_grows_with_what_was_seen(numbers, processor):
    # the one bad sample comes round again: 2 of 1600 is more than one in a thousand, 3 of 3300 is not
    source = numbers(800, bad=[799], images=False)
    with pytest.raises(ValueError, match="2 bad"):
        batches(source, processor, 16, batch=100, bad_share=0.001, shuffle=False)
    source = numbers(1100, bad=[1099], images=False)
    stream, _ = batches(source, processor, 33, batch=100, bad_share=0.001, shuffle=False)
    assert len(stream.bad) == 3
    with pytest.raises(ValueError, match="1 bad"):
        batches(numbers(9, bad=[7]), processor, 1, batch=9, bad_share=0.0)


def test_nothing_usable_at_all(numbers, processor):
    with pytest.raises(ValueError, match="3 bad and 0 skipped of 3 samples"):
        batches(numbers(3, bad=range(3)), processor, 1, batch=2)
    with pytest.raises(ValueError, match=r"0 bad and 3 skipped of 3 samples.* has 409 tokens"):
        batches(numbers(3, long=range(3)), replace(processor, overlong="skip"), 1, batch=2)


def test_exact_counts_every_sample_once(numbers, processor):
    maker = Maker(numbers(5, bad=[1]), processor, exact=True)
    made = [maker[ids] for ids in ([0, 1, 2], [3, 4, 5])]
    trained = Counter(
        sample
        for part in made
        for sample, labels in zip(part.batch.samples, part.batch.labels)
        if (labels != IGNORE).any()
    )
    assert trained == {"0": 1, "2": 1, "3": 1, "4": 1}
    assert [len(part.batch.samples) for part in made] == [3, 3]


def test_packed_rows(numbers, processor):
    maker = Maker(numbers(12, images=False), processor, row=40)
    made = maker[list(range(12))]
    assert made.batch.layout.document is not None and made.batch.ids.shape[1] <= 40
    assert sorted(made.batch.samples, key=int) == [str(i) for i in range(12)]
    assert made.batch.supervised == sum(maker[[i]].batch.supervised for i in range(12))


def test_utilisation(numbers, processor):
    stream, [batch] = batches(numbers(3, images=False), processor, 1, batch=3)
    # answers of 1, 2 and 3 digits after 2 special tokens and "n?", and an end
    assert batch.ids.shape == (3, 8) and stream.utilisation == (6 + 7 + 8) / 24


def test_a_batch_crosses_processes_with_few_file_descriptors(numbers, processor):
    made = Maker(numbers(64), processor)[list(range(64))]
    back = pickle.loads(pickle.dumps(made))
    assert same(made.batch, back.batch)
    sent = made.__getstate__()[0]["batch"].pixels
    assert len(sent) == 1 and sent[0].numel() == 64 * 3 * 4 * 4
    assert pickle.loads(pickle.dumps(Made(None, ["x"]))).bad == ["x"]


def plain_batch(targets: int) -> Batch:
    labels = torch.full((1, 9), IGNORE)
    labels[0, 1 : 1 + targets] = 1
    return Batch(ids=torch.zeros(1, 9, dtype=torch.long), labels=labels, layout=TokenLayout.text(1, 9))


class TestWindows:
    @pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 2), (4, 1)])
    def test_the_mean_over_ranks_and_micro_batches_is_the_loss_per_token(self, world, accumulate):
        counts, sums = [1, 5, 2, 8], [3.0, 7.0, 1.0, 9.0]
        mean = 0.0
        for rank in range(world):
            mine = list(range(rank, 4, world))
            others = sum(counts) - sum(counts[i] for i in mine)
            parts = Windows(
                [plain_batch(counts[i]) for i in mine],
                accumulate=accumulate,
                world=world,
                reduce=lambda total, others=others: total + others,
            )
            mean += sum(sums[i] / batch.targets for i, batch in zip(mine, parts, strict=True)) / (world * accumulate)
        assert mean == pytest.approx(20 / 16)

    def test_each_window_on_its_own(self):
        targets = [batch.targets for batch in Windows([plain_batch(n) for n in (1, 3, 8, 0)], accumulate=2)]
        assert targets == [2.0, 2.0, 4.0, 4.0]


def test_a_maker_travels_to_a_worker_that_was_not_forked(numbers, processor):
    maker = Maker(numbers(4), processor)
    assert same(pickle.loads(pickle.dumps(maker))[[0, 3]].batch, maker[[0, 3]].batch)
