"""Blocks: a walk over a vision transformer's blocks, between whose halves tokens may leave or merge.

Origin:  https://github.com/facebookresearch/ToMe (where to merge, and proportional attention)
Rule:    x <- x + attend(x) with log size_j added to the logits of column j; x <- M x; x <- x + feed(x)
Where:   inside the vision encoder; timm's VisionTransformer, and CLIP, SigLIP and DINOv2 of transformers
Differs: the models' own modules are called, none is replaced; class and register tokens always stay

Shapes: I images, P class and register tokens, N other tokens, H heads, D head width, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from gnomon.vlm.encoders.base import Encoder
from gnomon.vlm.executor import CHOOSING, reduce_images
from gnomon.vlm.layout import Features
from gnomon.vlm.plan import ReductionPlan
from gnomon.vlm.ragged import by_count, together
from gnomon.vlm.reduction.base import ReduceContext, Stage, TokenReducer
from gnomon.vlm.scores import Projected
from gnomon.vlm.taps import NAMES, read

if TYPE_CHECKING:
    from timm.models.vision_transformer import Block as TimmBlock
    from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True)
class Block:
    """The two halves of a block. project: to queries, keys and values (I,H,T,D). add: their attention to the stream."""

    project: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    add: Callable[[Tensor, Tensor], Tensor]
    feed: Callable[[Tensor], Tensor]
    dropout: float = 0.0

    def attend(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Projected]:
        """The stream after the first half, and what attended; `size` (I,T) is how many cells each token stands for."""
        queries, keys, values = self.project(x)
        # a token that stands for n cells is attended to as if it were there n times
        bias = None if size is None else size.log()[:, None, None].to(queries.dtype)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, dropout_p=self.dropout)
        return self.add(x, out.transpose(1, 2).flatten(2)), Projected(queries, keys, queries.shape[3] ** -0.5)


@dataclass(frozen=True)
class Tower:
    """embed: pixels to the P + N tokens that the first block gets. prefix: P."""

    embed: Callable[[Tensor], Tensor]
    blocks: list[Block]
    norm: nn.Module
    prefix: int
    has_cls: bool


def tower_of(encoder: nn.Module) -> Tower | None:
    """An encoder taken apart; None for one whose blocks this module does not know."""
    model = getattr(encoder, "model", None)
    if _plain(model):
        return _timm(encoder, model)
    kind = getattr(getattr(encoder, "config", None), "model_type", None)
    if kind in ("clip_vision_model", "siglip_vision_model"):
        return _clip(encoder)
    return _dinov2(encoder) if kind in ("dinov2", "dinov2_with_registers") else None


def reduced(
    encoder: Encoder,
    normal: Tensor,
    pixels: Tensor,
    reducers: Sequence[TokenReducer],
    want: frozenset[str] = frozenset(),
) -> Features:
    """What the encoder makes of images (I,3,H,W) while reducers act before and between its blocks.

    normal: the pixels as the encoder gets them. pixels: in 0..1, for the reducers. want: see Encoder; scores are of the
    tokens that reach the last block, each counted once, and of merged ones the mean.
    """
    tower, side = tower_of(encoder), encoder.stride
    assert tower is not None
    grid = (normal.shape[2] // side, normal.shape[3] // side)
    embedded = tower.embed(normal)
    prefix, tokens = embedded[:, : tower.prefix], embedded[:, tower.prefix :]
    features = Features(tokens, [grid] * len(tokens))
    names = [str(i) for i in range(len(tokens))]
    for reducer in (r for r in reducers if r.stage is Stage.PIXEL):
        image = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
        features = reduce_images(reducer, features, names=names, pixels=pixels, image=image)
    acting = [r for r in reducers if r.stage is Stage.VIT_LAYER]
    return together([(at, _walk(tower, prefix[at], part, acting, want)) for at, part in by_count(features)])


def _walk(
    tower: Tower, prefix: Tensor, features: Features, reducers: Sequence[TokenReducer], want: frozenset[str]
) -> Features:
    """Images with equally many tokens through all blocks."""
    x, front = torch.cat([prefix, features.tokens], 1), tower.prefix
    cells, scores = _Cells(features), {}
    for i, block in enumerate(tower.blocks):
        x, seen = block.attend(x, F.pad(cells.size, (front, 0), value=1.0) if cells.merged else None)
        if i == len(tower.blocks) - 1 and want & NAMES:
            scores = read([seen], want & NAMES, cells=x.shape[1] - front, prefix=front, cls=tower.has_cls)
        keys = seen.keys[:, :, front:].detach().mean(1)
        for reducer in (r for r in reducers if not r.layers or i in r.layers):
            ctx = ReduceContext(
                feats=x[:, front:],
                names=[str(k) for k in range(len(x))],
                cell=cells.place,
                image=torch.zeros_like(cells.place[..., 0]),
                keys=keys,
                layer=i,
                step=i,
                steps=len(tower.blocks),
                full=cells.full,
                size=cells.size,
                prefix=front,
            )
            with record_function(CHOOSING):
                plan = reducer.plan(ctx)
            if plan.weight is None and plan.length == x.shape[1] - front:
                continue
            x = torch.cat([x[:, :front], plan.apply(x[:, front:])], 1)
            keys, scores = plan.apply(keys), {name: _carried(plan, score) for name, score in scores.items()}
            cells.follow(plan)
        x = block.feed(x)
    x = tower.norm(x)
    found = replace(features, tokens=x[:, front:], cls=x[:, 0] if tower.has_cls else None, **scores)
    return cells.in_order(found) if cells.merged else found


def _carried(plan: ReductionPlan, score: Tensor) -> Tensor:
    return plan.apply(score) if score.dim() == 3 else plan.apply(score[..., None])[..., 0]


class _Cells:
    """Which of the first block's tokens each token stands for, while plans are carried out one after the other."""

    def __init__(self, features: Features) -> None:
        groups, self.full = features.tokens.shape[:2]
        device = features.tokens.device
        self.owner = torch.arange(self.full, device=device).expand(groups, -1)
        self.size = torch.ones(groups, self.full, device=device)
        self.place = features.cells().round().long()
        self.merged = False

    def follow(self, plan: ReductionPlan) -> None:
        assert plan.count is None and plan.extra is None, "inside the encoder, all images keep equally many tokens"
        into = plan.owner(self.size.shape[1])
        self.owner = torch.where(self.owner < 0, -1, into.gather(1, self.owner.clamp(min=0)))
        # what goes nowhere is counted behind the last token, and cut off
        behind = torch.where(into < 0, plan.length, into)
        self.size = self.size.new_zeros(len(into), plan.length + 1).scatter_add(1, behind, self.size)[:, :-1]
        self.place = self.place.gather(1, plan.anchor[..., None].expand(-1, -1, 2))
        self.merged = True

    def in_order(self, features: Features) -> Features:
        """The last block's tokens in the order of their first cells, with one plan for all that happened."""
        plan = ReductionPlan.merge(self.owner, self.size.shape[1])
        order = ReductionPlan.keep(plan.anchor.argsort(1))
        plan = plan.then(order, self.full)
        if features.plan is not None:
            plan = features.plan.then(plan, features.grid[0][0] * features.grid[0][1])
        return replace(replace(features, plan=None).reduced(order), plan=plan)


def _timm(encoder: nn.Module, model: VisionTransformer) -> Tower:
    def embed(pixels: Tensor) -> Tensor:
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(pixels))))

    norm = model.norm if encoder.last else nn.Identity()
    blocks = [_timm_block(block) for block in model.blocks[: encoder.index + 1]]
    return Tower(embed, blocks, norm, model.num_prefix_tokens, model.cls_token is not None)


def _timm_block(block: TimmBlock) -> Block:
    attn = block.attn

    def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = attn.qkv(block.norm1(x)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        return attn.q_norm(queries), attn.k_norm(keys), values

    def add(x: Tensor, out: Tensor) -> Tensor:
        return x + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(attn.norm(out)))))

    def feed(x: Tensor) -> Tensor:
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    return Block(project, add, feed, attn.attn_drop.p if block.training else 0.0)


def _plain(model: object) -> bool:
    """Whether it is timm's vision transformer with its ordinary blocks."""
    # here and not above: the model imports this file, and what needs no timm should not wait for it
    from timm.layers import Attention
    from timm.models.vision_transformer import Block as TimmBlock
    from timm.models.vision_transformer import VisionTransformer

    return isinstance(model, VisionTransformer) and all(
        type(block) is TimmBlock and type(block.attn) is Attention and getattr(block.attn, "gate", None) is None
        for block in model.blocks
    )


def _clip(encoder: nn.Module) -> Tower:
    """CLIP and SigLIP: the same block, but CLIP has a norm before the first one."""
    tower = encoder.tower

    def embed(pixels: Tensor) -> Tensor:
        hidden = tower.embeddings(pixels, interpolate_pos_encoding=True)
        return tower.pre_layrnorm(hidden) if hasattr(tower, "pre_layrnorm") else hidden

    def taken_apart(layer: nn.Module) -> Block:
        attn = layer.self_attn
        linears = (attn.q_proj, attn.k_proj, attn.v_proj)
        return Block(
            project=_projector(layer.layer_norm1, linears, encoder.config.num_attention_heads),
            add=lambda x, out: x + attn.out_proj(out),
            feed=lambda x: x + layer.mlp(layer.layer_norm2(x)),
            dropout=encoder.config.attention_dropout if layer.training else 0.0,
        )

    # without a class token, the last norm is on the patch tokens' way
    norm = nn.Identity() if encoder.prefix else tower.post_layernorm
    blocks = [taken_apart(layer) for layer in tower.encoder.layers]
    return Tower(embed, blocks, norm, encoder.prefix, encoder.prefix > 0)


def _dinov2(encoder: nn.Module) -> Tower:
    tower = encoder.tower

    def taken_apart(layer: nn.Module) -> Block:
        attn = layer.attention
        if hasattr(attn, "q_proj"):
            linears, last = (attn.q_proj, attn.k_proj, attn.v_proj), attn.o_proj
        else:
            # transformers 4 has other names, one level deeper
            inner = attn.attention
            linears, last = (inner.query, inner.key, inner.value), attn.output.dense
        return Block(
            project=_projector(layer.norm1, linears, encoder.config.num_attention_heads),
            add=lambda x, out: x + layer.drop_path(layer.layer_scale1(last(out))),
            feed=lambda x: x + layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(x)))),
            dropout=encoder.config.attention_probs_dropout_prob if layer.training else 0.0,
        )

    blocks = [taken_apart(layer) for layer in tower.encoder.layer]
    return Tower(tower.embeddings, blocks, tower.layernorm, encoder.prefix, True)


def _projector(
    norm: nn.Module, linears: Sequence[nn.Module], heads: int
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    def project(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = norm(x)
        queries, keys, values = (linear(x).unflatten(2, (heads, -1)).transpose(1, 2) for linear in linears)
        return queries, keys, values

    return project
