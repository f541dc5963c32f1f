import pytest
import torch
from torch.nn.functional import one_hot

from gnomon.vlm.multiview.losses.tokens import distill, instance_contrast, instance_terms


def ids(seed: int = 0) -> torch.Tensor:
    """(2,3,8,8): background and three instances, in every view."""
    return torch.randint(0, 4, (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def noise(seed: int = 0) -> torch.Tensor:
    draw = torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(seed))
    return draw / draw.norm(dim=-1, keepdim=True)


def test_perfect_features_cost_nothing():
    features = one_hot(ids(), 8).float().requires_grad_()
    terms = instance_terms(features, ids(), minimum=1)
    assert [t.item() for t in terms] == [0, 0, 0]
    sum(terms).backward()
    assert features.grad.isfinite().all()


def test_equal_features_are_pushed_and_random_ones_pulled():
    same = torch.zeros(2, 3, 8, 8, 8)
    same[..., 0] = 1
    pull, push, apart = instance_terms(same, ids(), minimum=1)
    assert (float(pull), float(push), float(apart)) == (0, 1, 0)
    pull, push, _ = instance_terms(noise(), ids(), minimum=1)
    assert pull > 0.5 and push > 0


def test_by_hand():
    """Two views of 1 x 4: instance 1 at 0 and 0.8 in one, at 2 in the other; instance 2 at 1 in the first view."""
    instances = torch.tensor([[[[1, 1, 2, 0]], [[1, 1, 0, 0]]]])
    features = torch.tensor([[[[0.0, 0.8, 1.0, 9.0]], [[2.0, 2.0, 9.0, 9.0]]]])[..., None]
    pull, push, apart = instance_terms(features, instances, minimum=1)
    # means 0.4, 1 and 2; pull: two pixels 0.4 away, three at their mean; push: 0.6 apart; views: 1.6 apart
    torch.testing.assert_close(torch.stack([pull, push, apart]), torch.tensor([2 * 0.15 / 5, 0.4, 1.1]))
    torch.testing.assert_close(instance_terms(features, instances, minimum=2)[1], torch.tensor(0.0))


def test_names_of_instances_do_not_matter():
    renamed = torch.tensor([0, 77, 5, 1000])[ids()]
    torch.testing.assert_close(instance_contrast(noise(), renamed), instance_contrast(noise(), ids()))


def test_instances_of_different_scenes_never_meet():
    """A batch's terms are those of its scenes, weighed by their members."""
    both = instance_terms(noise(), ids(), minimum=1)
    each = [instance_terms(noise()[k : k + 1], ids()[k : k + 1], minimum=1) for k in range(2)]
    pixels = [(ids()[k] > 0).sum() for k in range(2)]
    torch.testing.assert_close(both[0], (each[0][0] * pixels[0] + each[1][0] * pixels[1]) / sum(pixels))
    for term in (1, 2):
        torch.testing.assert_close(both[term], (each[0][term] + each[1][term]) / 2)


def test_background_and_small_instances_are_left_out():
    features = noise().requires_grad_()
    for instances in (torch.zeros_like(ids()), torch.arange(64).reshape(8, 8).expand(2, 3, 8, 8)):
        loss = instance_contrast(features, instances)
        loss.backward()
        assert loss == 0 and (features.grad == 0).all()
    with pytest.raises(ValueError, match="one id a pixel"):
        instance_contrast(features, ids()[:, :1])


@pytest.mark.parametrize("kind", ["cosine", "smooth_l1"])
def test_distillation(kind):
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, generator=draw), torch.randn(2, 4, 6, generator=draw)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert distill(3 * teacher + 2, teacher, mask, kind=kind) < 1e-5
    wanted = distill(student, teacher, mask, kind=kind)
    assert wanted > 0.1
    student[1, 2:], teacher[1, 2:] = float("nan"), float("inf")
    student.requires_grad_()
    teacher.requires_grad_()
    found = distill(student, teacher, mask, kind=kind)
    found.backward()
    torch.testing.assert_close(found.detach(), wanted)
    assert student.grad.isfinite().all() and teacher.grad is None
    assert distill(student, teacher, torch.zeros_like(mask), kind=kind) == 0


def test_distillation_by_hand():
    """Normed tokens are (1,-1) and (-1,1): cosine -1; both entries 2 apart, beyond smooth L1's corner: 1.5."""
    student, teacher, mask = torch.tensor([[5.0, 1.0]]), torch.tensor([[-2.0, 8.0]]), torch.tensor([True])
    torch.testing.assert_close(distill(student, teacher, mask), torch.tensor(2.0))
    torch.testing.assert_close(distill(student, teacher, mask, kind="smooth_l1"), torch.tensor(1.5), atol=1e-5, rtol=0)


def test_refusals():
    with pytest.raises(ValueError, match="project the student"):
        distill(torch.zeros(1, 4, 6), torch.zeros(1, 4, 8), torch.ones(1, 4).bool())
    with pytest.raises(ValueError, match="'l7'"):
        distill(torch.zeros(1, 4, 6), torch.zeros(1, 4, 6), torch.ones(1, 4).bool(), kind="l7")
