"""Classes, confusion and the worst images, against counts made by hand."""

from __future__ import annotations

import math

import pytest
import torch

from augury_lab.evaluation.metrics import by_class, worst

NAMES = ["ant", "bee", "cat", "dog"]


def logits_for(answers: list[int], classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(answers), classes) * 5.0


def test_planted_counts() -> None:
    # Of ant 3 of 4, of bee 1 of 2, of cat 2 of 2; no dog, but one bee is taken for one.
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    found = by_class(logits_for([0, 0, 0, 2, 1, 3, 2, 2]), labels, NAMES)
    assert found.confusion == [[3, 0, 1, 0], [0, 1, 0, 1], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert [(row.name, row.support, row.predicted) for row in found.rows] == [
        ("ant", 4, 3),
        ("bee", 2, 1),
        ("cat", 2, 3),
        ("dog", 0, 1),
    ]
    recall, precision, f1 = ([getattr(row, key) for row in found.rows] for key in ("recall", "precision", "f1"))
    assert recall[:3] == pytest.approx([75, 50, 100])
    assert precision == pytest.approx([100, 100, 200 / 3, 0])
    assert f1[:3] == pytest.approx([600 / 7, 200 / 3, 80])
    # There is no dog to be recognised.
    assert recall[3] is None
    assert f1[3] is None
    assert found.balanced == pytest.approx((75 + 50 + 100) / 3)
    assert found.macro_f1 == pytest.approx((600 / 7 + 200 / 3 + 80) / 3)


def test_a_class_that_is_never_named_has_no_precision_and_an_f1_of_0() -> None:
    found = by_class(logits_for([0, 0, 0]), torch.tensor([0, 1, 1]), NAMES[:2] + NAMES[2:])
    bee = found.rows[1]
    assert (bee.recall, bee.precision, bee.f1) == (0, None, 0)
    assert found.balanced == 50


def test_balanced_accuracy_is_not_top1_where_classes_differ_in_size() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    found = by_class(logits_for([0] * 100), labels, NAMES)
    assert found.balanced == 50


def test_of_equal_logits_the_first_class_is_the_answer() -> None:
    found = by_class(torch.zeros(2, 4), torch.tensor([0, 1]), NAMES)
    assert found.confusion[0][0] == 1
    assert found.confusion[1][0] == 1


def test_the_worst_come_first_and_losses_that_float32_calls_equal_keep_their_order() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [30.0, 0.0, 0.0], [29.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
    found = worst(logits, torch.tensor([1, 0, 0, 0]), ["a", "b", "c"], 4)
    assert [mistake.image for mistake in found] == [3, 0, 2, 1]
    first = found[0]
    assert (first.true, first.predicted) == ("a", "b")
    assert first.loss == pytest.approx(50, abs=1e-6)
    assert first.p_predicted == pytest.approx(1)
    assert first.p_true == pytest.approx(math.exp(-50))
    assert (found[1].p_true, found[1].loss) == pytest.approx((1 / 3, math.log(3)))


def test_no_more_of_the_worst_than_there_are_images() -> None:
    assert len(worst(torch.randn(3, 4), torch.tensor([0, 1, 2]), NAMES, 32)) == 3
