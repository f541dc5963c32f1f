"""HorizonStream: depth, cameras and metric scale of endless video, view by view, from a memory that does not grow.

Paper:   HorizonStream: Long-Horizon Attention for Streaming 3D Reconstruction. arXiv:2605.23889
Rule:    VGGT's blocks with an order of views: across views, each sees the patches of a window that ends with itself;
         at some layers a linear attention with channel-wise decay and delta rule (Kimi Delta Attention) over all
         tokens comes before that. Positions are time (modulo a period), row and column. Attention is gated per head by
         the mean of what it reads. Each view has 32 pose tokens for each view of its window, which give their cameras
         in its own frame, and a metric token; scale = exp(MLP(mean metric token over the views of a pass))
Where:   the geometry encoder; `state` is what a pass hands to the next one
Differs: the first window is streamed like all others (the release gives it to all layers at once, with pose tokens for
         views that are still to come). Each view's camera follows from the one before it, the release's variant "last",
         not its median over windows. Depth and cameras are up to `scale`; the release multiplies. Loop closure and
         motion averaging are not part of it
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gnomon.vlm.geometry.base import GeometryEncoder, GeometryInput, GeometryOutput
from gnomon.vlm.multiview import activate, pose, rays
from gnomon.vlm.multiview import weights as published
from gnomon.vlm.multiview.camera_head import CameraHead
from gnomon.vlm.multiview.dinov2 import DINOv2
from gnomon.vlm.multiview.dpt import DPT, checked
from gnomon.vlm.multiview.patches import normalise
from gnomon.vlm.multiview.precise import precisely
from gnomon.vlm.multiview.windowed import Stream, Streamed, WindowedAggregator

_PATCH = 14
_NAMES = {
    f"{outer}{old}.": f"{new}."
    for outer in ("horizonstream.", "")
    for old, new in (
        ("agg_regator", "aggregator"),
        ("cam_decoder", "camera_head"),
        ("dpt_decoder", "depth_head"),
        ("metric_readout_head", "metric_readout_head"),
    )
}
# in the weights, but of VGGT: this has pose tokens and no registers
_UNUSED = ["aggregator.camera_token", "aggregator.register_token"]


class HorizonStream(GeometryEncoder):
    """weights: a file or directory of the published state, as a flat table of tensors, or of one that was trained here.

    heads: depth and camera. window: how many views a view sees, itself among them. period: after how many views time
    begins again. pose_tokens: per view and view of its window. memory_layers: those with a memory before them.
    What follows is as in VGGT.
    """

    metric = True

    def __init__(
        self,
        *,
        weights: str | None = None,
        heads: Collection[str] = ("depth", "camera"),
        frozen: bool = True,
        window: int = 10,
        period: int = 21,
        pose_tokens: int = 32,
        memory_layers: Sequence[int] = (4, 11, 17, 23),
        width: int = 1024,
        embed_depth: int = 24,
        depth: int = 24,
        attention_heads: int = 16,
        trained_at: int = 518,
        taps: Sequence[int] = (4, 11, 17, 23),
        features: int = 256,
        channels: Sequence[int] = (256, 512, 1024, 1024),
    ) -> None:
        super().__init__()
        if unknown := set(heads) - {"depth", "camera"}:
            raise ValueError(f"HorizonStream has no head {min(unknown)!r}; choose among depth and camera")
        for name, value in (("window", window), ("period", period), ("pose_tokens", pose_tokens)):
            if value < 1:
                raise ValueError(f"HorizonStream has {name} {value}; give 1 or more")
        self.heads = frozenset(heads)
        self.taps = checked(taps, depth, name="HorizonStream") if "depth" in heads else tuple(taps)
        self.patch = self.multiple = _PATCH
        self.width, self.layer_count = 2 * width, depth
        with torch.device("meta") if weights else nullcontext():
            self.aggregator = WindowedAggregator(
                DINOv2(width, embed_depth, attention_heads, patch=_PATCH, trained_at=trained_at),
                width=width,
                depth=depth,
                heads=attention_heads,
                window=window,
                period=period,
                pose_tokens=pose_tokens,
                memory_layers=memory_layers,
            )
            self.metric_readout_head = _metric_head(self.width)
            if "depth" in heads:
                self.depth_head = DPT(self.width, 2, patch=_PATCH, features=features, channels=channels)
            if "camera" in heads:
                self.camera_head = CameraHead(self.width, heads=attention_heads)
        if weights is not None:
            absent = [f"{part}_head." for part in ("depth", "camera") if part not in heads]
            published.load(self, weights, rename=_NAMES, ignore=[*_UNUSED, *absent])
        self.freeze(frozen)

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        size = tuple(scenes.images.shape[-2:])
        grid = (size[0] // _PATCH, size[1] // _PATCH)
        last = self.layer_count - 1
        wanted = {last, *(layer % self.layer_count for layer in layers), *(self.taps if "depth" in heads else ())}
        images = normalise(scenes.images, scenes.valid).to(self.aggregator.pose_token.dtype)
        state = scenes.state or [Stream() for _ in images]
        if len(state) != len(images):
            raise ValueError(
                f"HorizonStream has a state of {len(state)} scenes and views of {len(images)}; go on with the same ones"
            )
        # a scene without any view looks at its padding, and its stream stays where it was
        there = scenes.valid.clone()
        there[:, 0] |= ~scenes.valid.any(1)
        rows = [
            self._scene(views[some], grid, stream, wanted, layers, heads, size)
            for views, some, stream in zip(images, there, state)
        ]
        streams = [new if valid.any() else old for (_, new), old, valid in zip(rows, state, scenes.valid)]
        fields = {name: [found[name] for found, _ in rows] for name in rows[0][0]}
        whole = {name: _padded(values, there) for name, values in fields.items() if name != "scale"}
        out = GeometryOutput(
            tokens=scenes.present(whole.pop("tokens")),
            grid=grid,
            valid=scenes.valid,
            special=scenes.present(whole.pop("special")),
            layers={layer: scenes.present(whole.pop(f"layer {layer}")) for layer in layers},
            scale=torch.stack(fields["scale"]),
            state=streams,
        )
        for name, value in whole.items():
            setattr(out, name, value)
        return out

    def _scene(
        self,
        images: Tensor,
        grid: tuple[int, int],
        stream: Stream,
        wanted: Collection[int],
        layers: Collection[int],
        heads: Collection[str],
        size: tuple[int, int],
    ) -> tuple[dict[str, Tensor], Stream]:
        """What there is to say of each of the views (S,3,H,W) of one scene, and its stream behind them."""
        if "camera" in heads and stream.seen and stream.camera is None:
            raise ValueError(
                f"HorizonStream is asked for cameras after {stream.seen} views without; they follow from each other: "
                "ask for them from the first view on"
            )
        seen, stream = self.aggregator(images, grid, stream, layers=wanted)
        last = seen.layers[self.layer_count - 1]
        found = {
            "tokens": last[:, 1:],
            "special": torch.cat([seen.own_pose[:, None], last[:, :1]], dim=1),
            "scale": precisely(self.metric_readout_head, last[:, 0].mean(0))[0].exp(),
        }
        found |= {f"layer {layer}": seen.layers[layer % self.layer_count][:, 1:] for layer in layers}
        if "depth" in heads:
            taps = [seen.layers[layer][None, :, 1:] for layer in self.taps]
            found["depth"], found["depth_confidence"] = activate.depth(precisely(self.depth_head, *taps, size=size)[0])
        if "camera" in heads:
            found["pose"], camera = self._cameras(seen, stream.camera, size)
            found["extrinsics"], found["intrinsics"] = pose.decode(found["pose"], size=size)
            stream.camera = camera.detach()
        else:
            stream.camera = None
        return found, stream

    def _cameras(self, seen: Streamed, camera: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Poses (S,9) in the frame of the stream's first view, and the last camera (3,4).

        Each window has the camera of the view before in the frame of its own last view: X_before = E X_own.
        """
        camera = torch.eye(3, 4, device=seen.pose.device) if camera is None else camera
        windows = precisely(self.camera_head, seen.pose, valid=seen.there)[-1]
        extrinsics, intrinsics = pose.decode(windows, size=size)
        cameras = []
        for window, there in zip(extrinsics, seen.there):
            if len(there) > 1 and there[-2]:
                camera = rays.compose(rays.invert(window[-2]), camera)
            cameras.append(camera)
        return pose.encode(torch.stack(cameras), intrinsics[:, -1], size=size), camera


def _padded(values: list[Tensor], valid: Tensor) -> Tensor:
    """(B,S,...) of what there is per scene of its views, zero for missing ones."""
    out = values[0].new_zeros(*valid.shape, *values[0].shape[1:])
    out[valid] = torch.cat(values)
    return out


def _metric_head(width: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))
    for layer in head[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return head
