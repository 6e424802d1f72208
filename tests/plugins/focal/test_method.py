"""The focal loss in a composition: it reads what other methods set, and weighs classes by their counts."""

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
from augury_focal import Focal
from augury_focal.functional import class_balanced_weights

CLASSES, FEATURES, COUNTS = 4, 6, (50, 20, 5, 1)


def composed(*names: Any, steps: int = 4, counts: Any = COUNTS, seed: int = 0) -> augury.Composition:
    return augury.compose(
        names,
        num_classes=CLASSES,
        classifier=classifier(),
        total_steps=steps,
        class_counts=counts,
        seed=seed,
    )


def classifier() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Linear(FEATURES, CLASSES)


def losses(*names: Any, steps: int = 4) -> list[float]:
    """A few steps on features of three clusters for a class, the loss of each."""
    methods, layer, found = composed(*names, steps=steps), classifier(), []
    methods.run.classifier = layer
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for step in range(steps):
        g = torch.Generator().manual_seed(step)
        images, labels = torch.randn(24, 1, 2, 3, generator=g), torch.arange(24) % CLASSES
        batch = methods.batch(images, labels)
        methods.augment_batch(batch)
        features = batch.images.flatten(1)
        loss = methods.compute_loss(batch, augury.ModelOutput(features, layer(features)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        methods.step()
        found.append(loss.item())
    return found


def random_batch(rows: int = 9, k: int = 2) -> tuple[augury.Batch, augury.ModelOutput]:
    torch.manual_seed(0)
    batch = augury.Batch.of(torch.randn(rows, 1, 4, 4), torch.zeros(rows))
    batch.labels = torch.randint(CLASSES, (rows, k))
    batch.shares = torch.rand(rows, k).softmax(1)
    batch.smoothing, batch.label_weights = torch.rand(rows, k), torch.rand(rows, k)
    batch.row_weights = torch.rand(rows)
    logits = torch.randn(rows, CLASSES, dtype=torch.float64, requires_grad=True)
    return batch, augury.ModelOutput(torch.zeros(rows, FEATURES), logits)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_loss_is_the_formula(gamma: float, beta: float) -> None:
    batch, output = random_batch()
    loss = composed(("focal", {"gamma": gamma, "beta": beta})).compute_loss(batch, output)
    u = output.logits.softmax(1)
    raw = torch.tensor([(1 - beta) / (1 - beta**n) for n in COUNTS], dtype=torch.float64)
    of_class, expected = CLASSES * raw / raw.sum(), torch.zeros((), dtype=torch.float64)
    for i in range(len(batch)):
        for k in range(2):
            label, e = int(batch.labels[i, k]), batch.smoothing[i, k].double()
            row = -(1 - e) * (1 - u[i, label]) ** gamma * u[i, label].log() - e * u[i].log().mean()
            weight = batch.row_weights[i].double() * batch.shares[i, k].double() * batch.label_weights[i, k].double()
            expected = expected + weight * of_class[label] * row / len(batch)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    got, wanted = (torch.autograd.grad(value, output.logits, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-8)


def test_without_focus_and_weights_it_is_the_cross_entropy_to_the_last_bit() -> None:
    assert losses(("focal", {"gamma": 0.0})) == losses()
    assert losses(("focal", {"gamma": 0.0}), "isda") == losses("isda")
    assert losses(("focal", {"gamma": 0.0}), ("dcutmix", {"k": 2})) == losses(("dcutmix", {"k": 2}))


@pytest.mark.parametrize("order", [("focal", "isda"), ("isda", "focal")])
def test_it_reads_what_isda_sets(order: tuple[str, str]) -> None:
    options = {"focal": {"gamma": 2.0, "beta": 0.9}, "isda": {"lambda_0": 2.0}}
    both = losses(*((name, options[name]) for name in order))
    alone = losses(("focal", options["focal"]))
    assert both[0] == alone[0], "isda's strength is 0 in the first step"
    assert all(abs(a - b) > 1e-4 for a, b in zip(both[1:], alone[1:], strict=True))
    assert both == losses(*((name, options[name]) for name in reversed(order)))


@pytest.mark.parametrize("order", [("plain", "isda"), ("isda", "plain")])
def test_a_criterion_that_does_not_read_them_is_refused(order: tuple[str, str]) -> None:
    class Plain(Focal):
        reads_class_logits = False

    with pytest.raises(augury.UsageError, match="plain replaces the criterion and does not read `class_logits`"):
        composed(*(Plain if name == "plain" else name for name in order))


def test_the_modulation_uses_the_probability_under_the_labels_own_logits() -> None:
    batch, output = random_batch()
    batch.smoothing = torch.zeros_like(batch.smoothing)
    output.class_logits = torch.randn(9, 2, CLASSES, dtype=torch.float64)
    loss = composed("focal").compute_loss(batch, output)
    p = output.class_logits.softmax(2).gather(2, batch.labels[:, :, None]).squeeze(2)
    rows = (batch.shares.double() * batch.label_weights.double() * -((1 - p) ** 2) * p.log()).sum(1)
    torch.testing.assert_close(loss, (batch.row_weights.double() * rows).mean(), rtol=1e-6, atol=0)


def test_two_criteria_are_refused() -> None:
    class Other(Focal):
        pass

    with pytest.raises(augury.UsageError, match="each replace the criterion"):
        composed("focal", Other)


def test_class_weights_are_those_of_the_counts_and_are_not_saved() -> None:
    methods = composed(("focal", {"beta": 0.99}))
    assert torch.equal(methods["focal"].class_weights, class_balanced_weights(COUNTS, 0.99))
    assert list(methods.state_dict()) == ["step"]
    assert list(methods.parameters()) == []
    methods.double()
    assert methods["focal"].class_weights.dtype == torch.float64, "it moves with the method"
    assert composed("focal", counts=None)["focal"].class_weights is None


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(augury.UsageError) as caught:
        composed(("focal", {"beta": 0.9}), counts=None)
    assert str(caught.value) == (
        "focal: option `beta` needs `class_counts`, the training images of each of the 4 classes, which is not known. "
        "Pass class_counts=… to augury.compose, or set beta=0."
    )


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("gamma", -0.1, ">= 0"),
        ("gamma", float("inf"), "a finite number"),
        ("gamma", float("nan"), ""),
        ("beta", 1.0, "< 1"),
        ("beta", -0.1, ">= 0"),
        ("beta", "much", "a number"),
    ],
)
def test_options_out_of_range_are_refused(option: str, value: Any, allowed: str) -> None:
    with pytest.raises(augury.UsageError, match=rf"focal: option `{option}` must be .*{allowed}") as caught:
        composed(("focal", {option: value}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mixing", ["mixup", "cutmix", "dcutmix"])
def test_mixed_labels_are_weighed_one_by_one(mixing: str) -> None:
    methods = composed(mixing, ("focal", {"beta": 0.99, "gamma": 1.0}))
    torch.manual_seed(0)
    batch = methods.batch(torch.randn(12, 1, 8, 8), torch.arange(12) % CLASSES)
    methods.augment_batch(batch)
    assert batch.mixed
    logits = torch.randn(12, CLASSES, dtype=torch.float64)
    p: Tensor = logits.softmax(1).gather(1, batch.labels)
    weights = class_balanced_weights(COUNTS, 0.99).double()[batch.labels]
    expected = (batch.shares.double() * weights * -(1 - p) * p.log()).sum(1).mean()
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(12, FEATURES), logits))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "focal/digits"],
        ["--dataset", "digits", "--with", "focal:beta=0.99", "--with", "isda"],
        ["--dataset", "digits", "--with", "dcutmix", "--with", "isda", "--with", "focal:gamma=1"],
    ],
)
def test_the_installed_command_trains(arguments: list[str], tmp_path: Path) -> None:
    command = [str(Path(sysconfig.get_path("scripts")) / "augury"), "run", *arguments, "--set", "optim.epochs=1"]
    done = subprocess.run([*command, "--output", str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "focal" in [method["name"] for method in config["methods"]]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0 < result["last"]["test"]["top1"] <= 100
