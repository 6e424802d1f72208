"""Label smoothing and the weights of classes against torch and against formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.train.small_runs import losses_of, small
from torch import Tensor

from augury.batch import Batch, ModelOutput
from augury.criterion import Criterion
from augury_train.config import TrainConfig
from augury_train.training.labels import LabelPolicy, class_weights
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer

CLASSES = 3
TRAINING = torch.tensor([0] * 6 + [1] * 3 + [2])


def rows() -> tuple[Tensor, Tensor]:
    """Logits N x C float64 and labels N."""
    return torch.randn(20, CLASSES, dtype=torch.float64), torch.randint(CLASSES, (20,))


def loss(logits: Tensor, labels: Tensor, **settings: Any) -> float:
    """The criterion's loss of rows as the policy prepares them."""
    batch = Batch.of(torch.zeros(len(labels), 1, 1, 1), labels)
    LabelPolicy(TrainConfig(**settings), TRAINING, CLASSES, torch.device("cpu")).prepare(batch)
    return float(Criterion().compute_loss(batch, ModelOutput(logits, logits)))


def test_smoothing_is_torchs() -> None:
    logits, labels = rows()
    assert loss(logits, labels) == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert loss(logits, labels, label_smoothing=0.2) == pytest.approx(float(expected), rel=1e-6)


def test_balanced_weights_make_classes_weigh_the_same_with_mean_1() -> None:
    weights = class_weights(TrainConfig(class_weights="balanced"), TRAINING, CLASSES)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert float(weights[TRAINING].mean()) == pytest.approx(1)
    per_class = torch.zeros(CLASSES).index_add(0, TRAINING, weights[TRAINING])
    assert per_class.tolist() == pytest.approx([10 / 3] * CLASSES)


def test_listed_weights_keep_their_ratios_and_get_mean_1() -> None:
    weights = class_weights(TrainConfig(class_weights=[1, 2, 8]), TRAINING, CLASSES)
    mean = (6 * 1 + 3 * 2 + 1 * 8) / 10
    assert weights.tolist() == pytest.approx([1 / mean, 2 / mean, 8 / mean])


@pytest.mark.parametrize("given", ["balanced", [1.0, 2.0, 8.0]])
def test_the_loss_is_the_mean_of_weighted_rows(given: str | list[float]) -> None:
    logits, labels = rows()
    counts = torch.tensor([6.0, 3.0, 1.0], dtype=torch.float64)
    raw = 1 / counts if given == "balanced" else torch.tensor(given, dtype=torch.float64)
    weights = raw * 10 / (raw * counts).sum()
    expected = (weights[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()
    assert loss(logits, labels, class_weights=given) == pytest.approx(float(expected), rel=1e-6)


def test_nothing_asked_leaves_the_batch_as_it_was() -> None:
    _, labels = rows()
    batch = Batch.of(torch.zeros(20, 1, 1, 1), labels)
    smoothing, weights = batch.smoothing, batch.label_weights
    LabelPolicy(TrainConfig(), TRAINING, CLASSES, torch.device("cpu")).prepare(batch)
    assert batch.smoothing is smoothing
    assert batch.label_weights is weights


def test_methods_mix_what_the_policy_says_of_labels() -> None:
    batch = Batch.of(torch.zeros(2, 1, 1, 1), torch.tensor([0, 2]))
    policy = LabelPolicy(
        TrainConfig(label_smoothing=0.1, class_weights=[1, 1, 5]), torch.arange(CLASSES), CLASSES, torch.device("cpu")
    )
    policy.prepare(batch)
    batch.mix(batch.images, torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.75, 0.25], [0.5, 0.5]]))
    low, high = 3 / 7, 15 / 7
    assert batch.label_weights.flatten().tolist() == pytest.approx([low, high, high, low])
    assert batch.shares.flatten().tolist() == pytest.approx([0.75, 0.25, 0.5, 0.5])
    assert batch.row_weights.tolist() == [1, 1], "a class's weight is of its label"
    assert batch.smoothing.flatten().tolist() == pytest.approx([0.1] * 4)


def test_a_training_takes_its_labels_from_the_policy() -> None:
    train = {"label_smoothing": 0.3, "class_weights": [*[1.0] * 9, 6.0]}
    trainer = Trainer(make_plan(small(train=train)))
    batch = next(trainer.loop.loader.epoch(0))
    trainer.network.train()
    weights = torch.tensor([*[1.0] * 9, 6.0])[batch.labels[:, 0]] * 10 / 15
    each = F.cross_entropy(trainer.network(batch.images), batch.labels[:, 0], label_smoothing=0.3, reduction="none")
    expected = float((weights * each).mean().detach())
    assert losses_of(Trainer(make_plan(small(train=train))))[0] == pytest.approx(expected, rel=1e-5)
