"""Identity: the encoder's tokens as they are.

Origin:  https://github.com/huggingface/transformers (Qwen2.5-VL)
Rule:    y = x
Where:   between a vision encoder that makes tokens of the language model's width itself and the language model
Differs: nothing
"""

from __future__ import annotations

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.layout import Features


class Identity(Bridge):
    def setup(self, widths: dict[str, int], out: int) -> None:
        if widths["vision"] != out:
            raise ValueError(
                f"the encoder's tokens are {widths['vision']} wide and the language model's {out}: nothing to pass on "
                "unchanged; use a linear connector"
            )

    def forward(self, parts: dict[str, Features]) -> Features:
        return parts["vision"]
