"""DCutMix in a composition: labels follow pixels, views stay apart, draws are counted."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import augury
from augury_dcutmix import DCutMix
from augury_dcutmix.functional import sample_sticks, shares_of_sticks
from augury_train.config import read_config, read_recipe
from augury_train.training.plan import make_plan

CLASSES = 200


def composed(seed: int = 0, **options: Any) -> augury.Composition:
    return augury.compose([(DCutMix, options)], num_classes=CLASSES, seed=seed)


def marked(rows: int, shape: tuple[int, int, int] = (3, 8, 8), views: int = 1) -> augury.Batch:
    """Image i is filled with i and its class is i; the second view's are 100 + i."""
    labels = torch.cat([100 * view + torch.arange(rows) for view in range(views)])
    images = labels.float()[:, None, None, None].expand(-1, *shape).clone()
    return augury.Batch.of(images, labels, views=views)


def changed(batch: augury.Batch, **options: Any) -> augury.Batch:
    composed(**options).augment_batch(batch)
    return batch


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    ("rows", "k", "shape"),
    [
        (1, 5, (3, 8, 8)),
        (3, 5, (1, 7, 5)),
        (16, 1, (3, 9, 13)),
        (7, 3, (3, 1, 6)),
        (4, 4, (1, 1, 1)),
        (50, 5, (3, 32, 32)),
    ],
)
def test_weights_are_the_pixels_of_each_class(rows: int, k: int, shape: tuple[int, int, int], views: int) -> None:
    batch = changed(marked(rows, shape, views), k=k, alpha=1.0)
    pixels = shape[1] * shape[2]
    assert (batch.images == batch.images[:, :1]).all(), "channels are mixed alike"
    counts = torch.stack([(batch.images[:, 0] == c).sum((1, 2)) for c in range(CLASSES)], 1)
    assert torch.equal(counts.sum(1), torch.full((rows * views,), pixels))
    assert batch.shares.dtype == torch.float32
    # A row may draw one image twice: then its shares add up to the pixels, each rounded to float32.
    targets = torch.zeros(rows * views, CLASSES, dtype=torch.float64)
    targets.scatter_add_(1, batch.labels, batch.shares.double())
    torch.testing.assert_close(targets, counts.double() / pixels, atol=k * 2**-25, rtol=0)
    assert torch.equal((targets * pixels).round().long(), counts)
    for labels, weights, of_class in zip(batch.labels, batch.shares, counts, strict=True):
        if len(labels.unique()) == k:
            assert torch.equal(weights, (of_class[labels].double() / pixels).float())


def test_each_view_is_mixed_on_its_own() -> None:
    batch = changed(marked(40, views=2), alpha=1.0)
    first, second = batch.view(0), batch.view(1)
    assert first.images.max() < 100 <= second.images.min()
    assert first.labels.max() < 100 <= second.labels.min()
    assert not torch.equal(first.labels, second.labels - 100), "other partners"
    assert not torch.equal(first.shares, second.shares), "other shares"


def test_the_first_label_is_the_rows_own() -> None:
    batch = changed(marked(30, views=2))
    assert torch.equal(batch.labels[:, 0], marked(30, views=2).labels[:, 0])
    assert torch.equal(batch.indices, torch.arange(30).repeat(2))
    # Partners are permutations: each image is taken once for each box.
    assert torch.equal(batch.labels.sort(0).values, batch.labels[:, :1].expand_as(batch.labels))


def test_one_coin_for_the_batch_with_the_chance_asked_for() -> None:
    methods, mixed, steps = composed(prob=0.5, alpha=1.0), 0, 400
    for _ in range(steps):
        batch = marked(8, views=2)
        methods.augment_batch(batch)
        methods.step()
        touched = [bool((batch.view(v).images != marked(8, views=2).view(v).images).any()) for v in range(2)]
        assert touched == [batch.mixed] * 2
        assert batch.shares.shape[1] == (5 if batch.mixed else 1)
        mixed += batch.mixed
    assert abs(mixed - steps / 2) < 5 * (steps / 4) ** 0.5


def test_the_coins_are_counted_too() -> None:
    def coins(seed: int, other_draws: int) -> list[bool]:
        torch.manual_seed(other_draws)
        methods, found = composed(prob=0.5, seed=seed), []
        for _ in range(30):
            batch = marked(2)
            methods.augment_batch(batch)
            methods.step()
            found.append(batch.mixed)
        return found

    assert coins(0, 1) == coins(0, 2)
    assert coins(0, 1) != coins(1, 1)


@pytest.mark.parametrize("options", [{"prob": 0.0}, {"k": 1}])
def test_nothing_is_mixed(options: dict[str, Any]) -> None:
    batch, original = changed(marked(8), **options), marked(8)
    for name, value in vars(original).items():
        assert torch.equal(getattr(batch, name), value) if isinstance(value, Tensor) else True


@pytest.mark.parametrize("mode", ["dcutmix", "dmixup"])
def test_draws_are_counted_by_seed_and_step(mode: str) -> None:
    def after(steps: int, seed: int = 0) -> augury.Batch:
        methods = composed(seed=seed, mode=mode, alpha=1.0)
        for _ in range(steps):
            methods.augment_batch(marked(3))  # another number of draws
            methods.step()
        batch = marked(20)
        methods.augment_batch(batch)
        return batch

    fresh = composed(mode=mode, alpha=1.0)
    fresh.load_state_dict({"step": torch.tensor(3)})
    resumed = marked(20)
    fresh.augment_batch(resumed)
    assert torch.equal(after(3).images, resumed.images)
    assert torch.equal(after(3).shares, resumed.shares)
    for other in (after(2), after(3, seed=1)):
        assert not torch.equal(other.labels, resumed.labels)
        assert not torch.equal(other.shares, resumed.shares)


@pytest.mark.parametrize("views", [1, 2])
def test_dmixup_blends_with_the_shares(views: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(12 * views, 3, 7, 5, dtype=torch.float64)
    batch = augury.Batch.of(images, torch.arange(12 * views), views=views)
    changed(batch, mode="dmixup", k=4, alpha=0.7)
    expected = torch.einsum("mk,mkchw->mchw", batch.shares.double(), images[batch.labels])
    torch.testing.assert_close(batch.images, expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(batch.shares.sum(1), torch.ones(12 * views))


def test_dmixups_shares_are_dirichlet() -> None:
    k, alpha, rows = 3, 0.5, 4000
    weights = changed(marked(rows, (1, 1, 1)), mode="dmixup", k=k, alpha=alpha).shares
    variance = (1 / k) * (1 - 1 / k) / (k * alpha + 1)
    tolerance = 5 * (variance / rows) ** 0.5
    torch.testing.assert_close(weights.mean(0), torch.full((k,), 1 / k), atol=tolerance, rtol=0)
    torch.testing.assert_close(weights.var(0), torch.full((k,), variance), atol=0.01, rtol=0)


def test_two_images_at_alpha_1_are_mixups_uniform_share() -> None:
    shares = shares_of_sticks(sample_sticks(4000, 2, 1.0, torch.Generator().manual_seed(0)))[:, 0].sort().values
    assert (shares - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1.95 / 4000**0.5


@pytest.mark.parametrize("alpha", [0.01, 1000.0])
@pytest.mark.parametrize("mode", ["dcutmix", "dmixup"])
def test_extreme_concentrations(mode: str, alpha: float) -> None:
    batch = changed(marked(100), mode=mode, alpha=alpha)
    assert batch.images.isfinite().all()
    torch.testing.assert_close(batch.shares.sum(1), torch.ones(100))
    largest = batch.shares.max(1).values.mean()
    assert largest > 0.9 if alpha < 1 else 0.19 < largest < 0.3


def test_smoothing_and_row_weights_travel_with_their_image() -> None:
    batch = marked(10, views=2)
    own_smoothing, own_weight = torch.rand(200), torch.rand(200)
    batch.smoothing, batch.row_weights = own_smoothing[batch.labels], own_weight[batch.labels[:, 0]]
    changed(batch)
    assert torch.equal(batch.smoothing, own_smoothing[batch.labels])
    torch.testing.assert_close(batch.row_weights, (batch.shares * own_weight[batch.labels]).sum(1))


def test_a_second_mixture_keeps_every_label() -> None:
    methods = composed(k=3, alpha=1.0)
    batch = marked(20)
    methods.augment_batch(batch)
    methods.step()
    methods.augment_batch(batch)
    assert batch.labels.shape == (20, 9)
    counts = torch.stack([(batch.images[:, 0] == c).sum((1, 2)) for c in range(CLASSES)], 1)
    assert counts.sum() == 20 * 64, "pasted, not blended"
    torch.testing.assert_close(batch.shares.sum(1), torch.ones(20))


@pytest.mark.parametrize("mode", ["dcutmix", "dmixup"])
def test_loss_of_a_mixed_batch_is_the_formula(mode: str) -> None:
    torch.manual_seed(0)
    methods = composed(mode=mode, k=3, alpha=1.0)
    batch = marked(9, views=2)
    batch.smoothing, batch.row_weights = torch.rand(18, 1) * 0.5, torch.rand(18)
    methods.augment_batch(batch)
    logits = torch.randn(18, CLASSES, dtype=torch.float64)
    log_p = logits - logits.exp().sum(1, keepdim=True).log()
    expected = 0.0
    for i in range(18):
        for label, weight, eps in zip(
            batch.labels[i].tolist(), batch.shares[i].tolist(), batch.smoothing[i].tolist(), strict=True
        ):
            row = -(1 - eps) * log_p[i, label] - eps * log_p[i].mean()
            expected += float(batch.row_weights[i]) * weight * float(row) / 18
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(18, 1), logits))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("alpha", 0.0, "> 0"),
        ("alpha", float("inf"), "a finite number"),
        ("k", 0, ">= 1"),
        ("k", 2.5, "a whole number"),
        ("prob", 1.1, "<= 1"),
        ("mode", "cutmix", "'dcutmix' or 'dmixup'"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(augury.UsageError, match=rf"dcutmix: option `{option}` must be .*{allowed}") as caught:
        composed(**{option: value})
    assert "\n" not in str(caught.value)


def test_it_has_no_state_and_needs_one_view() -> None:
    methods = composed()
    assert list(methods.parameters()) == []
    assert list(methods.state_dict()) == ["step"]
    assert methods.views == 1
    assert DCutMix.mixes


def test_the_recipe_is_one_that_can_run() -> None:
    path = Path(inspect.getfile(DCutMix)).parent / "recipes" / "digits.toml"
    plan = make_plan(read_config(read_recipe(path)))
    assert [(c.name, c.options) for c in plan.chosen] == [("dcutmix", DCutMix.Options())]
