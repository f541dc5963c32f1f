"""Qwen2.5-VL: images in their own resolution, merged tokens, positions on three axes. Films are not supported."""

from __future__ import annotations

from typing import Any

from gnomon.vlm.importing import pixels


class Qwen2_5VLFamily:
    names = (
        ("model.visual.", "encoder.tower."),
        ("model.language_model.", "lm.model.model."),
        ("lm_head.", "lm.model.lm_head."),
    )
    unused = ()

    def describe(self, config: Any, processor: Any) -> dict[str, Any]:
        given, vision = pixels.settings(processor), config.vision_config.to_dict()
        tower = (vision["patch_size"], vision["spatial_merge_size"])
        if (given["patch_size"], given["merge_size"]) != tower:
            raise ValueError(
                f"model and image processor disagree: patch and merge {tower} and "
                f"{(given['patch_size'], given['merge_size'])}; correct one of them"
            )
        return {
            "encoder": {"class_path": "gnomon.vlm.encoders.qwen2_5_vl.Qwen2_5VL", "init_args": {"config": vision}},
            "connector": {"class_path": "gnomon.vlm.connectors.identity.Identity", "init_args": {}},
            "image_size": None,
            "image_fit": "native",
            "image_least": given["size"]["shortest_edge"],
            "image_limit": given["size"]["longest_edge"],
            "image_positions": "grid",
            **pixels.normal(given),
        }
