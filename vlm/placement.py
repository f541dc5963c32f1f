"""Which layers of a model something goes into, as YAML says it."""

from __future__ import annotations

import re
from collections.abc import Sequence

Layers = Sequence[int] | str
"""A list; "all"; or a hybrid: "3 of 4", also written "3:1", is three layers with it, one without, and so on."""


def chosen(layers: Layers, depth: int, *, what: str) -> list[int]:
    """The layers, of a model that has so many."""
    if isinstance(layers, (str, int)):
        if layers == "all":
            return list(range(depth))
        hybrid = re.fullmatch(r"(\d+)(:| of )(\d+)", str(layers))
        taken, every = (int(hybrid[1]), int(hybrid[3])) if hybrid else (0, 0)
        every += taken if hybrid and hybrid[2] == ":" else 0
        if not 0 < taken <= every:
            # without quotes, 3:1 is a number to YAML
            raise ValueError(
                f'{what}: layers {layers!r} are none; use all, such as "3 of 4" (in quotes "3:1"), or a list'
            )
        return [index for index in range(depth) if index % every < taken]
    wrong = [index for index in layers if not 0 <= index < depth]
    if wrong or len(set(layers)) < len(layers) or not layers:
        raise ValueError(f"{what}: layers {list(layers)} are not some of 0 to {depth - 1}, each once; correct the list")
    return sorted(layers)
