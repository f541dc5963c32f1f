from itertools import islice

import pytest
import torch
from lightning import LightningModule, Trainer

from gnomon.data.module import DataModule
from gnomon.data.processor import Processor
from gnomon.vlm.layout import IGNORE, ImageSpec


@pytest.fixture
def processor(demo_tokenizer):
    return Processor(demo_tokenizer, "demo", ImageSpec((4, 4), 2))


def ids(batches, count):
    return [batch.samples for batch in islice(batches, count)]


def test_a_killed_run_resumes_with_the_same_samples(numbers, processor):
    def start(workers):
        data = DataModule(numbers(101), batch_size=2, workers=workers, seed=3)
        data.attach(processor, accumulate=2)
        return data

    whole = ids(start(0).train_dataloader(), 200)
    data = start(2)
    data.load_state_dict({"step": 37, "seed": 3, "samples": 101})
    assert ids(data.train_dataloader(), 26) == whole[74:100]


def test_a_resume_on_more_ranks_takes_the_same_samples_in_each_step(numbers, processor):
    def step_content(world, step):
        content = []
        for rank in range(world):
            data = DataModule(numbers(50), batch_size=2, seed=1)
            data.attach(processor, world=world, rank=rank, accumulate=4 // world, reduce=lambda total: total)
            data.start_step = step
            content += [s for samples in ids(data.train_dataloader(), 4 // world) for s in samples]
        return sorted(content)

    for step in (0, 5, 6, 12):
        assert step_content(1, step) == step_content(2, step) == step_content(4, step)


def test_limits_come_from_the_data_module(numbers, processor):
    data = DataModule(numbers(3, long=[1]), batch_size=3, max_length=50, overlong="truncate", pack=60)
    data.attach(processor)
    batch = next(iter(data.train_dataloader()))
    assert batch.layout.document is not None and batch.ids.shape[1] <= 60
    assert sorted(batch.samples) == ["0", "1", "2"]
    # one token of "<|end|>" and 1 or 3 digits; the cut sample has 50 - 8 places for digits
    assert batch.supervised == 2 + 4 + 42 and batch.targets == 48


def test_the_source_may_change_between_steps(numbers, processor):
    data = DataModule(numbers(9), batch_size=3)
    data.attach(processor)
    assert max(int(s) for samples in ids(data.train_dataloader(), 3) for s in samples) == 8
    data.train_source, data.start_step = numbers(4), 3
    assert max(int(s) for samples in ids(data.train_dataloader(), 3) for s in samples) == 3
    assert data.steps_per_epoch == 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_counts_each_sample_once_and_is_even(numbers, processor, world):
    found, lengths = [], set()
    for rank in range(world):
        data = DataModule(numbers(3), numbers(11), batch_size=2)
        data.attach(processor, world=world, rank=rank, reduce=int)
        batches = list(data.val_dataloader())
        lengths.add(len(batches))
        for batch in batches:
            found += [s for s, labels in zip(batch.samples, batch.labels) if (labels != IGNORE).any()]
    assert sorted(found, key=int) == [str(i) for i in range(11)] and len(lengths) == 1


def test_user_mistakes(numbers, processor):
    with pytest.raises(ValueError, match="pack 100 is shorter than max_length 2048"):
        DataModule(numbers(3), batch_size=1, pack=100)
    with pytest.raises(ValueError, match="2 ranks need a `reduce`"):
        DataModule(numbers(3), batch_size=1).attach(processor, world=2)
    with pytest.raises(ValueError, match="batch 0 is too small"):
        data = DataModule(numbers(3), batch_size=0)
        data.attach(processor)
        data.train_dataloader()


class Recorder(LightningModule):
    """Notes the samples of each step instead of learning from them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[str]] = []
        self.validated = 0

    def training_step(self, batch):
        self.seen.append(batch.samples)
        return self.weight.sum() * batch.supervised / batch.targets

    def validation_step(self, batch):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_under_the_trainer(numbers, processor, tmp_path):
    def fit(steps, checkpoint=None):
        data = DataModule(numbers(20), numbers(5), batch_size=2, seed=4)
        data.attach(processor, accumulate=2)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            accumulate_grad_batches=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=1,
        )
        model = Recorder()
        trainer.fit(model, data, ckpt_path=checkpoint)
        return model, trainer

    whole, _ = fit(6)
    first, trainer = fit(4)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    second, _ = fit(6, tmp_path / "a.ckpt")
    assert first.seen + second.seen == whole.seen and len(whole.seen) == 12
    assert whole.validated == 1
