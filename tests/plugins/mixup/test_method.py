"""Mixup in a composition: labels follow images, views stay apart, draws are counted."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import augury
from augury_mixup import Mixup

CLASSES = 40
PER = ["batch", "image"]


def composed(seed: int = 0, **options: Any) -> augury.Composition:
    return augury.compose([(Mixup, options)], num_classes=CLASSES, seed=seed)


def coloured(rows: int, views: int = 1) -> augury.Batch:
    """Image i of view v is of class i + 20 v; its channel of that class is 1, all others are 0."""
    labels = torch.cat([20 * view + torch.arange(rows) for view in range(views)])
    images = torch.eye(CLASSES, dtype=torch.float64)[labels][:, :, None, None].expand(-1, -1, 3, 4).clone()
    return augury.Batch.of(images, labels, views=views)


def changed(batch: augury.Batch, **options: Any) -> augury.Batch:
    composed(**options).augment_batch(batch)
    return batch


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("rows", [1, 2, 13])
def test_labels_have_the_shares_of_their_images(per: str, views: int, rows: int) -> None:
    batch = changed(coloured(rows, views), per=per, alpha=0.7)
    assert batch.shares.dtype == torch.float32
    assert batch.shares.shape == batch.labels.shape == (len(batch), 2)
    torch.testing.assert_close(batch.images[:, :, 0, 0].float(), batch.soft_targets(CLASSES), atol=1e-7, rtol=0)
    torch.testing.assert_close(batch.shares.sum(1), torch.ones(len(batch)), atol=1e-7, rtol=0)
    original = coloured(rows, views)
    assert torch.equal(batch.labels[:, :1], original.labels), "the first label is the row's own"
    assert torch.equal(batch.labels[:, 1].sort().values, original.labels[:, 0].sort().values), "a permutation"


def test_a_batch_has_one_lambda_for_each_view() -> None:
    batch = changed(coloured(20, 2))
    first, second = batch.view(0), batch.view(1)
    assert len(first.shares[:, 0].unique()) == len(second.shares[:, 0].unique()) == 1
    assert first.shares[0, 0] != second.shares[0, 0]
    assert not torch.equal(first.labels, second.labels - 20), "other partners"
    assert first.labels.max() < 20 <= second.labels.min()


def test_each_image_may_have_a_lambda_of_its_own() -> None:
    batch = changed(coloured(20, 2), per="image")
    assert len(batch.shares[:, 0].unique()) == 40
    assert not torch.equal(batch.view(0).labels, batch.view(1).labels - 20), "other partners"


@pytest.mark.parametrize("per", PER)
def test_lambdas_over_many_steps_are_beta(per: str) -> None:
    methods, found = composed(per=per, alpha=0.5), []
    for _ in range(300):
        batch = coloured(2, 2)
        methods.augment_batch(batch)
        methods.step()
        found += batch.shares[:: 2 if per == "batch" else 1, 0].double().tolist()
    assert len(found) == (600 if per == "batch" else 1200)
    assert stats.kstest(found, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("per", PER)
def test_one_coin_for_all_views_with_the_chance_asked_for(per: str) -> None:
    methods, mixed, steps = composed(prob=0.3, per=per), 0, 400
    for _ in range(steps):
        batch = coloured(8, 2)
        methods.augment_batch(batch)
        methods.step()
        touched = [bool((batch.view(v).images != coloured(8, 2).view(v).images).any()) for v in range(2)]
        assert touched == [batch.mixed] * 2
        mixed += batch.mixed
    assert abs(mixed - steps * 0.3) < 5 * (steps * 0.3 * 0.7) ** 0.5


def test_nothing_is_mixed_with_a_chance_of_0() -> None:
    batch, original = changed(coloured(8), prob=0.0), coloured(8)
    for name, value in vars(original).items():
        assert torch.equal(getattr(batch, name), value) if isinstance(value, Tensor) else True


@pytest.mark.parametrize("per", PER)
def test_a_batch_of_which_no_image_was_kept(per: str) -> None:
    batch = coloured(4, 2)
    batch.take(torch.empty(0, dtype=torch.int64))
    changed(batch, per=per)
    assert batch.labels.shape == batch.shares.shape == (0, 2)


@pytest.mark.parametrize("per", PER)
def test_draws_are_counted_by_seed_and_step(per: str) -> None:
    def after(steps: int, seed: int = 0) -> augury.Batch:
        methods = composed(seed=seed, per=per)
        for _ in range(steps):
            methods.augment_batch(coloured(3))  # another number of draws
            methods.step()
        batch = coloured(20)
        methods.augment_batch(batch)
        return batch

    fresh = composed(per=per)
    fresh.load_state_dict({"step": torch.tensor(3)})
    resumed = coloured(20)
    fresh.augment_batch(resumed)
    assert torch.equal(after(3).images, resumed.images)
    assert torch.equal(after(3).shares, resumed.shares)
    for other in (after(2), after(3, seed=1)):
        assert not torch.equal(other.labels, resumed.labels)
        assert not torch.equal(other.shares, resumed.shares)


@pytest.mark.parametrize("per", PER)
def test_processes_have_one_lambda_a_batch_and_their_own_partners(per: str) -> None:
    class Second(augury.Ranks):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank = rank

    def on(rank: int) -> augury.Batch:
        methods = augury.compose([(Mixup, {"per": per})], num_classes=CLASSES, ranks=Second(rank))
        batch = coloured(20)
        methods.augment_batch(batch)
        return batch

    first, second = on(0), on(1)
    assert not torch.equal(first.labels, second.labels)
    assert torch.equal(first.shares, second.shares) == (per == "batch")


def test_weights_and_smoothing_travel_with_their_image() -> None:
    batch = coloured(10, 2)
    smoothing, weights, of_rows = torch.rand(CLASSES), torch.rand(CLASSES), torch.rand(CLASSES)
    batch.smoothing, batch.label_weights = smoothing[batch.labels], weights[batch.labels]
    batch.row_weights = of_rows[batch.labels[:, 0]]
    changed(batch, per="image")
    assert torch.equal(batch.smoothing, smoothing[batch.labels])
    assert torch.equal(batch.label_weights, weights[batch.labels])
    torch.testing.assert_close(batch.row_weights, (batch.shares * of_rows[batch.labels]).sum(1))


@pytest.mark.parametrize("per", PER)
def test_loss_of_a_mixed_batch_is_the_formula(per: str) -> None:
    torch.manual_seed(0)
    methods, batch = composed(per=per), coloured(9, 2)
    batch.smoothing = torch.rand(18, 1) * 0.5
    methods.augment_batch(batch)
    logits = torch.randn(18, CLASSES, dtype=torch.float64, requires_grad=True)
    targets, u = torch.zeros(18, CLASSES, dtype=torch.float64), logits.exp() / logits.exp().sum(1, keepdim=True)
    for i in range(18):
        for k in range(2):
            share, eps = batch.shares[i, k].double(), batch.smoothing[i, k].double()
            targets[i, batch.labels[i, k]] += share * (1 - eps)
            targets[i] += share * eps / CLASSES
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(18, 1), logits))
    expected = -(targets * u.log()).sum() / 18
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    got, wanted = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(got, wanted, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("alpha", 0.0, "> 0"),
        ("alpha", -1.0, "> 0"),
        ("alpha", float("inf"), "a finite number"),
        ("alpha", float("nan"), ""),
        ("prob", 1.1, "<= 1"),
        ("prob", -0.1, ">= 0"),
        ("per", "row", "'batch' or 'image'"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(augury.UsageError, match=rf"mixup: option `{option}` must be .*{allowed}") as caught:
        composed(**{option: value})
    assert "\n" not in str(caught.value)


def test_it_has_no_state_and_needs_one_view() -> None:
    methods = composed()
    assert list(methods.parameters()) == []
    assert list(methods.state_dict()) == ["step"]
    assert methods.views == 1


@pytest.mark.parametrize("order", [("mixup", "dcutmix"), ("dcutmix", "mixup")])
def test_beside_another_mixing_method_all_labels_are_kept(order: tuple[str, str]) -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(5, CLASSES)
    options = {"mixup": {}, "dcutmix": {"k": 3, "alpha": 1.0}}
    chosen: list[Any] = [*((name, options[name]) for name in order), "isda"]
    methods = augury.compose(chosen, num_classes=CLASSES, classifier=classifier, total_steps=4)
    for _ in range(4):
        batch = coloured(12)
        methods.augment_batch(batch)
        assert batch.labels.shape == (12, 6)
        # The labels are still those of the pixels, averaged over the image.
        pixels = batch.images.mean((2, 3)).float()
        torch.testing.assert_close(batch.soft_targets(CLASSES), pixels, atol=1e-6, rtol=0)
        features = torch.randn(12, 5)
        loss = methods.compute_loss(batch, augury.ModelOutput(features, classifier(features)))
        assert loss.isfinite()
        loss.backward()
        methods.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "mixup/digits"],
        ["--dataset", "digits", "--with", "mixup:per=image", "--with", "dcutmix", "--with", "isda"],
    ],
)
def test_the_installed_command_trains(arguments: list[str], tmp_path: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "augury"), "run", *arguments, "--set", "optim.epochs=1"]
    done = subprocess.run([*command, "--output", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["methods"][0]["name"] == "mixup"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["last"]["test"]["top1"] <= 100
