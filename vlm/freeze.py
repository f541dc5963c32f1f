"""What is trained: anchored patterns on parameter names, a table to look at, and the optimizer's groups.

Freezing is `requires_grad` alone. Under ZeRO-3 a parameter's own shape is empty, hence `ds_shape` below.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from gnomon.vlm.geometry.base import GeometryEncoder

_DEPTH = 2
"""Levels of modules that the table goes into."""


@dataclass(frozen=True)
class Group:
    """Parameters whose whole name matches one of the patterns (`connector.*`), with their learning rate and decay."""

    match: str | Sequence[str]
    lr: float
    wd: float = 0.0

    @property
    def patterns(self) -> list[str]:
        return [self.match] if isinstance(self.match, str) else list(self.match)


def freeze(model: nn.Module, train: Sequence[str]) -> str:
    """Train what a pattern matches, but for geometry encoders that are frozen; freeze the rest. Returns the table."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in train:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = ", ".join(_near(pattern, names))
            raise ValueError(f"pattern {pattern!r} matches no parameter; the nearest are {near}")
    model.requires_grad_(False)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if any(fnmatchcase(name, pattern) for pattern in train):
            parameter.requires_grad_(True)
    for part in model.modules():
        if isinstance(part, GeometryEncoder) and part.frozen:
            part.requires_grad_(False)
    moving = [name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter.requires_grad]
    for pattern in train:
        if not any(fnmatchcase(name, pattern) for name in moving):
            raise ValueError(
                f"pattern {pattern!r} matches a frozen geometry encoder alone; leave it out, or set its frozen to false"
            )
    # encoders keep frozen batch norms in evaluation, whichever way the mode was set last
    model.train(model.training)
    return table(model)


def groups(model: nn.Module, given: Sequence[Group]) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: the first Group that matches wins, each split in decayed and not decayed.

    Frozen parameters are in none; a trainable one that no Group matches is an error.
    """
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for names, decays, parameter in _parameters(model):
        if not parameter.requires_grad:
            continue
        matches = {index for name in names if (index := _first(name, given)) is not None}
        if not matches:
            raise ValueError(f"{names[0]} is trainable but in no group; add a group for it or freeze it")
        if len(matches) > 1:
            raise ValueError(f"{' and '.join(names)} are tied but in two groups; let one group match both")
        # what is to decay comes first in its group
        found.setdefault((matches.pop(), not decays), []).append(parameter)
    return [
        {
            "name": f"{' '.join(given[index].patterns)}{' (no decay)' if bare else ''}",
            "params": parameters,
            "lr": given[index].lr,
            "weight_decay": 0.0 if bare else given[index].wd,
        }
        for (index, bare), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def table(model: nn.Module) -> str:
    """Parameters and trainable parameters per module; a module that is trained in part is shown with its parts."""
    rows = [("module", "parameters", "trainable"), *_rows(model, 0, set()), _row("total", list(model.parameters()))]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)


def _rows(module: nn.Module, depth: int, counted: set[int]) -> list[tuple[str, str, str]]:
    rows = []
    parts = [(name, None, [parameter]) for name, parameter in module.named_parameters(recurse=False)]
    parts += [(name, child, list(child.parameters())) for name, child in module.named_children()]
    for name, child, parameters in parts:
        # tied parameters are counted where they come first
        new = [p for p in parameters if id(p) not in counted]
        if not new:
            continue
        rows.append(_row("  " * depth + name, new))
        if child is not None and depth < _DEPTH and len({p.requires_grad for p in new}) == 2:
            rows += _rows(child, depth + 1, counted)
        counted.update(map(id, new))
    return rows


def _row(name: str, parameters: Sequence[nn.Parameter]) -> tuple[str, str, str]:
    return name, f"{sum(map(_size, parameters)):,}", f"{sum(_size(p) for p in parameters if p.requires_grad):,}"


def _parameters(model: nn.Module) -> list[tuple[list[str], bool, nn.Parameter]]:
    """Each parameter with all its names, and whether weight decay is for it."""
    found: dict[int, tuple[list[str], bool, nn.Parameter]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False):
            entry = found.setdefault(id(parameter), ([], _decays(module, name, parameter), parameter))
            entry[0].append(f"{prefix}.{name}" if prefix else name)
    return list(found.values())


def _decays(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Weights that mix channels decay; biases, norms, scales, embeddings, learned tokens and who says so do not."""
    if not getattr(module, "decays", True):
        return False
    if name.endswith("bias") or isinstance(module, nn.Embedding) or "Norm" in type(module).__name__:
        return False
    if isinstance(module, (nn.Linear, _ConvNd)):
        return True
    shape = getattr(parameter, "ds_shape", parameter.shape)
    # class tokens and position tables are (1,...): one row for the whole batch
    return len(shape) > 1 and shape[0] > 1


def _size(parameter: nn.Parameter) -> int:
    return getattr(parameter, "ds_numel", parameter.numel())


def _first(name: str, given: Sequence[Group]) -> int | None:
    return next((i for i, group in enumerate(given) if any(fnmatchcase(name, p) for p in group.patterns)), None)


def _near(pattern: str, names: Sequence[str]) -> list[str]:
    """What may have been meant: patterns for whole modules, or names."""
    pieces = [name.split(".") for name in names]
    modules = {".".join(piece[:k]) + ".*" for piece in pieces for k in range(1, len(piece))}
    top = sorted({f"{piece[0]}.*" for piece in pieces})
    return difflib.get_close_matches(pattern, sorted(modules | set(names)), n=3) or top
