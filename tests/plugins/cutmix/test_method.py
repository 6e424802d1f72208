"""CutMix in a composition: labels follow pixels, views stay apart, draws are counted."""

from __future__ import annotations

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import augury
from augury_cutmix import CutMix

CLASSES = 40
PER = ["batch", "image"]


def composed(seed: int = 0, **options: Any) -> augury.Composition:
    return augury.compose([(CutMix, options)], num_classes=CLASSES, seed=seed)


def marked(rows: int, views: int = 1, shape: tuple[int, int, int] = (2, 8, 7)) -> augury.Batch:
    """Image i of view v is filled with its class, i + 20 v."""
    labels = torch.cat([20 * view + torch.arange(rows) for view in range(views)])
    images = labels.float()[:, None, None, None].expand(-1, *shape).clone()
    return augury.Batch.of(images, labels, views=views)


def pixels_of_classes(batch: augury.Batch) -> Tensor:
    """M x C int64: how many pixels of each row are of each class."""
    return torch.stack([(batch.images[:, 0] == c).sum((1, 2)) for c in range(CLASSES)], 1)


def changed(batch: augury.Batch, seed: int = 0, **options: Any) -> augury.Batch:
    composed(seed, **options).augment_batch(batch)
    return batch


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    ("rows", "shape"), [(1, (3, 8, 8)), (2, (1, 7, 5)), (13, (3, 1, 6)), (4, (1, 1, 1)), (20, (3, 32, 32))]
)
def test_labels_have_the_shares_of_their_pixels(per: str, views: int, rows: int, shape: tuple[int, int, int]) -> None:
    batch, original, pixels = changed(marked(rows, views, shape), per=per), marked(rows, views), shape[1] * shape[2]
    assert batch.shares.dtype == torch.float32
    assert batch.shares.shape == batch.labels.shape == (rows * views, 2)
    assert (batch.images == batch.images[:, :1]).all(), "channels are mixed alike"
    assert torch.equal((batch.soft_targets(CLASSES).double() * pixels).round().long(), pixels_of_classes(batch))
    for labels, shares, counts in zip(batch.labels, batch.shares, pixels_of_classes(batch), strict=True):
        if labels[0] != labels[1]:
            assert torch.equal(shares, (counts[labels].double() / pixels).float())
    assert torch.equal(batch.labels[:, :1], original.labels), "the first label is the row's own"
    assert torch.equal(batch.labels[:, 1].sort().values, original.labels[:, 0].sort().values), "a permutation"


def boxes_of(batch: augury.Batch) -> Tensor:
    """M x H x W bool: the pixels that are another image's."""
    return batch.images[:, 0] != batch.labels[:, :1, None]


def test_a_batch_has_one_box_for_each_view() -> None:
    batch = marked(20, 2, (1, 32, 32))
    changed(batch, seed=2)
    for view in (batch.view(0), batch.view(1)):
        assert len(view.shares[:, 0].unique()) == 1
        changed_rows = view.labels[:, 0] != view.labels[:, 1]
        boxes = boxes_of(view)[changed_rows]
        assert boxes.any()
        assert (boxes == boxes[:1]).all()
    first, second = batch.view(0), batch.view(1)
    assert first.shares[0, 0] != second.shares[0, 0]
    assert not torch.equal(first.labels, second.labels - 20), "other partners"
    assert first.images.max() < 20 <= second.images.min()


def test_each_image_may_have_a_box_of_its_own() -> None:
    batch = changed(marked(20, 2, (1, 32, 32)), per="image")
    assert len(batch.shares[:, 0].unique()) > 30
    assert not torch.equal(batch.view(0).labels, batch.view(1).labels - 20), "other partners"


@pytest.mark.slow
@pytest.mark.parametrize("per", PER)
def test_statistics_of_the_labels_over_many_steps(per: str) -> None:
    methods, found = composed(per=per), []
    steps, rows = (4000, 1) if per == "batch" else (100, 40)
    for _ in range(steps):
        batch = augury.Batch.of(torch.zeros(rows, 1, 32, 32), torch.zeros(rows))
        methods.augment_batch(batch)
        methods.step()
        found.append(batch.shares[:, 0])
    own = torch.cat(found)
    assert float(own.mean()) == pytest.approx(0.700, abs=5 * 0.184 / 4000**0.5)
    assert float(own.std()) == pytest.approx(0.184, abs=0.01)
    assert float((own < 0.5).float().mean()) == pytest.approx(0.15, abs=0.03)


@pytest.mark.parametrize("per", PER)
def test_one_coin_for_all_views_with_the_chance_asked_for(per: str) -> None:
    methods, mixed, steps = composed(prob=0.3, per=per), 0, 400
    for _ in range(steps):
        batch = marked(8, 2)
        methods.augment_batch(batch)
        methods.step()
        assert batch.mixed or torch.equal(batch.images, marked(8, 2).images)
        mixed += batch.mixed
    assert abs(mixed - steps * 0.3) < 5 * (steps * 0.3 * 0.7) ** 0.5


def test_nothing_is_mixed_with_a_chance_of_0() -> None:
    batch, original = changed(marked(8), prob=0.0), marked(8)
    for name, value in vars(original).items():
        assert torch.equal(getattr(batch, name), value) if isinstance(value, Tensor) else True


@pytest.mark.parametrize("per", PER)
def test_a_batch_of_which_no_image_was_kept(per: str) -> None:
    batch = marked(4, 2)
    batch.take(torch.empty(0, dtype=torch.int64))
    changed(batch, per=per)
    assert batch.labels.shape == batch.shares.shape == (0, 2)


@pytest.mark.parametrize("per", PER)
def test_draws_are_counted_by_seed_and_step(per: str) -> None:
    def after(steps: int, seed: int = 0) -> augury.Batch:
        methods = composed(seed=seed, per=per)
        for _ in range(steps):
            methods.augment_batch(marked(3))  # another number of draws
            methods.step()
        batch = marked(20)
        methods.augment_batch(batch)
        return batch

    fresh = composed(per=per)
    fresh.load_state_dict({"step": torch.tensor(3)})
    resumed = marked(20)
    fresh.augment_batch(resumed)
    assert torch.equal(after(3).images, resumed.images)
    assert torch.equal(after(3).shares, resumed.shares)
    for other in (after(2), after(3, seed=1)):
        assert not torch.equal(other.labels, resumed.labels)
        assert not torch.equal(other.shares, resumed.shares)


@pytest.mark.parametrize("per", PER)
def test_processes_have_one_box_a_batch_and_their_own_partners(per: str) -> None:
    class Second(augury.Ranks):
        def __init__(self, rank: int) -> None:
            super().__init__()
            self.rank = rank

    def on(rank: int) -> augury.Batch:
        methods = augury.compose([(CutMix, {"per": per})], num_classes=CLASSES, ranks=Second(rank))
        batch = marked(20)
        methods.augment_batch(batch)
        return batch

    first, second = on(0), on(1)
    assert not torch.equal(first.labels, second.labels)
    assert torch.equal(first.shares, second.shares) == (per == "batch")


def test_weights_and_smoothing_travel_with_their_image() -> None:
    batch = marked(10, 2)
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
    methods, batch = composed(per=per), marked(9, 2)
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
    with pytest.raises(augury.UsageError, match=rf"cutmix: option `{option}` must be .*{allowed}") as caught:
        composed(**{option: value})
    assert "\n" not in str(caught.value)


def test_it_has_no_state_and_needs_one_view() -> None:
    methods = composed()
    assert list(methods.parameters()) == []
    assert list(methods.state_dict()) == ["step"]
    assert methods.views == 1


@pytest.mark.parametrize("order", [("cutmix", "dcutmix"), ("dcutmix", "cutmix")])
def test_beside_another_mixing_method_all_labels_are_kept(order: tuple[str, str]) -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(5, CLASSES)
    options = {"cutmix": {}, "dcutmix": {"k": 3, "alpha": 1.0}}
    chosen: list[Any] = [*((name, options[name]) for name in order), "isda"]
    methods = augury.compose(chosen, num_classes=CLASSES, classifier=classifier, total_steps=4)
    for _ in range(4):
        batch = marked(12)
        methods.augment_batch(batch)
        assert batch.labels.shape == (12, 6)
        assert pixels_of_classes(batch).sum() == 12 * 56, "pasted, not blended"
        torch.testing.assert_close(batch.shares.sum(1), torch.ones(12), atol=1e-6, rtol=0)
        features = torch.randn(12, 5)
        loss = methods.compute_loss(batch, augury.ModelOutput(features, classifier(features)))
        assert loss.isfinite()
        loss.backward()
        methods.step()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "cutmix/digits"],
        ["--dataset", "digits", "--with", "cutmix:per=image", "--with", "dcutmix", "--with", "isda"],
    ],
)
def test_the_installed_command_trains(arguments: list[str], tmp_path: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "augury"), "run", *arguments, "--set", "optim.epochs=1"]
    done = subprocess.run([*command, "--output", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["methods"][0]["name"] == "cutmix"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["last"]["test"]["top1"] <= 100
