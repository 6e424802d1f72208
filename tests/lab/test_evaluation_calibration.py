"""Reliability, calibration error and temperature, on planted cases."""

from __future__ import annotations

import math

import pytest
import torch

from augury_lab.evaluation import calibration
from augury_lab.evaluation.calibration import COLDEST, calibrate, fit_temperature, reliability
from augury_train import measures
from augury_train.measures import measure


def sure(confidence: float, rows: int, right: int, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of rows that name class 0 with that confidence, and labels of which so many are 0."""
    rest = (1 - confidence) / (classes - 1)
    logits = torch.tensor([confidence] + [rest] * (classes - 1), dtype=torch.float64).log().expand(rows, classes)
    return logits, torch.tensor([0] * right + [1] * (rows - right))


def drawn(rows: int = 4000, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels drawn from their softmax."""
    made = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=made)
    labels = torch.multinomial(logits.softmax(1), 1, generator=made)[:, 0]
    return logits, labels


def test_the_error_of_planted_bins() -> None:
    # 0.9 sure and 70 % right, 0.5 sure and 60 % right: (100 * 0.2 + 50 * 0.1) / 150.
    parts = sure(0.9, 100, 70), sure(0.5, 50, 30)
    logits, labels = (torch.cat(both) for both in zip(*parts, strict=True))
    found = reliability(logits, labels)
    assert found.ece == pytest.approx(100 * 25 / 150)
    # Bins of 1/15: 0.9 is in the 14th, 0.5 in the 8th.
    assert found.images == [0] * 7 + [50] + [0] * 5 + [100, 0]
    assert found.confidence[13] == pytest.approx(0.9)
    assert found.accuracy[13] == pytest.approx(0.7)
    assert found.accuracy[7] == pytest.approx(0.6)
    assert found.confidence[0] is None
    assert found.accuracy[0] is None
    assert found.nll == pytest.approx(
        -(70 * math.log(0.9) + 30 * math.log(0.1 / 9) + 30 * math.log(0.5) + 20 * math.log(0.5 / 9)) / 150
    )


def test_probabilities_that_are_1_fall_into_the_last_bin() -> None:
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0], [1.0, 0.0]])
    found = reliability(logits, torch.tensor([0, 1, 1]))
    assert len(found.images) == 15
    assert found.images[14] == 2
    assert found.accuracy[14] == 0.5


def test_the_error_is_torchmetrics() -> None:
    logits, labels = drawn()
    assert reliability(3 * logits, labels).ece == pytest.approx(measure(3 * logits, labels).ece, abs=0.02)
    assert reliability(3 * logits, labels).ece > 10


def test_what_is_calibrated_has_a_temperature_of_1_and_nearly_no_error() -> None:
    logits, labels = drawn(20000)
    assert fit_temperature(logits, labels) == pytest.approx(1, abs=0.03)
    assert reliability(logits, labels).ece < 1.5


@pytest.mark.parametrize("factor", [0.2, 2.5, 40.0])
def test_a_planted_temperature_is_found(factor: float) -> None:
    logits, labels = drawn(20000)
    found = fit_temperature(factor * logits, labels)
    assert found == pytest.approx(factor, rel=0.03)
    # The minimum itself: a thousandth to either side is worse.
    losses = [
        float(torch.nn.functional.cross_entropy(factor * logits.double() / t, labels))
        for t in (found * 0.999, found, found * 1.001)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_it_is_fitted_on_the_one_split_and_judged_on_the_other() -> None:
    logits, labels = drawn(8000)
    found = calibrate(3 * logits[:4000], labels[:4000], (3 * logits[4000:], labels[4000:]))
    assert found.temperature == fit_temperature(3 * logits[4000:], labels[4000:])
    assert found.after is not None
    assert found.before.ece > 10
    assert found.after.ece < 3
    assert found.after.nll < found.before.nll
    assert found.note == ""


def test_without_a_validation_split_there_is_no_temperature() -> None:
    found = calibrate(*drawn(100), None, "why")
    assert (found.temperature, found.after, found.note) == (None, None, "why")


def test_a_split_without_an_error_does_not_determine_the_temperature() -> None:
    logits = torch.eye(3).repeat(5, 1)
    labels = torch.arange(3).repeat(5)
    found = calibrate(logits, labels, (logits, labels))
    assert found.temperature == pytest.approx(COLDEST, rel=0.01)
    assert "does not determine it" in found.note
    # And where every image is mistaken, it is the hottest that is best.
    assert fit_temperature(logits, (labels + 1) % 3) == pytest.approx(100, rel=0.01)
    # So sure that neither derivative is left in float64.
    assert fit_temperature(1e4 * logits, labels) == pytest.approx(COLDEST, rel=0.01)


def test_logits_far_from_0_do_no_harm() -> None:
    logits, labels = drawn()
    assert fit_temperature(2 * logits + 1e4, labels) == pytest.approx(fit_temperature(2 * logits, labels), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_newtons_steps_are_few(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[float] = []
    own = calibration._derivatives

    def counted(logits: torch.Tensor, labels: torch.Tensor, b: float) -> tuple[float, float]:
        steps.append(b)
        return own(logits, labels, b)

    monkeypatch.setattr(calibration, "_derivatives", counted)
    logits, labels = drawn(2000, seed=seed)
    fit_temperature(1.5 * logits, labels)
    assert len(steps) <= 10


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(1000, classes=7)
    whole = measure(3 * logits, labels), calibrate(3 * logits, labels, (3 * logits, labels))
    monkeypatch.setattr(measures, "AT_ONCE", 7 * 64)
    measured, calibrated = measure(3 * logits, labels), calibrate(3 * logits, labels, (3 * logits, labels))
    assert (measured.top1, measured.top5, measured.ece) == (whole[0].top1, whole[0].top5, whole[0].ece)
    assert measured.nll == pytest.approx(whole[0].nll, rel=1e-12)
    assert calibrated.before.images == whole[1].before.images
    assert calibrated.temperature == pytest.approx(whole[1].temperature, rel=1e-9)


def test_measures_are_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    monkeypatch.setattr(measures, "AT_ONCE", 9 * 100)
    logits, labels = drawn(1234, classes=9)
    logits[:50] *= 100
    found, shares = measure(2 * logits, labels), (2 * logits).softmax(1).clamp(max=1 - 2**-24)
    assert found.ece == 100 * float(multiclass_calibration_error(shares, labels, 9, n_bins=15, norm="l1"))
    for value, k in ((found.top1, 1), (found.top5, 5)):
        assert value == pytest.approx(100 * float(multiclass_accuracy(logits, labels, 9, average="micro", top_k=k)))
    assert found.nll == pytest.approx(float(torch.nn.functional.cross_entropy(2 * logits.double(), labels)), rel=1e-12)
    assert found.top5 is not None
    assert found.top5 > found.top1 + 10
