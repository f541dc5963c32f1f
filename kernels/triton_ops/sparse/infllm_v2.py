"""InfLLM-v2 on the block-sparse kernels: a block of queries is one token with all the heads that share its keys."""

from __future__ import annotations

from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.mask import Bound
from gnomon.kernels.op import Result, State
from gnomon.kernels.sparse.infllm_v2 import Plan, compress, dense, past_of, select
from gnomon.kernels.triton_ops.sparse.blocks import sparse
from gnomon.kernels.triton_ops.sparse.lists import whole


def run(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Bound, scale: float, state: State | None, plan: Plan, means: Tensor | None
) -> Result:
    if k.shape[1] <= plan.dense_length:
        return dense(attend.sdpa, q, k, v, mask=mask, scale=scale)
    means = compress(k, plan) if means is None else means
    past = past_of(mask)
    index, listed = select(q, means, past=past, keys=k.shape[1], scale=scale, plan=plan)
    lists = whole(index, listed, block=(q.shape[2] // k.shape[2], plan.block), keys=k.shape[1])
    return sparse(q, k, v, lists=lists, scale=scale, past=past), None
