import torch
from torchvision.transforms.functional import normalize

from gnomon.vlm.multiview.patches import PatchEmbed, normalise


def test_patches_are_squares_in_raster_order():
    embed = PatchEmbed(1, 2)
    torch.nn.init.constant_(embed.proj.weight, 1 / 12)
    torch.nn.init.zeros_(embed.proj.bias)
    pixels = torch.arange(6.0).view(2, 3).repeat_interleave(2, 0).repeat_interleave(2, 1).expand(1, 3, 4, 6)
    torch.testing.assert_close(embed(pixels).flatten(), torch.arange(6.0))


def test_normalise():
    images, valid = torch.rand(1, 2, 3, 4, 4), torch.tensor([[True, False]])
    images[:, 1] = torch.nan
    found = normalise(images, valid)
    expected = normalize(images[:, 0], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(found[:, 0], expected)
    assert not found[:, 1].any()
