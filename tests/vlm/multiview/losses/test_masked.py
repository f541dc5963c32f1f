import torch

from gnomon.vlm.multiview.losses.masked import lowest, masked_mean, valid

NAN = float("nan")


def test_mean_of_what_is_valid():
    x = torch.tensor([[1.0, 2.0], [NAN, 5.0]])
    assert masked_mean(x, torch.tensor([[True, True], [False, True]])) == 8 / 3
    # one mask for several channels
    assert masked_mean(torch.tensor([[1.0, 2.0], [NAN, 5.0]]), torch.tensor([[True], [False]])) == 1.5


def test_nothing_valid_is_zero_and_trains():
    x = torch.tensor([NAN, 1.0], requires_grad=True)
    loss = masked_mean(x * 2, torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert loss == 0 and x.grad.tolist() == [0, 0]


def test_valid_keeps_nan_out_of_the_gradient():
    mask = torch.tensor([True, False])
    prediction = torch.tensor([4.0, 0.0], requires_grad=True)
    found, target = valid(prediction, torch.tensor([1.0, NAN]), mask)
    masked_mean((found.log() - target.log()).abs(), mask).backward()
    assert prediction.grad.tolist() == [0.25, 0.0]


def test_lowest_drops_the_upper_two_percent():
    residual = torch.arange(5000.0).flip(0)
    mask = torch.ones(5000, dtype=torch.bool)
    mask[-1000:] = False
    # of the 4000 residuals 1000 ... 4999 those below the quantile 1000 + 0.98 * 3999 = 4919.02
    kept = lowest(residual, mask)
    assert int(kept.sum()) == 3919 and residual[kept].max() == 4918 and residual[kept].min() == 1000
    few = torch.zeros(5000, dtype=torch.bool)
    few[:1000] = True
    assert torch.equal(lowest(residual, few), few)
    # of equal residuals none is an outlier
    assert torch.equal(lowest(torch.ones(5000), mask), mask)
