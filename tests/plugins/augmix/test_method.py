"""AugMix's loss in a composition: the criterion counts the clean view alone, and three views are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.train.small_runs import batches_of, small
from torch import Tensor, nn

import augury
from augury_augmix import AugMix
from augury_augmix.functional import jensen_shannon
from augury_train.config import read_config, read_recipe
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer

CLASSES, FEATURES = 6, 4


class FourViews(augury.Method):
    """Asks for one view more than AugMix."""

    views = 4
    views_alike = False

    @augury.hookimpl
    def augment_batch(self) -> None:
        pass


class ConditionalLogits(augury.Method):
    """Sets logits conditional on the label, as isda does."""

    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, batch: augury.Batch, output: augury.ModelOutput) -> Any:
        output.class_logits = 3 * output.logits[:, None].expand(-1, batch.labels.shape[1], -1)
        return (yield)


def composed(*others: Any, **options: Any) -> augury.Composition:
    return augury.compose([(AugMix, options), *others], num_classes=CLASSES, classifier=nn.Linear(FEATURES, CLASSES))


def made(methods: augury.Composition, n: int = 5, seed: int = 0) -> tuple[augury.Batch, augury.ModelOutput]:
    """An augmented batch, with smoothed labels and weighted rows, and what a network made of it."""
    draws = torch.Generator().manual_seed(seed)
    views = [torch.randn(n, 1, 3, 3, generator=draws) for _ in range(methods.views)]
    batch = methods.batch(views, torch.randint(0, CLASSES, (n,), generator=draws))
    rows = len(batch)
    batch.smoothing = 0.3 * torch.rand(rows, 1, generator=draws)
    batch.label_weights = torch.rand(rows, 1, generator=draws)
    batch.row_weights = 0.5 + torch.rand(rows, generator=draws)
    logits = 2 * torch.randn(rows, CLASSES, generator=draws, dtype=torch.float64)
    features = torch.randn(rows, FEATURES, generator=draws, dtype=torch.float64)
    return batch, augury.ModelOutput(features, logits.requires_grad_())


def expected(batch: augury.Batch, weights: Tensor, logits: Tensor, weight: float, n: int) -> Tensor:
    """Criterion on view 0 plus the divergence of views 0 to 2; `weights` as the rows came."""
    log_p = logits.log_softmax(1)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(n):
        eps, w = batch.smoothing[i, 0].double(), batch.label_weights[i, 0].double()
        row = -(1 - eps) * log_p[i, batch.labels[i, 0]] - eps * log_p[i].mean()
        total = total + weights[i].double() * w * row / n
        p = [log_p[view * n + i].exp() for view in range(3)]
        mean = (p[0] + p[1] + p[2]) / 3
        total = total + weight * sum((one * (one / mean).log()).sum() for one in p) / 3 / n
    return total


@pytest.mark.parametrize(("others", "views"), [((), 3), ((FourViews,), 4)])
@pytest.mark.parametrize("weight", [12.0, 0.0, 0.7])
@pytest.mark.parametrize("n", [1, 5])
def test_the_loss_is_the_formula(others: tuple[Any, ...], views: int, weight: float, n: int) -> None:
    methods = composed(*others, weight=weight)
    assert methods.views == views
    assert methods.view_pipelines == ("base", *["augmented"] * (views - 1))
    batch, output = made(methods, n)
    given, logits = batch.row_weights.clone(), output.logits
    methods.augment_batch(batch)
    loss = methods.compute_loss(batch, output)
    want = expected(batch, given, logits.detach().requires_grad_(), weight, n)
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=0, check_dtype=False)
    (gradient,) = torch.autograd.grad(loss, logits)
    again = logits.detach().requires_grad_()
    (reference,) = torch.autograd.grad(expected(batch, given, again, weight, n), again)
    torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-9)


def test_the_clean_view_is_the_one_that_base_made() -> None:
    methods = composed()
    batch, _ = made(methods)
    methods.augment_batch(batch)
    assert torch.equal(batch.row_weights > 0, batch.made_by("base"))


def test_the_divergence_does_not_see_logits_conditional_on_a_label() -> None:
    for order in ((AugMix, ConditionalLogits), (ConditionalLogits, AugMix)):
        methods = augury.compose(list(order), num_classes=CLASSES)
        batch, output = made(methods)
        logits = output.logits.detach()
        methods.augment_batch(batch)
        loss = methods.compute_loss(batch, output)
        divergence = jensen_shannon(logits.unflatten(0, (3, -1))).mean()
        log_p, log_u = (3 * logits).log_softmax(1).gather(1, batch.labels), logits.log_softmax(1)
        rows = (batch.smoothing - 1) * log_p - batch.smoothing * log_u.mean(1, keepdim=True)
        criterion = (batch.row_weights * (batch.label_weights * rows).sum(1)).mean()
        torch.testing.assert_close(loss.detach(), criterion + 12 * divergence)


def test_it_logs_the_divergence_without_its_weight() -> None:
    methods = composed(weight=5.0)
    batch, output = made(methods)
    methods.augment_batch(batch)
    methods.compute_loss(batch, output)
    logged = methods.post_epoch({})
    divergence = jensen_shannon(output.logits.detach().unflatten(0, (3, -1))).mean()
    assert logged == {"augmix/divergence": pytest.approx(float(divergence))}


def test_it_has_no_state() -> None:
    assert list(composed().state_dict()) == ["step"]


@pytest.mark.parametrize(
    ("value", "allowed"),
    [(-0.1, ">= 0"), (float("nan"), "a finite number"), (float("inf"), "a finite number"), ("much", "a number")],
)
def test_a_weight_out_of_range_is_refused(value: Any, allowed: str) -> None:
    with pytest.raises(augury.UsageError, match=rf"augmix: option `weight` must be {allowed}") as caught:
        composed(weight=value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [("augmix", "dcutmix"), ("dcutmix", "augmix"), ("augmix", "dcutmix", "isda")])
def test_methods_that_mix_are_refused_beside_it(order: tuple[str, ...]) -> None:
    with pytest.raises(augury.UsageError) as refused:
        make_plan(small(*order))
    assert str(refused.value) == (
        "augmix compares the views of an image, and dcutmix mixes each view with other images, so the views would not "
        "be of one image. Leave augmix or dcutmix out."
    )


def test_the_trainer_makes_view_0_by_base() -> None:
    """`base` and `augmented` differ, so the row that `base` made is the image as it is."""
    config = small("augmix", data={"base": "", "augmented": "augmix:severity=10"}, optim={"batch_size": 20})
    batch = next(iter(batches_of(Trainer(make_plan(config)))))
    plain = small(data={"base": "", "augmented": ""}, optim={"batch_size": 20})
    unchanged = {
        int(i): x for b in batches_of(Trainer(make_plan(plain))) for i, x in zip(b.indices, b.images, strict=True)
    }
    clean, *others = batch.images.unflatten(0, (3, -1)).unbind(0)
    images = torch.stack([unchanged[int(i)] for i in batch.view(0).indices])
    assert torch.equal(clean, images)
    for other in others:
        assert F.mse_loss(other, clean) > 1e-3
    assert F.mse_loss(*others) > 1e-3, "each augmented view has its own draws"


def test_the_recipe_makes_the_views_differently() -> None:
    path = Path(sys.modules["augury_augmix"].__file__ or "").parent / "recipes" / "digits.toml"
    plan = make_plan(read_config(read_recipe(path)))
    assert [(c.name, c.options) for c in plan.chosen] == [("augmix", AugMix.Options())]
    assert plan.config.data.base != plan.config.data.augmented


@pytest.mark.slow
def test_the_recipe_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    short = ("--set", "optim.epochs=1", "--set", "data.images_per_class=20", "--set", "optim.batch_size=50")
    folder = tmp_path / "run"
    command = [str(Path(sys.executable).with_name("augury")), "run", "--recipe", "augmix/digits", *short]
    command += ["--with", "augmix", "--with", "isda", "--output", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= row["augmix/divergence"] < 1.1
