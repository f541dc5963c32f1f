"""Images: whatever a sample holds (pixels, a file, encoded bytes) to the uint8 pixels that a model takes.

Resizing is Pillow's antialiased bicubic filter on 8-bit values. Of an animation the first frame is used.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor

from gnomon.data.errors import BadImage
from gnomon.data.sample import Image
from gnomon.vlm.layout import ImageSpec

LIMIT = 178_956_970
"""Most pixels an image may declare; also where Pillow itself stops."""

SMALLEST = 2
"""Fewest pixels of a side."""

# What Pillow's decoders raise on broken files, depending on the format and on where the damage is.
DAMAGE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, LookupError, TypeError, struct.error, zlib.error)


def load(image: Image, *, name: str = "image", limit: int = LIMIT) -> np.ndarray:
    """(H,W,3) uint8 pixels, upright (EXIF), transparency laid on white; `name` goes into the error."""
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise BadImage(f"{name}: an array of {image.dtype} {image.shape} is not an image; use uint8 (H, W, 3)")
        _check(image.shape[1], image.shape[0], name, limit)
        return image
    if isinstance(image, Path):
        name = f"{name} ({image})"
        if not image.is_file():
            raise BadImage(f"{name}: no such file; correct the path")
    try:
        with Pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            # the header is enough to refuse a decompression bomb before it is decoded
            _check(*opened.size, name, limit)
            return np.asarray(_rgb(ImageOps.exif_transpose(opened), name))
    except BadImage:
        raise
    except Pillow.DecompressionBombError as error:
        raise BadImage(f"{name}: {_line(error)}; scale it down") from error
    except DAMAGE as error:
        raise BadImage(f"{name}: cannot be decoded ({_line(error)}); replace or remove it") from error


def prepare(pixels: np.ndarray, spec: ImageSpec) -> Tensor:
    """(H,W,3) uint8 to (3,H',W') uint8, of the size and fit that the model's image rule asks for."""
    image = Pillow.fromarray(pixels)
    height, width = spec.target(image.height, image.width)
    if spec.fit == "pad":
        image = _pad(image, height, width, tuple(int(255 * value) for value in spec.mean))
    elif spec.fit == "crop":
        image = _crop(image, height, width)
    elif image.size != (width, height):
        image = image.resize((width, height), Pillow.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _check(width: int, height: int, name: str, limit: int) -> None:
    if min(width, height) < SMALLEST:
        raise BadImage(f"{name}: {width}x{height} pixels is too small; a side needs at least {SMALLEST}")
    if width * height > limit:
        raise BadImage(f"{name}: {width}x{height} pixels is more than the limit of {limit}; scale it down")


def _rgb(image: Pillow.Image, name: str) -> Pillow.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit greys to 255 when it converts them; scale the range instead
        grey = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Pillow.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise BadImage(f"{name}: floating-point pixels have no fixed range; convert the file to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _pad(image: Pillow.Image, height: int, width: int, colour: tuple[int, ...]) -> Pillow.Image:
    """Centred on a canvas of the colour that is just large enough, and scaled with it."""
    scale = max(image.height / height, image.width / width)
    size = max(image.width, round(width * scale)), max(image.height, round(height * scale))
    if size[0] * size[1] > LIMIT:
        # a strip would need a canvas that no memory holds: made smaller before it is laid on one
        least = max(1, round(image.width / scale)), max(1, round(image.height / scale))
        image, size = image.resize(least, Pillow.Resampling.BICUBIC), (width, height)
    canvas = Pillow.new("RGB", size, colour)
    canvas.paste(image, ((size[0] - image.width) // 2, (size[1] - image.height) // 2))
    return canvas if size == (width, height) else canvas.resize((width, height), Pillow.Resampling.BICUBIC)


def _crop(image: Pillow.Image, height: int, width: int) -> Pillow.Image:
    """Scale until the target is just covered, then cut the middle out."""
    # whole numbers: a side that comes out even must not be one short
    if height * image.width > width * image.height:
        size = height * image.width // image.height, height
    else:
        size = width, width * image.height // image.width
    image = image.resize(size, Pillow.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
