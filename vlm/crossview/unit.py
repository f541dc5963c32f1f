"""UniT: groups of views one after the other, which look back on a queue of the groups before them.

Paper:   UniT: Unified Geometry Learning With Group Autoregressive Transformer. arXiv:2605.21131
Rule:    a view sees all views of its own group and of the `queue` groups before it. Each layer keeps keys and values
         of the last `queue` groups and forgets older ones, the first ones too: memory stays the same however long it
         goes on. Groups of one view work online, one group of all views offline, with the same weights
Where:   attention across views; with `state`, a pass continues an earlier one
Differs: read from the abstract. The encoder around it keeps what tells its first view apart; more kinds of input and
         the losses on scale are not part of it
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from gnomon.vlm.crossview.base import SceneByScene
from gnomon.vlm.multiview.cross import ViewLayout


@dataclass
class Queue:
    """Of one scene: keys and values (1,H,n*T,D) of the last groups, by layer; the oldest first."""

    groups: dict[int, tuple[tuple[Tensor, Tensor], ...]] = field(default_factory=dict)


class UniT(SceneByScene):
    """group: views in a group; None: all views of a pass. queue: None keeps everything; 0: groups do not see others.

    A pass begins with a new group and its last one may be shorter: cut a stream where groups end.
    """

    def __init__(self, group: int | None = 1, *, queue: int | None = 9) -> None:
        if group is not None and group < 1:
            raise ValueError(f"UniT has groups of {group} views; give 1 or more, or none for one group of all views")
        if queue is not None and queue < 0:
            raise ValueError(f"UniT has a queue of {queue} groups; give 0 or more, or none to keep all")
        self.group, self.queue = group, queue

    def begin(self, patches: Tensor, layout: ViewLayout, memory: list[Queue] | None = None) -> list[Queue]:
        if memory is None:
            return [Queue() for _ in patches]
        if len(memory) != len(patches):
            raise ValueError(
                f"UniT has a state of {len(memory)} scenes and views of {len(patches)}; go on with the same scenes"
            )
        return [Queue(dict(queue.groups)) for queue in memory]

    def scene(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, *, layer: int, layout: ViewLayout, memory: Queue
    ) -> Tensor:
        tokens = (self.group or layout.views) * layout.length
        before = memory.groups.get(layer, ())
        groups = (*before, *zip(k.split(tokens, dim=2), v.split(tokens, dim=2)))
        back = len(groups) if self.queue is None else self.queue
        outputs = []
        for number, asking in enumerate(q.split(tokens, dim=2), start=len(before)):
            keys, values = (torch.cat(parts, dim=2) for parts in zip(*groups[max(0, number - back) : number + 1]))
            outputs.append(F.scaled_dot_product_attention(asking, keys, values))
        kept = groups[max(0, len(groups) - back) :]
        # copies: a slice would keep all of the pass that it is cut from
        memory.groups[layer] = tuple((keys.detach().clone(), values.detach().clone()) for keys, values in kept)
        return torch.cat(outputs, dim=2)
