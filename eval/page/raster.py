"""Arrays as small PNG pictures inside the page, and the colours that numbers have in them.

Shapes: H,W pixels, h,w cells, P points.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from gnomon.eval.page.svg import number, ticks

VIRIDIS = "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6dcd59 b4de2c fde725"
INFERNO = "000004 1b0c42 4b0c6b 781c6d a52c60 cf4446 ed6925 fb9a06 f7d03c fcffa4"
"""Ten colours each, evenly spaced; between them there is a straight line. Both are told apart in grey, too."""


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high` as colours, in order or `backwards`."""

    colours: str
    low: float
    high: float
    backwards: bool = False

    def table(self, count: int) -> np.ndarray:
        """(count,3) uint8"""
        stops = np.array([list(bytes.fromhex(colour)) for colour in self._stops()])
        places = np.linspace(0, len(stops) - 1, count)
        return np.stack([np.interp(places, np.arange(len(stops)), c) for c in stops.T], -1).round().astype(np.uint8)

    def share(self, values: np.ndarray) -> np.ndarray:
        """Where from low to high, in 0..1; what is beyond is at the end, and so is nothing that is no number."""
        share = (np.nan_to_num(values, nan=self.low) - self.low) / ((self.high - self.low) or 1)
        return np.clip(share, 0, 1)

    def legend(self, text: str) -> str:
        """The colours with numbers below, and what they are of."""
        marks = "".join(
            f'<span style="left:{100 * self.share(np.float64(value)):.1f}%">{number(value)}</span>'
            for value in ticks(self.low, self.high, about=8)
        )
        ramp = ",".join(f"#{colour}" for colour in self._stops())
        label = f"Colours from {self.low:.3g} to {self.high:.3g}: {text}"
        return (
            f'<div class="scale" role="img" aria-label="{escape(label, quote=True)}"><div class="ramp" '
            f'style="background:linear-gradient(to right,{ramp})"></div><div class="marks">{marks}</div></div>'
            f'<p class="note">{escape(text)}</p>'
        )

    def _stops(self) -> list[str]:
        stops = self.colours.split()
        return stops[::-1] if self.backwards else stops


def picture(pixels: np.ndarray, alt: str) -> str:
    """(H,W,3) or (H,W,4) uint8 as an <img>."""
    return f'<img src="{uri(Image.fromarray(pixels))}" alt="{escape(alt, quote=True)}">'


def plane(values: np.ndarray, scale: Scale, alt: str) -> str:
    """(H,W) numbers by their colours, clear where they are 0 or no numbers."""
    index = 1 + (scale.share(values) * 254).round().astype(np.uint8)
    image = Image.fromarray(np.where(np.isfinite(values) & (values != 0), index, 0).astype(np.uint8), "P")
    image.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), scale.table(255)]).tobytes())
    return f'<img src="{uri(image, transparency=0)}" alt="{escape(alt, quote=True)}">'


def heat(pixels: np.ndarray, cells: np.ndarray, scale: Scale, alt: str) -> str:
    """(H,W,3) in grey under the colours of (h,w) cells."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)[..., None]
    rows, columns = (np.arange(side) * count // side for side, count in zip(grey.shape[:2], cells.shape))
    colour = scale.table(256)[(scale.share(cells) * 255).round().astype(int)][rows][:, columns]
    return picture((0.4 * grey + 0.6 * colour).astype(np.uint8), alt)


def dots(places: np.ndarray, colours: np.ndarray, size: tuple[int, int], *, side: int) -> str:
    """(P,2) columns and rows in a picture of this height and width, the last ones on top, as the URI of a clear PNG."""
    canvas = np.zeros((*size, 4), np.uint8)
    corner = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(1, -1, 2) - side // 2
    column, row = (places.round().astype(int)[:, None] + corner).reshape(-1, 2).T
    inside = (column >= 0) & (row >= 0) & (column < size[1]) & (row < size[0])
    canvas[row[inside], column[inside], :3] = np.repeat(colours, side**2, 0)[inside]
    canvas[row[inside], column[inside], 3] = 255
    return uri(Image.fromarray(canvas).quantize(255, method=Image.Quantize.FASTOCTREE))


def uri(image: Image.Image, transparency: int | None = None) -> str:
    buffer = io.BytesIO()
    options = {} if transparency is None else {"transparency": transparency}
    image.save(buffer, "PNG", optimize=True, **options)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
