"""Rates from hand-made records."""

from types import SimpleNamespace

import torch

from gnomon.eval.cost import peak_memory, summarise


def test_summary():
    record = {
        "prompt_tokens": 100,
        "visual_tokens": 64,
        "generated_tokens": 10,
        "seconds_prefill": 0.5,
        "seconds_decode": 1.5,
    }
    cost = summarise(
        [SimpleNamespace(**record), SimpleNamespace(**record | {"generated_tokens": 20, "visual_tokens": 0})]
    )
    assert (cost.items, cost.prompt_tokens, cost.visual_tokens, cost.generated_tokens) == (2, 100, 32, 15)
    assert (cost.seconds, cost.items_per_second, cost.prefill_rate, cost.decode_rate) == (4, 0.5, 200, 10)


def test_no_records_cost_nothing():
    assert summarise([]).items_per_second == 0


def test_peak_memory_of_this_process():
    # this process has torch in it: more than 50 MiB, less than a terabyte
    assert 50 << 20 < peak_memory(torch.device("cpu")) < 1 << 40
