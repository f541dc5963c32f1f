"""GSTVLA: patches as Gaussians in space, pooled into tokens that the language model gets besides the image's.

Paper:   GST-VLA: Structured Gaussian Spatial Tokens for 3D Depth-Aware Vision-Language-Action Models
Rule:    mu = (a D + b) K^-1 [u, v, 1] + offset(f), sigma = exp(s(f)), alpha = sigmoid(o(f)), f = MLP(patch feature);
         t = W [feature; sin, cos of 2^l pi mu; mu, log sigma, alpha]; queries attend to alpha t, pass a feed-forward
         block and a linear map. Loss: scale-invariant log error of the depth that the Gaussians render along patch rays
Where:   behind the sample's images, as `tokens` more tokens; the images' own stay as they are
Differs: steps 1 to 5 without actions; all views of a scene go into one set, in the first one's frame; opacity comes
         from the feature alone and not from a pyramid; what depth is unknown of is not looked at
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnomon.vlm.fusion.base import Attention, Fusion, Learned, Scene, Told, heads_of
from gnomon.vlm.layout import Features
from gnomon.vlm.multiview.align import pool
from gnomon.vlm.multiview.losses.dense import scale_invariant_log
from gnomon.vlm.multiview.rays import compose, invert, moved


class GSTVLA(Fusion):
    """octaves: of the waves that say where. extent: length that counts as 1 there. weigh: weight of the depth loss."""

    needs = frozenset({"depth", "camera"})
    sees = True

    def __init__(
        self,
        *,
        tokens: int = 128,
        width: int = 512,
        heads: int = 8,
        octaves: int = 6,
        extent: float = 1.0,
        weigh: float = 0.1,
        balance: float = 0.5,
    ) -> None:
        super().__init__()
        if min(tokens, width, octaves) < 1 or extent <= 0 or weigh < 0:
            raise ValueError(
                f"GSTVLA: tokens {tokens}, width {width}, octaves {octaves}, extent {extent} must be positive, weigh "
                f"{weigh} not negative; correct them"
            )
        self.extra, self.width, self.heads = tokens, width, heads
        self.octaves, self.extent, self.weigh, self.balance = octaves, extent, weigh, balance

    def setup(self, widths: dict[str, int], out: int) -> None:
        width, seen = self.width, widths["encoder"]
        self.affine = _Affine()
        self.body = nn.Sequential(nn.Linear(seen, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.offset, self.spread, self.opacity = nn.Linear(width, 3), nn.Linear(width, 3), nn.Linear(width, 1)
        for layer, bias in ((self.offset, 0.0), (self.spread, 0.0), (self.opacity, 0.5)):
            nn.init.constant_(layer.bias, bias)
        nn.init.zeros_(self.offset.weight)
        self.join = nn.Linear(seen + 6 * self.octaves + 7, width)
        self.queries = Learned(self.extra, width, scale=0.02)
        self.attention = Attention(width, heads_of(self, self.heads, width))
        self.norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, widths["lm"]), nn.LayerNorm(widths["lm"]))

    def forward(self, parts: dict[str, Features]) -> Features:
        return parts["vision"]

    def scene(self, scene: Scene) -> Told:
        depth, rays, there = patches(scene)
        seen = scene.vision.to(self.join.weight.dtype)
        hidden = self.body(seen)
        # in each camera's own frame: along the patch's ray, and off it
        mu = self.affine(depth)[..., None] * rays + self.offset(hidden).float()
        log_sigma, alpha = self.spread(hidden).float(), self.opacity(hidden).float().sigmoid()
        losses = {}
        if self.training and self.weigh:
            # other views have no patches to learn from, and this is most of the work
            shown = scene.shown
            found = render(*(x[shown][None] for x in (mu, log_sigma.exp(), alpha[..., 0] * there, rays)))
            rendered = depth.masked_scatter(shown[..., None].expand_as(depth), found)
            losses["depth"] = self.weigh * scale_invariant_log(rendered, depth, there, balance=self.balance)
        world = to_first(mu, scene)
        waves = world[..., None] / self.extent * math.pi * 2.0 ** torch.arange(self.octaves, device=world.device)
        known = [waves.sin().flatten(-2), waves.cos().flatten(-2), world, log_sigma, alpha]
        tokens = alpha.to(seen.dtype) * self.join(torch.cat([seen, *(x.to(seen.dtype) for x in known)], -1))
        pooled = self.pool(tokens.flatten(1, 2), there.flatten(1))
        return Told(pooled, losses=losses)

    def pool(self, tokens: Tensor, there: Tensor) -> Tensor:
        """(B,K,width) Gaussians, and which are there, to (B,extra,lm)."""
        # of none at all, all of them, which are nought: a softmax needs something to look at
        tokens, there = torch.where(there[..., None], tokens, 0), there | ~there.any(1, keepdim=True)
        query = self.queries(len(tokens))
        said = self.attention(query, tokens, tokens, there)
        query = self.norm(query + said)
        return self.out(query + self.feed(query))


class _Affine(nn.Module):
    """Corrects depths: a D + b."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, depth: Tensor) -> Tensor:
        return self.weight * depth + self.bias


def patches(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Of each cell of views that are images: mean depth (B,S,M), ray (B,S,M,3) with z = 1, whether a depth is known."""
    output, (h, w) = scene.output, scene.output.grid
    depth = output.depth.float()
    good = torch.isfinite(depth) & (depth > 0)
    if output.depth_confidence is not None:
        good = good & (output.depth_confidence > 0)
    size = tuple(depth.shape[2:])
    flat = torch.where(good, depth, 0).flatten(0, 1).flatten(1)[..., None]
    mean = pool(flat, size, (h, w), good.flatten(0, 1).flatten(1)).unflatten(0, depth.shape[:2])[..., 0]
    there = (mean > 0) & scene.shown[..., None] & output.valid[..., None]
    rows, columns = (
        (torch.arange(n, device=depth.device) + 0.5) * side / n for n, side in zip((h, w), size, strict=True)
    )
    y, x = (axis.flatten() for axis in torch.meshgrid(rows, columns, indexing="ij"))
    lens = output.intrinsics.float()[:, :, None]
    # a padded view has no lens
    focal = torch.where(lens[..., [0, 1], [0, 1]] == 0, 1, lens[..., [0, 1], [0, 1]])
    rays = (torch.stack([x, y], -1) - lens[..., [0, 1], [2, 2]]) / focal
    return mean, torch.cat([rays, torch.ones_like(rays[..., :1])], -1), there


def to_first(points: Tensor, scene: Scene) -> Tensor:
    """(B,S,M,3) from each camera's frame to the first one's."""
    pose = scene.output.extrinsics.float()
    return moved(points[:, :, None], compose(pose[:, :1], invert(pose)))[:, :, 0]


def render(mu: Tensor, sigma: Tensor, alpha: Tensor, rays: Tensor) -> Tensor:
    """(B,S,M) depth along each ray: Gaussians of its view blended front to back, by how much of each the ray meets."""
    order = mu[..., 2].argsort(-1)
    mu, sigma = (x.gather(2, order[..., None].expand_as(x)) for x in (mu, sigma))
    alpha, depth = alpha.gather(2, order), mu[..., 2]
    # (B,S,rays,Gaussians,2): how far the ray passes by at the Gaussian's depth
    away = (mu[:, :, None, :, :2] - depth[:, :, None, :, None] * rays[:, :, :, None, :2]) / sigma[:, :, None, :, :2]
    met = alpha[:, :, None] * (-0.5 * away.square().sum(-1)).exp()
    clear = torch.cumprod(1 - met, -1)
    weight = met * torch.cat([torch.ones_like(clear[..., :1]), clear[..., :-1]], -1)
    return (weight * depth[:, :, None]).sum(-1) / weight.sum(-1).clamp_min(1e-6)
