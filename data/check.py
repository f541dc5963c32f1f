"""Check: is this sample a conversation that can be asked or learned from?"""

from __future__ import annotations

from gnomon.data.errors import BadSample
from gnomon.data.sample import IMAGE_MARK, Sample


def describe(sample: Sample) -> str:
    """What errors call the sample; a source may say in `meta["where"]` which file and line it is from."""
    where = sample.meta.get("where")
    return f"sample {sample.id!r} ({where})" if where else f"sample {sample.id!r}"


def check(sample: Sample, *, train: bool) -> None:
    """As many marks as images, turns that alternate, text that is Unicode, and (to train) an answer."""
    name = describe(sample)
    if sample.marks != len(sample.images):
        raise BadSample(
            f"{name} has {sample.marks} {IMAGE_MARK} marks and {len(sample.images)} images; they must be as many"
        )
    roles = [turn.role for turn in sample.turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk:
        raise BadSample(f"{name} has no conversation; give it a user turn and an answer")
    if talk != [("user", "assistant")[i % 2] for i in range(len(talk))]:
        raise BadSample(f"{name} has turns {', '.join(roles)}; user and assistant must alternate, user first")
    if train and not any(turn.role == "assistant" and turn.text.strip() for turn in sample.turns):
        raise BadSample(f"{name} has no answer to train on; give it an assistant turn with text")
    try:
        "".join(turn.text for turn in sample.turns).encode()
    except UnicodeEncodeError as error:
        raise BadSample(f"{name} has text that is not Unicode ({error.reason}); repair it") from error
