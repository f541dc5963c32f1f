"""SLA on the block-sparse kernels; the choice of blocks and the sums over them are matrix products of PyTorch's."""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.kernels.op import Result, State
from gnomon.kernels.sparse.sla import Plan, classify, moments
from gnomon.kernels.triton_ops.sparse.blocks import sparse
from gnomon.kernels.triton_ops.sparse.lists import whole


def run(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, scale: float, state: State | None, weight: Tensor | None,
    bias: Tensor | None, plan: Plan, feature: str,
) -> Result:  # fmt: skip
    critical, marginal = classify(q, k, plan)
    every = torch.ones((), dtype=torch.bool, device=q.device)
    lists = whole(critical, every, block=(plan.block_q, plan.block_k), keys=k.shape[1])
    if weight is None:
        return sparse(q, k, v, lists=lists, scale=scale), None
    features, moment, norm = moments(q, k, v, marginal, weight, plan, feature)
    o = sparse(q, k, v, lists=lists, scale=scale, feature=features.to(q.dtype), moments=(moment, norm))
    return o if bias is None else o + bias.to(o.dtype), None
