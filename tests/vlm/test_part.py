"""Parts remember how they were made, and nothing but parts is made from a spec."""

import pytest
from torch import nn

from gnomon.vlm.connectors.base import Bridge
from gnomon.vlm.connectors.mlp import MLP
from gnomon.vlm.geometry.tinygeo import TinyGeo
from gnomon.vlm.part import Part, build


class Example(Part, nn.Module):
    def __init__(self, first: int, *, second: str = "b") -> None:
        super().__init__()
        self.layer = nn.Linear(first, first)


def test_arguments_are_recorded_as_given():
    assert Example(3).init_args == {"first": 3}
    assert Example(first=3, second="c").init_args == {"first": 3, "second": "c"}
    assert "init_args" not in Example(3).state_dict()


def test_round_trip():
    spec = MLP(depth=3).spec()
    assert spec == {"class_path": "gnomon.vlm.connectors.mlp.MLP", "init_args": {"depth": 3}}
    again = build(spec, Bridge)
    assert isinstance(again, MLP) and again.spec() == spec


def test_tuples_and_sets_become_lists():
    assert Example(3, second=("c", "a")).spec()["init_args"] == {"first": 3, "second": ["c", "a"]}
    for given in ({"c", "a", "b"}, frozenset("cab")):
        assert Example(3, second=given).spec()["init_args"] == {"first": 3, "second": ["a", "b", "c"]}
    assert TinyGeo(heads={"depth"}).spec()["init_args"] == {"heads": ["depth"]}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"class_path": "subprocess.Popen", "init_args": {"args": ["false"]}}, "not a Bridge"),
        ({"class_path": "os.system", "init_args": {}}, "not a Bridge"),
        ({"class_path": "gnomon.vlm.connectors.nothing.Nothing"}, "cannot be imported"),
        ({"class_path": "MLP"}, "cannot be imported"),
        ({"class_path": "gnomon.vlm.connectors.mlp.MLP", "init_args": {"dept": 2}}, "refuses its arguments"),
    ],
)
def test_what_is_no_part_is_refused(spec, told):
    with pytest.raises(ValueError, match=told):
        build(spec, Bridge)
