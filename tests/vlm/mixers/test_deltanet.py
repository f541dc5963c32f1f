"""DeltaNet: the layer in a loop over its tokens."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.vlm.layout import TokenLayout
from gnomon.vlm.mixers.deltanet import DeltaNet


@torch.no_grad()
def test_the_rule_token_by_token(seated, x):
    mixer = seated(DeltaNet(negative=True, taps=3))
    found, _ = mixer(x, TokenLayout.text(2, 9))
    for row in range(2):
        sides = {}
        for name, heads in (("q", 4), ("k", 2), ("v", 2)):
            y = getattr(mixer, f"{name}_proj")(x[row])
            weight = mixer.convs[name].weight
            mixed = [sum(weight[:, 2 - i] * y[t - i] for i in range(3) if t >= i) for t in range(9)]
            sides[name] = F.silu(torch.stack(mixed)).view(9, heads, 6)
        beta = 2 * torch.sigmoid(mixer.strength(x[row]))
        memory, outputs = torch.zeros(4, 6, 6), []
        for t in range(9):
            heads = []
            for head in range(4):
                query, key = (F.normalize(sides[n][t, h], dim=0) for n, h in (("q", head), ("k", head // 2)))
                error = sides["v"][t, head // 2] - key @ memory[head]
                memory[head] += beta[t, head] * torch.outer(key, error)
                o = query @ memory[head] * 6**-0.5
                heads.append(o * torch.rsqrt(o.square().mean() + 1e-5) * mixer.norm.weight)
            outputs.append(mixer.o_proj(torch.cat(heads)))
        torch.testing.assert_close(found[row], torch.stack(outputs), atol=1e-4, rtol=1e-3)
