import torch
from torch import nn
from torch.nn import functional as F

from gnomon.vlm.multiview.camera_head import CameraHead

VALID = torch.ones(1, 1, dtype=torch.bool)


def head(**options) -> CameraHead:
    torch.manual_seed(0)
    made = CameraHead(16, depth=2, heads=2, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def test_one_view_is_the_rule_written_out():
    """With one token there is nobody to attend to: attention puts out its value."""
    made, token = head(), torch.randn(16)
    w = made.state_dict()

    def norm(x, name):
        return F.layer_norm(x, (16,), w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    got = made(token[None, None], valid=VALID)
    token = norm(token, "token_norm")
    pose = torch.zeros(9)
    for index in range(4):
        read = pose if index else w["empty_pose_tokens"][0, 0]
        shift, scale, gate = linear(F.silu(linear(read, "embed_pose")), "poseLN_modulation.1").split(16)
        x = token + gate * (F.layer_norm(token, (16,), eps=1e-6) * (1 + scale) + shift)
        for block in ("trunk.0.", "trunk.1."):
            value = linear(norm(x, f"{block}norm1"), f"{block}attn.qkv")[32:]
            x = x + w[f"{block}ls1.gamma"] * linear(value, f"{block}attn.proj")
            hidden = F.gelu(linear(norm(x, f"{block}norm2"), f"{block}mlp.fc1"))
            x = x + w[f"{block}ls2.gamma"] * linear(hidden, f"{block}mlp.fc2")
        pose = pose + linear(F.gelu(linear(norm(x, "trunk_norm"), "pose_branch.fc1")), "pose_branch.fc2")
        expected = torch.cat([pose[:7], pose[7:].clamp(min=0)])
        torch.testing.assert_close(got[index, 0, 0], expected, atol=1e-4, rtol=1e-4)


def test_rounds_pass_no_gradient_on():
    made = head(rounds=2)
    rounds = made(torch.randn(1, 1, 16), valid=VALID)
    rounds[1].sum().backward()
    assert made.empty_pose_tokens.grad is None or not made.empty_pose_tokens.grad.any()
    assert made.pose_branch.fc2.weight.grad.any()
