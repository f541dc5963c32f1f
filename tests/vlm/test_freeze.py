"""What trains is what the patterns say; the optimizer's groups; tied parameters."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from gnomon.vlm.encoders.timm import Timm
from gnomon.vlm.freeze import Group, freeze, groups, table
from gnomon.vlm.fusion.add import Add
from gnomon.vlm.geometry.tinygeo import TinyGeo


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "expression"),
    [
        (["connector.*"], r"connector\."),
        (["connector.*", "lm.*"], r"(connector|lm)\."),
        (["*.bias"], r".*\.bias$"),
        (["encoder.model.blocks.1.*"], r"encoder\.model\.blocks\.1\."),
        (["*"], r""),
    ],
)
def test_patterns_are_anchored(tiny, patterns, expression):
    model = tiny()
    freeze(model, patterns)
    assert trainable(model) == {name for name, _ in model.named_parameters() if re.match(expression, name)} != set()


def test_a_frozen_geometry_encoder_is_not_trained(tiny):
    model = tiny()
    model.join(TinyGeo(heads=()), Add(align="pool"))
    freeze(model, ["*"])
    assert {name.split(".")[0] for name in trainable(model)} == {"encoder", "connector", "lm", "fusion"}
    assert trainable(model) == {name for name, _ in model.named_parameters() if not name.startswith("geometry.")}
    with pytest.raises(ValueError, match=r"pattern 'geometry\.\*' matches a frozen geometry encoder alone"):
        freeze(model, ["lm.*", "geometry.*"])
    model.geometry.freeze(False)
    freeze(model, ["geometry.*"])
    assert {name.split(".")[0] for name in trainable(model)} == {"geometry"}


def test_freezing_again_starts_afresh(tiny):
    model = tiny()
    freeze(model, ["lm.*"])
    freeze(model, ["connector.*"])
    assert all(name.startswith("connector.") for name in trainable(model))


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("conector.*", r"connector\.\*"),
        # without the star the pattern is the name of a module, not of a parameter
        ("connector", r"connector\.\*"),
        ("q_proj", r"connector\.\*, encoder\.\*, lm\.\*"),
        ("lm.model.model.layer.0.*", r"lm\.model\.model\.layers\.0\.\*"),
    ],
)
def test_a_pattern_without_a_match_is_an_error(tiny, pattern, nearest):
    model = tiny()
    with pytest.raises(ValueError, match=f"matches no parameter; the nearest are .*{nearest}"):
        freeze(model, ["lm.*", pattern])
    assert trainable(model) == {name for name, _ in model.named_parameters()}


def test_only_what_is_trainable_moves(tiny):
    """Three steps: every trainable tensor changes, everything else keeps each bit, running statistics included."""
    model = tiny(encoder=Timm("tf_efficientnet_lite0", layer=0)).train()
    freeze(model, ["connector.*", "encoder.model.blocks.0.*"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(groups(model, [Group("*", lr=0.1)]))
    for step in range(3):
        torch.manual_seed(step)
        features = model.encode([torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)])
        features.tokens.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {name for name, _ in model.named_buffers() if name.startswith("encoder.model.blocks.0.")}
    assert moved == trainable(model) | statistics
    assert len(statistics) > 0 and any("encoder.model.bn1.running_mean" in name for name in before)


def test_groups_by_hand():
    model = nn.ModuleDict(
        {
            "a": nn.Linear(2, 3),
            "n": nn.LayerNorm(3),
            "e": nn.Embedding(4, 3),
            "c": nn.Conv2d(1, 1, 2),
            "w": nn.ParameterDict({"token": torch.zeros(1, 1, 3), "mixing": torch.ones(3, 3), "gamma": torch.ones(3)}),
            "frozen": nn.Linear(2, 2).requires_grad_(False),
        }
    )
    found = groups(model, [Group(["a.*", "n.*"], lr=1.0, wd=0.1), Group("*", lr=2.0, wd=0.2)])
    names = {id(p): name for name, p in model.named_parameters()}
    assert [(g["lr"], g["weight_decay"], sorted(names[id(p)] for p in g["params"])) for g in found] == [
        (1.0, 0.1, ["a.weight"]),
        (1.0, 0.0, ["a.bias", "n.bias", "n.weight"]),
        (2.0, 0.2, ["c.weight", "w.mixing"]),
        (2.0, 0.0, ["c.bias", "e.weight", "w.gamma", "w.token"]),
    ]
    assert [g["name"] for g in found] == ["a.* n.*", "a.* n.* (no decay)", "*", "* (no decay)"]


def test_groups_of_a_model_hold_every_trainable_parameter_once(tiny):
    model = tiny()
    freeze(model, ["connector.*", "lm.*"])
    found = groups(model, [Group("connector.*", lr=1e-3), Group("lm.*", lr=2e-5, wd=0.1)])
    held = [id(p) for group in found for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in model.parameters() if p.requires_grad}
    torch.optim.AdamW(found)


def test_tied_parameters_belong_to_one_group(tiny):
    model = tiny()
    head, rest = Group("*.lm_head.*", lr=1.0), Group("*", lr=2.0)
    with pytest.raises(ValueError, match=r"embed_tokens.weight and lm\.model\.lm_head.weight are tied"):
        groups(model, [head, rest])
    # either name will do when nothing else claims the other
    freeze(model, ["*.lm_head.*"])
    assert trainable(model) == {"lm.model.model.embed_tokens.weight"}
    assert [len(g["params"]) for g in groups(model, [head])] == [1]
    groups(tiny(lm={"tie_word_embeddings": False}), [head, rest])


def test_trainable_parameters_without_a_group_are_an_error(tiny):
    model = tiny()
    with pytest.raises(ValueError, match=r"encoder\..* is trainable but in no group"):
        groups(model, [Group("lm.*", lr=1.0)])


def test_table_by_hand():
    two = nn.ModuleDict({"x": nn.Linear(3, 1000), "y": nn.Linear(1, 1)})
    model = nn.ModuleDict({"one": nn.Linear(2, 3), "two": two})
    assert freeze(model, ["two.x.*"]).splitlines() == [
        "module  parameters  trainable",
        "one              9          0",
        "two          4,002      4,000",
        "  x          4,000      4,000",
        "  y              2          0",
        "total        4,011      4,000",
    ]


def test_table_counts_tied_parameters_once(tiny):
    model = tiny()
    lines = table(model).splitlines()
    assert lines[-1].split() == ["total", *[f"{sum(p.numel() for p in model.parameters()):,}"] * 2]
    assert [line.split()[0] for line in lines[1:-1]] == ["encoder", "connector", "lm"]
