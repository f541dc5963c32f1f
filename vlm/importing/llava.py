"""LLaVA-1.5 and LLaVA-NeXT: a CLIP or SigLIP tower, an MLP of two layers, a language model; NeXT also sees crops."""

from __future__ import annotations

from typing import Any

from gnomon.vlm.importing import pixels


class Llava:
    names = (
        # older transformers wrap the tower once more
        ("model.vision_tower.vision_model.", "encoder.tower."),
        ("model.vision_tower.", "encoder.tower."),
        ("model.multi_modal_projector.linear_1.", "connector.layers.0."),
        ("model.multi_modal_projector.linear_2.", "connector.layers.2."),
        ("model.image_newline", "image_newline"),
        ("model.language_model.", "lm.model.model."),
        ("lm_head.", "lm.model.lm_head."),
    )
    # blocks behind the one whose features are taken, and the norm of the pooled token
    unused = ("encoder.tower.",)

    def describe(self, config: Any, processor: Any) -> dict[str, Any]:
        vision = config.vision_config.to_dict()
        layer = config.vision_feature_layer
        if not isinstance(layer, int):
            raise ValueError(f"features of blocks {layer} side by side are not supported; the model must use one block")
        if config.projector_hidden_act != "gelu" or not config.multimodal_projector_bias:
            raise ValueError("the projector is not an MLP with GELU and biases; it cannot be imported")
        strategy = config.vision_feature_select_strategy
        if (strategy == "default") != (vision["model_type"] == "clip_vision_model"):
            raise ValueError(
                f"a {vision['model_type']} with vision_feature_select_strategy {strategy!r} makes other tokens than "
                "its patches; it cannot be imported"
            )
        if layer == -1 and vision["model_type"] != "clip_vision_model":
            raise ValueError("the tower's last block without its norm is not supported; the model must use another")
        # hidden state 0 is what the first block gets
        init_args = {"config": vision, "layer": layer if layer < 0 else layer - 1}
        return {
            "encoder": {"class_path": "gnomon.vlm.encoders.hf.HFVision", "init_args": init_args},
            "connector": {"class_path": "gnomon.vlm.connectors.mlp.MLP", "init_args": {"depth": 2}},
            **self.image(config, processor),
        }

    def image(self, config: Any, processor: Any) -> dict[str, Any]:
        given = pixels.settings(processor)
        side = pixels.side(given)
        if given.get("do_pad"):
            fit = "pad"
        else:
            fit = "crop" if given.get("do_center_crop") and "shortest_edge" in given["size"] else "resize"
        return {"image_size": (side, side), "image_fit": fit, **pixels.normal(given)}


class LlavaNext(Llava):
    def image(self, config: Any, processor: Any) -> dict[str, Any]:
        given = pixels.settings(processor)
        side, canvases = pixels.side(given), config.image_grid_pinpoints
        if side != config.vision_config.image_size or canvases != given["image_grid_pinpoints"]:
            raise ValueError(
                f"model and image processor disagree: images of {config.vision_config.image_size} and {side}, grid "
                f"pinpoints {canvases} and {given['image_grid_pinpoints']}; correct one of them"
            )
        return {
            "image_size": (side, side),
            "image_fit": "anyres",
            "image_canvases": [tuple(canvas) for canvas in canvases],
            **pixels.normal(given),
        }
