import torch

from gnomon.vlm.multiview.dpt import DPT
from gnomon.vlm.multiview.dual_dpt import DualDPT

OPTIONS = {"patch": 14, "features": 8, "channels": (4, 8, 8, 8)}


@torch.no_grad()
def test_depth_is_a_plain_dpts_and_rays_have_a_chain_of_their_own():
    torch.manual_seed(0)
    dual, plain = DualDPT(16, **OPTIONS), DPT(16, 2, **OPTIONS, rectified=False)
    plain.load_state_dict({name: value for name, value in dual.state_dict().items() if "_aux" not in name})
    layers = [torch.randn(1, 2, 6, 16) for _ in range(4)]
    depth, rays = dual(*layers, size=(28, 42))
    assert depth.shape == (1, 2, 28, 42, 2) and rays.shape == (1, 2, 16, 24, 7)
    assert torch.equal(depth, plain(*layers, size=(28, 42)))
    dual.scratch.refinenet3_aux.out_conv.bias.add_(1)
    again, moved = dual(*layers, size=(28, 42))
    assert torch.equal(again, depth) and not torch.equal(moved, rays)


def test_the_exits_share_one_norm():
    exits = DualDPT(16, **OPTIONS).scratch.output_conv2_aux
    assert len(exits) == 4 and len({id(part[2]) for part in exits}) == 1
