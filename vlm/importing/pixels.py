"""What a Hugging Face image processor does to an image, in our terms."""

from __future__ import annotations

from typing import Any

_BICUBIC = 3


def settings(processor: Any) -> dict[str, Any]:
    """Its configuration in plain types, once it is clear that it does what our image rule can express."""
    given = processor.image_processor.to_dict()
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not given.get(step, True):
            raise ValueError(f"the image processor has {step} false, which has no counterpart here; use its defaults")
    if given.get("resample", _BICUBIC) != _BICUBIC:
        raise ValueError(
            f"the image processor resamples with filter {given['resample']}; only 3 (bicubic) is supported"
        )
    if abs(given.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise ValueError(
            f"the image processor divides pixels by {1 / given['rescale_factor']:g}; only 255 is supported"
        )
    return given


def normal(given: dict[str, Any]) -> dict[str, Any]:
    return {"image_mean": given["image_mean"], "image_std": given["image_std"]}


def side(given: dict[str, Any]) -> int:
    """The one side of the squares that it makes."""
    size = {name: value for name, value in given["size"].items() if value is not None}
    crop = {name: value for name, value in (given.get("crop_size") or {}).items() if value is not None}
    sides = set(size.values()) | (set(crop.values()) if given.get("do_center_crop") else set())
    if len(sides) != 1:
        raise ValueError(f"the image processor's size {size} and crop {crop} are not one square; it cannot be imported")
    return sides.pop()
