"""SAISA: each layer has its own projector of the encoder's features, whose outputs are keys and values only.

Paper:   SAISA: Towards Multimodal Large Language Models with Both Training and Inference Efficiency. arXiv:2502.02458
Rule:    before layer l visual slots hold proj_l(f) = W2 GELU(W1 f + b1) + b2; through the layer's norm they are keys
         and values for the text behind them; visual tokens have no queries, no attention output, no feed-forward part
Where:   every decoder layer from `start` on, in the prefill; the model's connector is the projector of layer 0
Differs: nothing is computed that is not used: FLOPs per layer are the paper's; `start` and `shared` are ours. What
         stands behind the last layer at a visual position means nothing
"""

from __future__ import annotations

from torch import Tensor, nn

from gnomon.vlm.compute.base import LayerCompute, VisualCompute, first_layer


class SAISA(VisualCompute, nn.Module):
    """start: the first layer that it acts in; the number of layers leaves the model as it is.

    shared: one projector for all layers behind layer 0, instead of one each.
    """

    reads = True

    def __init__(self, start: int = 0, *, shared: bool = False) -> None:
        super().__init__()
        self.start, self.shared = start, shared

    def setup(self, *, vision: int, width: int, depth: int) -> None:
        first_layer(self, "start", self.start, depth)
        # layer 0 gets what the connector makes
        self.begin = max(1, self.start)
        count = max(0, depth - self.begin)
        self.projectors = nn.ModuleList(
            nn.Sequential(nn.Linear(vision, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(min(count, 1) if self.shared else count)
        )

    def layer(self, index: int) -> LayerCompute:
        return LayerCompute() if index < self.start else LayerCompute(attend=False, ffn=0)

    def feed(self, index: int, features: Tensor) -> Tensor | None:
        if index < self.begin:
            return None
        projector = self.projectors[0 if self.shared else index - self.begin]
        return projector(features.to(projector[0].weight.dtype))
