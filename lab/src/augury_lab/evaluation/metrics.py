"""Classes and their confusion: what a network's answers come to, class by class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from augury_train.measures import chunks


@dataclass(frozen=True)
class ClassRow:
    """How one class fares; shares in percent.

    Attributes:
        name: the class.
        support: its images in the split.
        predicted: images that the network takes for it.
        recall: share of its images that are recognised, which is its accuracy; None where the split has none.
        precision: share of the images taken for it that are it; None where none is taken for it.
        f1: harmonic mean of the two, 0 where nothing is right; None where the split has no image of the class.
    """

    name: str
    support: int
    predicted: int
    recall: float | None
    precision: float | None
    f1: float | None


@dataclass(frozen=True)
class Classes:
    """How the classes fare.

    A class that the split has no image of counts in neither of the two means; images that are taken for it are
    errors of their own classes.

    Attributes:
        balanced: balanced accuracy in percent, the mean recall of the classes that the split has images of.
        macro_f1: mean F1 of the same classes, in percent.
        rows: one a class, by label.
        confusion: C x C counts, a row the true class, a column the predicted one.
    """

    balanced: float
    macro_f1: float
    rows: list[ClassRow]
    confusion: list[list[int]]


def by_class(logits: Tensor, labels: Tensor, classes: list[str]) -> Classes:
    """Recall, precision, F1 and confusion of a network's answers.

    Args:
        logits: N x C float.
        labels: N int64.
        classes: C names.
    """
    from torchmetrics.functional.classification import (
        multiclass_confusion_matrix,
        multiclass_f1_score,
        multiclass_precision,
        multiclass_recall,
    )

    # Of equal logits the first counts, as in the accuracy.
    answers, count = logits.argmax(1), len(classes)
    confusion = multiclass_confusion_matrix(answers, labels, count)
    support, predicted = confusion.sum(1), confusion.sum(0)
    recall, precision, f1 = (
        100 * metric(answers, labels, count, average="none").double()
        for metric in (multiclass_recall, multiclass_precision, multiclass_f1_score)
    )
    # torchmetrics has a 0 where there is nothing to divide by, which would pass for a class that is never recognised.
    present = support > 0
    rows = [
        ClassRow(
            name=name,
            support=int(support[label]),
            predicted=int(predicted[label]),
            recall=_where(recall, present, label),
            precision=_where(precision, predicted > 0, label),
            f1=_where(f1, present, label),
        )
        for label, name in enumerate(classes)
    ]
    return Classes(float(recall[present].mean()), float(f1[present].mean()), rows, confusion.tolist())


def _where(values: Tensor, known: Tensor, label: int) -> float | None:
    return float(values[label]) if known[label] else None


@dataclass(frozen=True)
class Mistake:
    """One of the images that the network is worst at.

    Attributes:
        image: its place in the split.
        name: what the data set calls it: its path, say.
        true, predicted: class names.
        p_true, p_predicted: their probabilities.
        loss: negative log-likelihood of the true class, in nats.
    """

    image: int
    name: str
    true: str
    predicted: str
    p_true: float
    p_predicted: float
    loss: float


def worst(logits: Tensor, labels: Tensor, classes: list[str], count: int) -> list[Mistake]:
    """The images of the highest loss, the highest first; those that are recognised all the same are among them where
    few are mistaken. The names of the images are left empty.

    Args:
        logits: N x C float.
        labels: N int64.
        classes: C names.
        count: how many.
    """
    # Float64, in which losses that float32 would call equal keep their order.
    losses = torch.cat(
        [F.cross_entropy(some.double(), theirs, reduction="none") for some, theirs in chunks(logits, labels)]
    )
    rows = losses.argsort(descending=True, stable=True)[:count]
    shares, own, answers = logits[rows].double().softmax(1), labels[rows], logits[rows].argmax(1)
    return [
        Mistake(
            image=row,
            name="",
            true=classes[int(own[place])],
            predicted=classes[int(answers[place])],
            p_true=float(shares[place, own[place]]),
            p_predicted=float(shares[place, answers[place]]),
            loss=float(losses[row]),
        )
        for place, row in enumerate(rows.tolist())
    ]
