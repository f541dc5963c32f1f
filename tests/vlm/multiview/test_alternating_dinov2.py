from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from gnomon.vlm.multiview.alternating_dinov2 import AlternatingDINOv2
from gnomon.vlm.multiview.cross import CrossView, ViewLayout
from gnomon.vlm.multiview.rope2d import positions, tables


class Watcher(CrossView):
    def __init__(self) -> None:
        self.layers = []

    def attend(self, x, q, k, v, *, layer, layout, memory):
        self.layers.append(layer)
        return super().attend(x, q, k, v, layer=layer, layout=layout, memory=memory)


def made(alternate_from: int | None, depth: int = 6) -> AlternatingDINOv2:
    torch.manual_seed(0)
    model = AlternatingDINOv2(16, depth, 2, alternate_from=alternate_from, trained_at=28, swiglu=False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def look(model: AlternatingDINOv2, images: torch.Tensor, cross: CrossView, layers: list[int]) -> dict:
    grid = (images.shape[3] // 14, images.shape[4] // 14)
    layout = ViewLayout(grid, 1, torch.ones(images.shape[:2], dtype=torch.bool))
    options = {"memory": None, "reference": "first", "camera": None}
    return model(images, layout, layers=layers, cross=cross, **options)[0]


@torch.no_grad()
def test_without_alternation_it_is_timms_transformer():
    model, images = made(None), torch.randn(1, 2, 3, 28, 28)
    theirs = VisionTransformer(28, 14, embed_dim=16, depth=6, num_heads=2, init_values=1.0, num_classes=0).eval()
    theirs.norm.eps = 1e-5
    theirs.load_state_dict(model.state_dict())
    states = look(model, images, CrossView(), [5])[5]
    torch.testing.assert_close(model.normed(states)[0], theirs.forward_features(images[0]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_odd_blocks_look_across_from_where_it_begins():
    for alternate_from, count in ((2, 2), (3, 2), (4, 1)):
        cross = Watcher()
        states = look(made(alternate_from), torch.randn(1, 2, 3, 14, 28), cross, list(range(6)))
        assert cross.layers == list(range(count))
        same = [torch.equal(*states[index]) for index in range(6)]
        assert same == [index < alternate_from or index % 2 == 0 for index in range(6)]


@torch.no_grad()
def test_one_view_of_one_patch_is_the_blocks_one_after_the_other():
    """Then looking across is looking within, and both kinds of positions are the same."""
    model, images = made(2), torch.randn(1, 1, 3, 14, 14)
    x = model.embed(images[0])
    rope = tables(positions((1, 1), 1), 8)
    for index, block in enumerate(model.blocks):
        if index == 2:
            x = torch.cat([model.camera_token[:, :1], x[:, 1:]], dim=1)
        x = block(x, rope=rope if index >= 2 else None)
    torch.testing.assert_close(look(model, images, CrossView(), [5])[5][1][0], x, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_across_views_patches_have_no_place():
    """Swapped columns of a view swap columns of what a block across views puts out; within views they do not."""
    model, layout = made(0, depth=2), ViewLayout((1, 2), 1, torch.ones(1, 2, dtype=torch.bool))
    x = torch.randn(1, 2, 3, 16)
    swapped = x[:, :, [0, 2, 1]]
    whole = tables(positions((1, 2), 1).clamp(max=1).repeat(2, 1), 8)
    attend = CrossView().at(0, layout, None)
    one, two = (model.blocks[1](y.flatten(1, 2), rope=whole, attend=attend).view(x.shape) for y in (x, swapped))
    torch.testing.assert_close(two, one[:, :, [0, 2, 1]], atol=1e-5, rtol=1e-5)
