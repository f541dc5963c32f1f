"""Style: the look of one diagram (ink, paper, strokes, letters), drawn from the item's own stream."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gnomon.data.sources.diagrams.dice import Dice

Colour = tuple[int, int, int]
STYLES = ("default", "held_out", "clean")

_FONTS = {
    "default": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral",
                "pillow"),
    "held_out": ("DejaVuSerif-BoldItalic", "STIXGeneralBol", "STIXGeneralBolIta", "DejaVuSansMono-BoldOblique"),
    "clean": ("DejaVuSans",),
}  # fmt: skip
_INKS = {
    "default": ((0, 0, 0), (0, 0, 0), (25, 25, 60), (70, 20, 20), (20, 60, 40)),
    "held_out": ((60, 0, 90), (0, 70, 90), (80, 60, 0)),
    "clean": ((0, 0, 0),),
}
_PAPERS = {
    "default": ((255, 255, 255), (255, 255, 255), (255, 255, 255), (250, 247, 238), (240, 244, 250)),
    "held_out": ((244, 255, 240), (255, 240, 245), (232, 232, 232)),
    "clean": ((255, 255, 255),),
}
_ACCENTS = {
    "default": ((200, 30, 30), (20, 80, 200), (10, 130, 60), (190, 100, 0), (120, 40, 160)),
    "held_out": ((0, 140, 150), (210, 0, 120), (120, 110, 0)),
    "clean": ((0, 0, 0),),
}
# Height of capital letters, as a share of the shorter side; never below LEAST_CAP pixels.
_CAP = (0.05, 0.066)
LEAST_CAP = 9


@dataclass(frozen=True)
class Style:
    ink: Colour
    paper: Colour
    letters: Colour
    # Colours for circles, for marks and notes, and for the strokes of separate shapes.
    accents: tuple[Colour, Colour, Colour]
    font: str
    cap: float
    # Width of a stroke as a share of the shorter side.
    width: float
    dots: bool
    marks: bool
    dashed: bool


def drawn(dice: Dice, kind: str) -> Style:
    ink = dice.pick(_INKS[kind])
    colourful = dice.chance(0.35)
    accents = tuple(dice.pick(_ACCENTS[kind]) if colourful and dice.chance(0.7) else ink for _ in range(3))
    clean = kind == "clean"
    return Style(
        ink=ink,
        paper=dice.pick(_PAPERS[kind]),
        letters=dice.pick(_ACCENTS[kind]) if dice.chance(0.15) else ink,
        accents=accents,
        font=dice.pick(_FONTS[kind]),
        cap=_CAP[0] if clean else dice.between(*_CAP),
        width=0.008 if clean else dice.between(0.006, 0.012),
        dots=dice.chance(0.5),
        marks=dice.chance(0.6),
        dashed=not clean and dice.chance(0.2),
    )


def cap_pixels(style: Style, shorter: int) -> int:
    return max(LEAST_CAP, round(style.cap * shorter))


@lru_cache(maxsize=8192)
def glyphs(font: str, cap: int, text: str) -> Image.Image:
    """The text as a coverage mask cropped to its ink, with capitals `cap` pixels tall."""
    face = _face(font, cap)
    left, top, right, bottom = face.getbbox(text)
    mask = Image.new("L", (max(1, int(right - left) + 2), max(1, int(bottom - top) + 2)))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, fill=255, font=face)
    return mask.crop(mask.getbbox())


@lru_cache(maxsize=512)
def _face(font: str, cap: int) -> ImageFont.FreeTypeFont:
    trial = _load(font, 100)
    _, top, _, bottom = trial.getbbox("H")
    return _load(font, max(1, round(100 * cap / (bottom - top))))


def _load(font: str, size: int) -> ImageFont.FreeTypeFont:
    if font == "pillow":
        return ImageFont.load_default(size)
    # The fonts are files of matplotlib, which is not imported for them.
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None, "matplotlib is a dependency of gnomon"
    return ImageFont.truetype(str(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{font}.ttf"), size)
