"""CameraHead: VGGT's cameras, refined in rounds from the camera tokens.

Shapes: B scenes, S views, C width, R rounds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnomon.vlm.multiview import activate
from gnomon.vlm.multiview.block import MLP, Block
from gnomon.vlm.multiview.cross import among
from gnomon.vlm.multiview.pose import SIZE


class CameraHead(nn.Module):
    """Each round reads the last one's pose, which modulates the tokens, and adds to it."""

    def __init__(self, width: int, *, depth: int = 4, heads: int = 16, rounds: int = 4) -> None:
        super().__init__()
        self.rounds = rounds
        self.token_norm = nn.LayerNorm(width)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, SIZE))
        self.embed_pose = nn.Linear(SIZE, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.trunk = nn.ModuleList(Block(width, heads, qk_norm=False) for _ in range(depth))
        self.trunk_norm = nn.LayerNorm(width)
        self.pose_branch = MLP(width, width // 2, SIZE)

    def forward(self, camera: Tensor, *, valid: Tensor) -> Tensor:
        """(B,S,C) of views of which `valid` (B,S) are there, to (R,B,S,9); fields of view are not below 0."""
        camera = self.token_norm(camera)
        plain = F.layer_norm(camera, camera.shape[-1:], eps=1e-6)
        attend = among(valid)
        pose, found = self.empty_pose_tokens.expand(*valid.shape, -1), []
        for index in range(self.rounds):
            # no gradient through the rounds before
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(pose.detach() if index else pose)).chunk(3, -1)
            x = camera + gate * (plain * (1 + scale) + shift)
            for block in self.trunk:
                x = block(x, attend=attend)
            change = self.pose_branch(self.trunk_norm(x))
            pose = pose.detach() + change if index else change
            found.append(activate.camera(pose))
        return torch.stack(found)
