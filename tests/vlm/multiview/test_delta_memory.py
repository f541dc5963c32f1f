"""The memory of HorizonStream against its rule, one token after the other."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gnomon.kernels.linear.kda import kda
from gnomon.kernels.mask import CAUSAL
from gnomon.vlm.multiview.delta_memory import DeltaMemory, MemoryBlock


def layer(width: int = 16, heads: int = 2) -> DeltaMemory:
    torch.manual_seed(0)
    return DeltaMemory(width, heads)


def literally(made: DeltaMemory, x: torch.Tensor) -> torch.Tensor:
    """(T,C) of one sequence."""
    heads, width = made.heads, x.shape[1] // made.heads
    state, outputs = torch.zeros(heads, width, width), []
    for t in range(len(x)):
        maps = {}
        for name in "qkv":
            taps = getattr(made, f"{name}_conv1d").weight[:, 0]
            inputs = getattr(made, f"{name}_proj")(x[max(0, t - 3) : t + 1])
            maps[name] = F.silu((inputs * taps[:, 4 - len(inputs) :].T).sum(0)).view(heads, width)
        q, k = (maps[name] / (maps[name].square().sum(-1, keepdim=True) + 1e-6).sqrt() for name in "qk")
        softplus = torch.log1p((made.f_proj(x[t]) + made.dt_bias).exp()).view(heads, width)
        keep = (-made.A_log.exp()[:, None] * softplus).exp()
        write = 1 / (1 + (-made.b_proj(x[t])).exp())
        for h in range(heads):
            state[h] = keep[h][:, None] * state[h]
            error = maps["v"][h] - state[h].T @ k[h]
            state[h] = state[h] + write[h] * torch.outer(k[h], error)
        o = torch.stack([state[h].T @ q[h] for h in range(heads)]) / width**0.5
        o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * made.o_norm.weight
        gate = made.g_proj(x[t]).sigmoid().view(heads, width)
        outputs.append(made.o_proj((o * gate).flatten()))
    return torch.stack(outputs)


def test_the_rule():
    made = layer()
    x = torch.randn(1, 21, 16)
    with torch.no_grad():
        made.A_log.fill_(-1.0)
        torch.testing.assert_close(made(x)[0][0], literally(made, x[0]), atol=1e-5, rtol=1e-5)


def test_in_pieces_it_remembers_the_same():
    made, x = layer(), torch.randn(2, 19, 16)
    with torch.no_grad():
        whole, end = made(x)
        memory, parts = None, []
        for piece in x.split([1, 2, 7, 9], dim=1):
            out, memory = made(piece, memory)
            parts.append(out)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    for name, value in end.items():
        torch.testing.assert_close(memory[name], value, atol=1e-5, rtol=1e-5)


def test_orthonormal_keys_are_recalled_exactly():
    """Nothing fades and everything is written: each key finds its value, in whatever order they are asked for."""
    keys = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    values = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    # asking writes nothing: its strength is 0
    k = torch.cat([keys, keys[order]])[None, :, None]
    v = torch.cat([values, torch.zeros(8, 8)])[None, :, None]
    beta = torch.cat([torch.ones(8), torch.zeros(8)])[None, :, None]
    o, _ = kda(k, k, v, g=torch.zeros_like(k), beta=beta, mask=CAUSAL, scale=1.0)
    torch.testing.assert_close(o[0, 8:, 0], values[order], atol=1e-6, rtol=0)


def test_what_fades_at_once_leaves_nothing():
    q, k, v = torch.randn(3, 1, 5, 1, 4, generator=torch.Generator().manual_seed(3))
    o, _ = kda(q, k, v, g=torch.full_like(k, -1e4), beta=torch.ones(1, 5, 1), normalize=True, mask=CAUSAL, scale=1.0)
    unit = [x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k)]
    torch.testing.assert_close(o, (unit[0] * unit[1]).sum(-1, keepdim=True) * v, atol=1e-6, rtol=1e-5)


def test_the_memory_holds_nothing_but_itself():
    """A piece of any length leaves as many bytes, and the piece itself goes."""
    made = layer()
    sizes = set()
    for length in (1, 5, 70):
        _, memory = made(torch.randn(1, length, 16))
        sizes.add(sum(value.untyped_storage().nbytes() for value in memory.values()))
    assert sizes == {4 * (2 * 8 * 8 + 3 * 16 * 3)}


def test_a_block_is_norm_memory_and_mlp():
    torch.manual_seed(0)
    block, x = MemoryBlock(16, 2, scale=0.5), torch.randn(1, 6, 16)
    y = x + 0.5 * block.attn["gla"](block.norm1(x))[0]
    torch.testing.assert_close(block(x)[0], y + 0.5 * block.mlp(block.norm2(y)))
