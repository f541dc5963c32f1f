"""NAAViT: no attention among visual tokens; they are keys and values, and pass the feed-forward part.

Paper:   SAISA: Towards Multimodal Large Language Models with Both Training and Inference Efficiency. arXiv:2502.02458
Rule:    o_v = 0 for visual tokens v; h_v + FFN(norm(h_v)); text tokens attend to all before them as ever
Where:   every decoder layer from `start` on, in the prefill
Differs: rows of queries, attention and output projection are really left out for visual tokens; `start` is ours
"""

from __future__ import annotations

from gnomon.vlm.compute.base import LayerCompute, VisualCompute, first_layer


class NAAViT(VisualCompute):
    """start: the first layer that it acts in; the number of layers leaves the model as it is."""

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def setup(self, *, vision: int, width: int, depth: int) -> None:
        first_layer(self, "start", self.start, depth)

    def layer(self, index: int) -> LayerCompute:
        return LayerCompute(attend=index < self.start)
