"""The loss around the weights, against plain loops over copies of the network."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from augury_lab.evaluation.landscape import direction, grid_of, loss_around


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )
    # Statistics of its own, which must stay.
    made(torch.randn(32, 1, 6, 6))
    return made.eval()


def batches(count: int = 2, rows: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = torch.Generator().manual_seed(3)
    return [
        (torch.randn(rows, 1, 6, 6, generator=made), torch.randint(5, (rows,), generator=made)) for _ in range(count)
    ]


def loss_of(model: nn.Module, shown: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    images, labels = (torch.cat(part) for part in zip(*shown, strict=True))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(images).double(), labels))


def test_filters_of_a_direction_are_as_long_as_the_network_s() -> None:
    model = network()
    found = direction(model, 0, 0)
    # Of biases and of BatchNorm's parameters there is none.
    assert set(found) == {"0.weight", "4.weight"}
    for name, weights in model.named_parameters():
        if name in found:
            for ours, theirs in zip(found[name], weights.detach(), strict=True):
                assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=1e-5)


def test_directions_are_the_same_for_one_architecture_up_to_the_lengths() -> None:
    one, other = direction(network(0), 5, 0), direction(network(1), 5, 0)
    for name, ours in one.items():
        ours, theirs = ours.flatten(1), other[name].flatten(1)
        torch.testing.assert_close(
            ours / ours.norm(dim=1, keepdim=True), theirs / theirs.norm(dim=1, keepdim=True), atol=1e-6, rtol=0
        )


def test_the_two_directions_and_other_seeds_are_drawn_apart() -> None:
    model = network()
    weights = direction(model, 0, 0)["4.weight"].flatten()
    for seed, axis in ((0, 1), (1, 0)):
        other = direction(model, seed, axis)["4.weight"].flatten()
        assert abs(float(nn.functional.cosine_similarity(weights, other, dim=0))) < 0.2


def test_a_filter_of_zeros_stays_where_it_is() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[1] = 0  # type: ignore[index, union-attr]
    found = direction(model, 0, 0)["0.weight"]
    assert torch.equal(found[1], torch.zeros(1, 3, 3))
    assert found.isfinite().all()


def test_the_centre_is_the_model_s_own_loss() -> None:
    model, shown = network(), batches()
    found = loss_around(model, shown, side=3)
    assert found.steps == [-1, 0, 1]
    assert found.centre == found.loss[1][1] == pytest.approx(loss_of(model, shown), rel=1e-6)
    assert found.images == 32


def test_every_point_is_the_loss_of_a_network_that_was_moved_there() -> None:
    model, shown = network(), batches()
    found = loss_around(model, shown, seed=2, side=3, reach=0.5)
    first, second = direction(model, 2, 0), direction(model, 2, 1)
    for row, a in enumerate((-0.5, 0, 0.5)):
        for column, b in enumerate((-0.5, 0, 0.5)):
            moved = copy.deepcopy(model)
            for name, weights in moved.named_parameters():
                if name in first:
                    weights.data += a * first[name] + b * second[name]
            assert found.loss[row][column] == pytest.approx(loss_of(moved, shown), rel=1e-5)
    near = [found.loss[row][column] for row, column in ((0, 1), (1, 0), (1, 2), (2, 1))]
    assert found.rise == pytest.approx(sum(x for x in near if x is not None) / 4 - found.centre)


def test_weights_and_statistics_are_restored_exactly() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    loss_around(model, batches(), side=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_a_grid_has_an_exact_middle() -> None:
    assert len(grid_of()) == 21
    assert grid_of()[10] == 0
    assert grid_of(5, 2) == [-2, -1, 0, 1, 2]
    assert grid_of(1) == [0]


def test_a_loss_that_is_not_finite_is_said_to_be_none() -> None:
    model, shown = network(), batches()
    with torch.no_grad():
        model[4].weight *= 1e38  # type: ignore[operator, union-attr]
    found = loss_around(model, shown, side=3)
    assert any(value is None for row in found.loss for value in row)
    assert all(value is None or math.isfinite(value) for row in found.loss for value in row)


def test_it_tells_how_far_it_is() -> None:
    told: list[int] = []
    loss_around(network(), batches(), side=3, told=told.append)
    assert told == [32] * 9
