"""Which heads look at images: sums of attention against the model's own attention matrices."""

from __future__ import annotations

import pytest
import torch
import yaml

from gnomon.cli.main import main
from gnomon.data.collate import collate
from gnomon.data.sources.diagrams.source import Diagrams
from gnomon.eval.calibrate import attention_shares, inactive
from gnomon.eval.session import open_model


@pytest.fixture(scope="module")
def loaded(model_dir):
    return open_model(str(model_dir), device="cpu")


@torch.no_grad()
def test_shares_are_sums_of_the_attention_matrix(loaded):
    """Against the matrices that transformers returns from its eager attention."""
    source = Diagrams(count=3, size=(112, 112))
    examples = [loaded.processor.example(source[i], train=False) for i in range(3)]
    visual, other = attention_shares(loaded.model, examples)
    hf = loaded.model.lm.model
    for s, example in enumerate(examples):
        batch = collate([example], pad_id=0)
        embeds, layout, _ = loaded.model.embed(batch)
        hf.set_attn_implementation("eager")
        matrices = hf(inputs_embeds=embeds, use_cache=False, output_attentions=True).attentions
        hf.set_attn_implementation("sdpa")
        for layer, matrix in enumerate(matrices):
            on_image = matrix[0][..., layout.is_cell[0]].sum((-1, -2))
            torch.testing.assert_close(visual[s, layer], on_image, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(other[s, layer], matrix[0].sum((-1, -2)) - on_image, rtol=1e-4, atol=1e-4)


def test_the_lowest_threshold_that_silences_enough_heads():
    visual = torch.zeros(5, 4, 2)
    visual[:, 2] = torch.tensor([0.1, 0.4])
    visual[:, 3] = torch.tensor([0.2, 0.3])
    other = torch.ones(5, 4, 2)
    assert inactive(visual, other, share=1 / 8)[0] == [[], [], [0], []]
    found, threshold = inactive(visual, other, share=3 / 8)
    assert found == [[], [], [0], [0, 1]] and threshold == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"share 0.6 is not in \(0, 0.5\]"):
        inactive(visual, other, share=0.6)


@pytest.mark.parametrize("share", ["0", "2", "nan"])
def test_a_wrong_share_is_told_before_any_sample_is_read(capsys, monkeypatch, tmp_path, share):
    monkeypatch.setattr("gnomon.eval.calibrate.attention_shares", lambda *_: pytest.fail("read"))
    assert main(["calibrate", "demo", "--share", share, "--out", str(tmp_path / "x.yaml")]) == 2
    err = capsys.readouterr().err
    assert f"inactive share {share} is not in (0, 0.333333]" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_questions_of_a_file_are_refused(capsys):
    assert main(["calibrate", "demo", "--share", "0.1", "--benchmarks", "diagrams,rows"]) == 2
    said = "gnomon: benchmark 'rows' asks what a file holds, and none can be given here; use diagrams or scenes\n"
    assert capsys.readouterr().err == said


def test_command_writes_an_overlay_that_a_model_takes(tmp_path, capsys):
    out = tmp_path / "yopo.yaml"
    assert main(["calibrate", "demo", "--share", "0.1", "--samples", "4", "--out", str(out)]) == 0
    options = yaml.safe_load(out.read_text())["model"]["compute"]["init_args"]
    model = open_model("demo", device="cpu").model
    from gnomon.vlm.compute.yopo import YOPO

    model.use(YOPO(window=None, **options))
    assert "heads are inactive at a threshold of" in capsys.readouterr().out
