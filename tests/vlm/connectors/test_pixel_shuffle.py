"""PixelShuffle: a grid by hand, and transformers' own SmolVLM code where the grid is square."""

import pytest
import torch
from transformers import Idefics3Config
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from gnomon.vlm.connectors.pixel_shuffle import PixelShuffle
from gnomon.vlm.layout import Features


def shuffled(merge: int, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The block of cells behind each token: the projection is the identity."""
    connector = PixelShuffle(merge)
    width = tokens.shape[2] * merge**2
    connector.setup({"vision": tokens.shape[2]}, width)
    connector.layers[0].weight.data = torch.eye(width)
    return connector({"vision": Features(tokens=tokens, grid=[grid] * len(tokens))}).tokens


def test_blocks_by_hand():
    #  0  1  2  3
    #  4  5  6  7
    cells = torch.arange(8.0).view(1, 8, 1)
    assert shuffled(2, cells, (2, 4)).tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7]]]


@pytest.mark.parametrize("merge", [2, 3])
def test_equals_smolvlm(merge: int):
    config = Idefics3Config(scale_factor=merge)
    config.vision_config.hidden_size, config.text_config.hidden_size = 4, 5
    theirs = Idefics3Connector(config)
    tokens = torch.randn(2, 36, 4)
    assert torch.equal(shuffled(merge, tokens, (6, 6)), theirs.pixel_shuffle(tokens, merge))
    ours = PixelShuffle(merge)
    ours.setup({"vision": 4}, 5)
    ours.layers[0].weight.data = theirs.modality_projection.proj.weight.data
    assert torch.equal(ours({"vision": Features(tokens=tokens, grid=[(6, 6)] * 2)}).tokens, theirs(tokens))


def test_depth_makes_an_mlp():
    connector = PixelShuffle(2, depth=3, bias=True)
    connector.setup({"vision": 4}, 5)
    assert [(m.in_features, m.out_features) for m in connector.layers[::2]] == [(16, 5), (5, 5), (5, 5)]


def test_nothing_to_merge_is_refused():
    with pytest.raises(ValueError, match="merge 0"):
        PixelShuffle(0)
