"""GeometryEncoder: the views of scenes to tokens that know where things are, and to depth, points and cameras.

One convention: OpenCV cameras (x right, y down, z forward), extrinsics camera-from-world, depth along z, view 0 the
reference, quaternions with the scalar last.

Shapes: B scenes, S views, H,W pixels, h,w grid, N = h*w tokens, P special tokens, C width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gnomon.vlm.layout import Movable, Views
from gnomon.vlm.part import Part


@dataclass
class GeometryInput(Movable):
    """Scenes of equal picture size, padded to the same number of views.

    images      (B,S,3,H,W)  0..1, not normalised: the encoder does that
    valid       (B,S) bool   views that are there
    intrinsics  (B,S,3,3) | None, extrinsics (B,S,3,4) | None, depth (B,S,H,W) | None: what is known beforehand;
                extrinsics and depth an encoder looks at only if an option of its own, or all it does, says so
    state       `state` of the output for the views before these, of encoders that stream
    """

    images: Tensor
    valid: Tensor
    intrinsics: Tensor | None = None
    extrinsics: Tensor | None = None
    depth: Tensor | None = None
    state: Any = None

    def present(self, tokens: Tensor) -> Tensor:
        """(B,S,N,C) as an output has them: in the dtype of the pictures, zero where a view is missing."""
        return tokens.to(self.images.dtype).masked_fill(~self.valid[..., None, None], 0)

    @classmethod
    def stack(cls, scenes: Sequence[Views], device: torch.device | str) -> GeometryInput:
        """Scenes of one picture size; what only some of them know is left out."""
        most = max(len(scene.pixels) for scene in scenes)
        valid = torch.tensor([[s < len(scene.pixels) for s in range(most)] for scene in scenes], device=device)

        def pad(name: str) -> Tensor | None:
            values = [getattr(scene, name) for scene in scenes]
            if any(value is None for value in values):
                return None
            like = values[0]
            # cameras of nothing stand at the origin, so that they can be inverted
            camera = name in ("intrinsics", "extrinsics")
            blank = torch.eye(*like.shape[1:]) if camera else torch.zeros(like.shape[1:])
            whole = blank.to(like.dtype).to(device).repeat(len(values), most, *[1] * blank.ndim)
            for row, value in zip(whole, values):
                row[: len(value)] = value
            return whole

        known = {name: pad(name) for name in ("intrinsics", "extrinsics", "depth")}
        return cls(pad("pixels").float() / 255, valid, **known)


@dataclass
class GeometryOutput(Movable):
    """What an encoder says of B scenes; tokens, grid and valid always, the rest where it has it or was asked for it.

    Tokens have the dtype of the pictures, what heads predict is float32 at least; of missing views it means nothing.

    tokens     (B,S,N,C)        patch tokens in raster order, zero where a view is missing
    grid       (h,w)
    valid      (B,S) bool       views it used
    special    (B,S,P,C)        camera token first, then registers
    layers     {i: (B,S,N,C)}   of the layers that were asked for
    depth      (B,S,H,W)        along z, and its confidence
    points     (B,S,H,W,3)      point map in the frame `frame` (ref_camera, own_camera or world), and its confidence
    pose       (B,S,9)          of camera-from-world: translation, quaternion (scalar last), fields of view
    rounds     (R,B,S,9)        pose after each round of refinement; the last one is `pose`
    rays       (B,S,h',w',6)    direction of length one in z, and origin; and their confidence
    extrinsics (B,S,3,4), intrinsics (B,S,3,3)  decoded cameras
    scale      (B,)             metric = scale * prediction; None: up to scale
    state                       of encoders that stream
    """

    tokens: Tensor
    grid: tuple[int, int]
    valid: Tensor
    special: Tensor | None = None
    layers: dict[int, Tensor] = field(default_factory=dict)
    depth: Tensor | None = None
    depth_confidence: Tensor | None = None
    points: Tensor | None = None
    points_confidence: Tensor | None = None
    frame: str = "ref_camera"
    pose: Tensor | None = None
    rounds: Tensor | None = None
    rays: Tensor | None = None
    rays_confidence: Tensor | None = None
    extrinsics: Tensor | None = None
    intrinsics: Tensor | None = None
    scale: Tensor | None = None
    state: Any = None

    def __post_init__(self) -> None:
        h, w = self.grid
        assert self.tokens.shape[2] == h * w, f"{self.tokens.shape[2]} tokens on a grid of {h}x{w}"


class GeometryEncoder(Part, nn.Module):
    """`forward` yields tokens always; `heads` names what else: depth, points, camera. `layers` asks for tokens in
    between, by number, negative ones from the end; they come back under the numbers that were asked for.

    width      of the tokens
    patch      pixels per token and side
    multiple   both sides of a view are multiples of it
    layer_count  how many layers' tokens `layers` can ask for; None: it has none and gives its tokens for any
    max_views  most views of one scene; None: any number
    metric     whether it predicts in metres
    frame      of its points and cameras, see GeometryOutput
    heads      what it can predict
    reads      what it goes by, beside pictures, where it is known of a scene
    needs      what of that it cannot do without
    frozen     never trained: stays in evaluation mode and keeps no graph
    """

    width: int
    patch: int
    multiple: int
    layer_count: int | None = None
    max_views: int | None = None
    metric: bool = False
    frame: str = "ref_camera"
    heads: frozenset[str] = frozenset()
    reads: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    frozen: bool = True

    def forward(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        raise NotImplementedError

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The size that views of this size are brought to: the nearest whole number of cells."""
        return tuple(max(1, round(side / self.multiple)) * self.multiple for side in (height, width))

    def freeze(self, frozen: bool) -> None:
        """Called once by constructors, when all parameters are there."""
        self.frozen = frozen
        self.requires_grad_(not frozen).train(not frozen)

    def train(self, mode: bool = True) -> GeometryEncoder:
        return super().train(mode and not self.frozen)

    def spec(self) -> dict[str, Any]:
        """Without `weights`: where they came from is no longer needed, a saved model has them."""
        spec = super().spec()
        nested = {name: value.spec() if isinstance(value, Part) else value for name, value in spec["init_args"].items()}
        args = {name: value for name, value in nested.items() if name != "weights"}
        return {**spec, "init_args": args}

    def measure(
        self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()
    ) -> GeometryOutput:
        """`forward` after a look at what it is given, and without a graph where the encoder is frozen."""
        self.check(scenes, layers=layers, heads=heads)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self(scenes, layers=layers, heads=heads)

    def check(self, scenes: GeometryInput, *, layers: Collection[int] = (), heads: Collection[str] = ()) -> None:
        """A ValueError for what this encoder cannot see."""
        name, (views, height, width) = type(self).__name__, (scenes.images.shape[i] for i in (1, 3, 4))
        known = ("intrinsics", "extrinsics", "depth")
        if lacking := [what for what in known if what in self.needs and getattr(scenes, what) is None]:
            raise ValueError(
                f"{name} needs {', '.join(lacking)} of every view; give them, or use an encoder that predicts them"
            )
        if self.max_views is not None and views > self.max_views:
            raise ValueError(f"{name} takes up to {self.max_views} views, a scene has {views}; leave some out")
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"{name} takes views whose sides are multiples of {self.multiple}, these are {height}x{width}; "
                f"resize them to {'x'.join(map(str, self.target(height, width)))}"
            )
        if unknown := set(heads) - self.heads:
            able = ", ".join(sorted(self.heads)) or "nothing but tokens"
            raise ValueError(f"{name} predicts {able}, not {', '.join(sorted(unknown))}; choose among what it predicts")
        count = self.layer_count
        if count is not None and (beyond := [layer for layer in layers if not -count <= layer < count]):
            raise ValueError(
                f"{name} has no layer {beyond[0]} whose tokens it could give; choose {-count} to {count - 1}"
            )
