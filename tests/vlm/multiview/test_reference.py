import torch

from gnomon.vlm.multiview.reference import choose

# the second view is between the others in direction and length
STATES = torch.tensor([[[1.0, 0.0, 0.0], [1.5, 1.0, 0.0], [0.0, 3.0, 1.0], [9.0, -9.0, 9.0]]])


def view(rule: str, valid: list[bool], states: torch.Tensor = STATES) -> int:
    return choose(rule, torch.tensor([valid]), states).item()


def test_first_and_middle_of_those_that_are_there():
    assert view("first", [False, True, True, True]) == 1
    assert view("middle", [True, True, True, False]) == 1
    assert view("middle", [True, False, True, True]) == 2
    assert view("middle", [True, True, True, True]) == 2


def test_two_views_have_the_first():
    assert view("middle", [False, True, False, True]) == view("saddle_balanced", [False, True, False, True]) == 1


def test_saddle_balanced_by_hand():
    valid = [True, True, True, False]
    x = STATES[0, :3]
    unit = x / x.norm(dim=-1, keepdim=True)
    off = torch.zeros(3)
    cosines = torch.stack([(unit[i] @ unit.T).sum() - 1 for i in range(3)]) / 2
    for number in (cosines, x.norm(dim=-1), unit.var(-1)):
        off += ((number - number.min()) / (number.max() - number.min()) - 0.5).abs()
    assert off.argmin() == view("saddle_balanced", valid) == 1
    # whatever stands where no view is
    assert view("saddle_balanced", valid, STATES.clone().index_fill_(1, torch.tensor(3), 0.5)) == off.argmin()
