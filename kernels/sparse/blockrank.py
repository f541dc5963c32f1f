"""BlockRank: an instruction, documents that do not see each other, and a question that sees everything.

Paper:   Scalable In-context Ranking with Generative Models. arXiv:2510.05396
Rule:    causal; a token sees its own block and block 0, the tokens of the last block see all of them
Where:   decoders over many images or documents and one question
Differs: the attention alone: positions that restart in every document and the ranking loss belong to the model
"""

from __future__ import annotations

import torch
from torch import Tensor

from gnomon.kernels import attend
from gnomon.kernels.checks import check_qkv, refuse
from gnomon.kernels.example import Example, Sizes
from gnomon.kernels.mask import Bound, Everything, Expr, Mask
from gnomon.kernels.masks.atoms import k_is, q_is, same
from gnomon.kernels.masks.tokens import Tokens
from gnomon.kernels.op import Op, Result
from gnomon.kernels.sparse.base import AUTO, IMPLS
from gnomon.kernels.typed import typed

RULE: Expr = same("block") | k_is("block", 0) | q_is("asks", 1)
"""On tokens with the fields `block` and `asks` (1 in the last block); to be joined with CAUSAL."""


@typed
def blockrank(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    blocks: Tensor,
    mask: Mask = None,
    scale: float | None = None,
    impl: str = "auto",
) -> Result:
    """q (B,Q,H,D), k (B,K,Hk,D), v (B,K,Hk,V) -> o (B,Q,H,V); the mask is CAUSAL or a stricter rule.

    blocks  (K,) or (B,K) integers: 0 instruction, 1, 2, ... documents, the largest of a row question, -1 padding.
            When there are fewer queries, they are the last ones
    """
    check_qkv("blockrank", q, k, v)
    if mask is None or isinstance(mask, Everything):
        given = "None" if mask is None else "EVERYTHING"
        raise refuse("blockrank", f"mask {given} lets tokens see the future", "pass mask=CAUSAL")
    if not isinstance(mask, Expr):
        raise refuse("blockrank", f"mask of {type(mask).__name__} has no blocks", "pass mask=CAUSAL")
    if blocks.ndim not in (1, 2) or blocks.shape[-1] != k.shape[1]:
        raise refuse("blockrank", f"blocks of {tuple(blocks.shape)} for {k.shape[1]} keys", "give each key its block")
    return OP.run(impl, q, k, v, mask=bind_blocks(RULE & mask, blocks.to(q.device), q.shape[1]), scale=scale)


def bind_blocks(rule: Expr, blocks: Tensor, queries: int) -> Bound:
    """A rule on tokens that know their block."""
    blocks = blocks.reshape(-1, blocks.shape[-1])
    tokens = (
        Tokens.padded(blocks >= 0) if bool((blocks < 0).any()) else Tokens.line(blocks.shape[1], device=blocks.device)
    )
    tokens = tokens.having(block=blocks, asks=blocks == blocks.max(1, keepdim=True).values)
    return rule.on(tokens) if queries == tokens.length else rule.on(tokens.take(slice(-queries, None)), tokens)


def _example(sizes: Sizes) -> Example:
    """Blocks of three tokens."""
    return Example(options={"blocks": torch.arange(sizes.keys) // 3})


OP = Op(
    name="blockrank",
    impls=IMPLS,
    auto=AUTO,
    patterns=frozenset({"CS", "CC"}),
    masks=True,
    handmade=frozenset({"triton"}),
    cost=attend.cost,
    cascade=attend.CASCADE,
    example=_example,
)
