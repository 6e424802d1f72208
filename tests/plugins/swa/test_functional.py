"""The running mean of weights in float64, and BatchNorm's statistics against written-out ones and torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from augury_swa.functional import flat, fold_, set_statistics_, unflatten_


def network() -> nn.Sequential:
    """Two BatchNorm layers and dropout, in training mode."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3, momentum=None),
        nn.Flatten(),
        nn.Linear(27, 5),
    ).double()


def batches(*sizes: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, 7, 7, dtype=torch.float64, generator=g) for size in sizes]


def running(net: nn.Module) -> list[Tensor]:
    return [t for m in net.modules() if isinstance(m, nn.BatchNorm2d) for t in (m.running_mean, m.running_var)]


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_weights_come_back_from_a_vector_in_place(format: torch.memory_format) -> None:
    net = network().to(memory_format=format)
    vector, places = flat(net), [p.data_ptr() for p in net.parameters()]
    assert torch.equal(vector, torch.cat([p.detach().contiguous().flatten() for p in net.parameters()]))
    assert not vector.requires_grad
    unflatten_(net, 2 * vector)
    assert torch.equal(flat(net), 2 * vector)
    assert [p.data_ptr() for p in net.parameters()] == places
    assert net[0].weight.is_contiguous(memory_format=format)


def test_the_running_mean_is_the_mean_of_all() -> None:
    snapshots = torch.randn(11, 200, dtype=torch.float64)
    average, count = torch.zeros(200), torch.tensor(0)
    for number, weights in enumerate(snapshots, 1):
        fold_(average, count, weights.float())
        assert int(count) == number
        torch.testing.assert_close(average.double(), snapshots[:number].mean(0), rtol=1e-5, atol=1e-6)
    precise, count = torch.zeros(200, dtype=torch.float64), torch.tensor(0)
    for weights in snapshots:
        fold_(precise, count, weights)
    torch.testing.assert_close(precise, snapshots.mean(0), rtol=1e-13, atol=1e-15)


def test_statistics_are_those_of_torch_where_batches_are_equal() -> None:
    ours = network()
    theirs = copy.deepcopy(ours)
    theirs[3].p = 0.0
    given = batches(6, 6, 6)
    set_statistics_(ours, given)
    update_bn(given, theirs)
    for one, other in zip(running(ours), running(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_statistics_are_means_over_batches_weighed_by_their_images() -> None:
    net, given = network(), batches(5, 2, 8)
    set_statistics_(net, given)
    found, total = [0.0] * 4, sum(map(len, given))
    with torch.no_grad():
        for images in given:
            hidden = nn.functional.conv2d(images, net[0].weight)
            first = nn.functional.batch_norm(hidden, None, None, net[1].weight, net[1].bias, training=True).relu()
            for place, x in enumerate((hidden, nn.functional.conv2d(first, net[4].weight, net[4].bias))):
                pixels = x.transpose(0, 1).flatten(1)
                found[2 * place] += len(images) / total * pixels.mean(1)
                found[2 * place + 1] += len(images) / total * pixels.var(1, unbiased=True)
    for one, other in zip(running(net), found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_modes_momenta_and_frozen_layers_are_left_as_they_were() -> None:
    net = network()
    net[1].eval()
    frozen = [t.clone() for t in running(net)[:2]]
    modes = {name: m.training for name, m in net.named_modules()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    set_statistics_(net, batches(4))
    assert torch.equal(torch.get_rng_state(), before), "dropout draws nothing"
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert [net[1].momentum, net[5].momentum] == [0.1, None]
    assert all(torch.equal(a, b) for a, b in zip(running(net)[:2], frozen, strict=True))
    assert not torch.equal(running(net)[2], torch.zeros(3))


def test_modes_come_back_where_a_pass_fails() -> None:
    net = network()
    with pytest.raises(RuntimeError):
        set_statistics_(net, [torch.zeros(2, 1, 7, 7, dtype=torch.float64)])
    assert all(m.training for m in net.modules())
    assert net[1].momentum == 0.1


def test_a_last_batch_of_one_image_is_left_out() -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(98)).double()
    given = batches(5, 4, 1)
    set_statistics_(net, given)
    expected = (5 * given[0].mean(0) + 4 * given[1].mean(0)) / 9
    torch.testing.assert_close(net[1].running_mean, expected.flatten(), rtol=1e-12, atol=1e-14)


def test_statistics_that_were_lost_are_made_anew() -> None:
    net = network()
    for statistic in running(net):
        statistic.fill_(torch.nan)
    set_statistics_(net, batches(4, 4))
    assert all(statistic.isfinite().all() for statistic in running(net))
