import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from gnomon.data.errors import BadImage
from gnomon.data.image import load, prepare
from gnomon.vlm.layout import ImageSpec


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and has almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_array_file_and_bytes_give_the_same_pixels(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    for image in (NOISE, path, path.read_bytes()):
        assert np.array_equal(load(image), NOISE)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        # black at half opacity over white, and fully transparent red over white
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        # 16 bits: 257 * v is v in 8 bits
        (Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)), (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 300, dtype=np.uint16)), (1, 1, 1)),
    ],
)
def test_modes(image, expected):
    assert (load(encoded(image)) == expected).all()


def test_cmyk_is_not_inverted():
    cyan = load(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=95))
    assert np.abs(cyan.astype(int) - (0, 255, 255)).max() <= 4


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.putpixel((0, 0), 0)
    pixels = load(encoded(image, transparency=0))
    assert tuple(pixels[0, 0]) == (255, 255, 255) and tuple(pixels[1, 1]) == (200, 0, 0)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (6, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    # 6: the camera was turned, the stored top left corner belongs to the top right
    exif[0x0112] = 6
    pixels = load(encoded(image, exif=exif))
    assert pixels.shape == (6, 4, 3) and pixels[0, 3].min() == 255 and pixels[0, 0].max() == 0


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert (load(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Path("nowhere/x.png"), "no such file"),
        (b"", "cannot be decoded"),
        (b"hello, this is no image", "cannot be decoded"),
        (encoded(Image.fromarray(NOISE))[:900], "cannot be decoded"),
        (encoded(Image.fromarray(NOISE), "JPEG")[:700], "cannot be decoded"),
        (encoded(Image.fromarray(NOISE), "WEBP")[:700], "cannot be decoded"),
        (encoded(Image.new("RGB", (1, 1))), "1x1 pixels is too small"),
        (encoded(Image.new("RGB", (500, 1))), "500x1 pixels is too small"),
        (np.zeros((1, 9, 3), np.uint8), "9x1 pixels is too small"),
        (png_header(20_000, 20_000), "400000000 pixels"),
        (png_header(14_000, 12_790), "limit of 178956970"),
        (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "floating-point"),
        (np.zeros((4, 4), np.uint8), "uint8 (H, W, 3)"),
        (np.zeros((4, 4, 3), np.float32), "uint8 (H, W, 3)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_bad_images_have_one_clear_line(image, says):
    with pytest.raises(BadImage) as error:
        load(image, name="image 3 of sample 'x'")
    assert says in str(error.value) and str(error.value).startswith("image 3 of sample 'x'")
    assert "\n" not in str(error.value)


def test_the_limit_holds_before_anything_is_decoded():
    # the declared data is not there: decoding it would be another error
    with pytest.raises(BadImage, match="300x200 pixels is more than the limit of 59999"):
        load(png_header(300, 200), limit=59_999)


@pytest.mark.filterwarnings("ignore")
def test_damage_at_every_byte_is_an_image_or_a_bad_image():
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP"):
        whole = encoded(Image.fromarray(NOISE[:9, :9]), kind)
        for at in range(0, len(whole), 3):
            broken = bytearray(whole)
            broken[at] ^= 0xFF
            try:
                assert load(bytes(broken), limit=10_000).dtype == np.uint8
            except BadImage:
                continue


def test_resize_is_antialiased_bicubic():
    spec = ImageSpec((16, 24), 8)
    ours = prepare(NOISE, spec)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(NOISE).permute(2, 0, 1)[None].float(), (16, 24), mode="bicubic", antialias=True
    )[0]
    assert ours.dtype == torch.uint8 and ours.is_contiguous()
    assert (ours - theirs.clamp(0, 255)).abs().max() <= 1.5


def test_same_size_is_untouched():
    assert np.array_equal(prepare(NOISE, ImageSpec((40, 60), 10)).permute(1, 2, 0).numpy(), NOISE)


def test_pad_centres_on_the_mean_colour():
    out = prepare(np.zeros((4, 8, 3), np.uint8), ImageSpec((8, 8), 4, fit="pad", mean=(1.0, 0.5, 0.0)))
    assert (out[:, 2:6] == 0).all()
    for edge in (out[:, :2], out[:, 6:]):
        assert edge.flatten(1).unique(dim=1).flatten().tolist() == [255, 127, 0]


def test_crop_keeps_the_middle():
    stripes = np.repeat(np.eye(3, dtype=np.uint8) * 255, 30, axis=0)[None].repeat(30, axis=0)
    out = prepare(stripes, ImageSpec((30, 30), 10, fit="crop"))
    assert out.flatten(1).unique(dim=1).flatten().tolist() == [0, 255, 0]


@pytest.mark.parametrize("shape", [(40, 60), (61, 33), (24, 24), (7, 90), (24, 47)])
@pytest.mark.parametrize("fit", ["pad", "crop", "resize"])
def test_the_pixels_of_transformers(fit, shape):
    """LLaVA's image processor, with its colour of padding and its rounding."""
    mean, size = (0.48, 0.46, 0.41), {"height": 24, "width": 24}
    given = {"size": {"shortest_edge": 24} if fit == "crop" else size, "crop_size": size, "resample": 3}
    original = LlavaImageProcessorPil(**given, do_pad=fit == "pad", do_center_crop=fit == "crop", image_mean=mean)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    theirs = original(pixels, do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(prepare(pixels, ImageSpec((24, 24), 4, fit=fit, mean=mean)), theirs.to(torch.uint8))


@pytest.mark.parametrize(("height", "width", "expected"), [(30, 50, (28, 56)), (5, 5, (14, 14)), (200, 100, (56, 28))])
def test_native_rounds_to_cells_below_the_limit(height, width, expected):
    spec = ImageSpec(None, 14, fit="native", limit=28 * 56)
    assert tuple(prepare(np.zeros((height, width, 3), np.uint8), spec).shape[1:]) == expected


@pytest.mark.parametrize("fit", ["resize", "pad", "crop"])
@pytest.mark.parametrize("shape", [(2, 900), (900, 2)])
def test_extreme_shapes(fit, shape):
    assert prepare(np.zeros((*shape, 3), np.uint8), ImageSpec((28, 28), 14, fit=fit)).shape == (3, 28, 28)
