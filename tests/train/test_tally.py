"""What is summed over the steps of an epoch, and the row that is made of it."""

from __future__ import annotations

import pytest
import torch

from augury.batch import Batch
from augury.distributed import Ranks
from augury_train.training.tally import Tally


def batch(labels: list[int], views: int = 1) -> Batch:
    return Batch.of(torch.zeros(len(labels), 1, 2, 2), torch.tensor(labels), views=views)


def test_the_row_is_the_mean_over_rows_and_the_accuracy_of_unmixed_rows() -> None:
    tally = Tally.empty(torch.device("cpu"))
    says_two = torch.tensor([[0.0, 0.0, 1.0]])
    tally.add(torch.tensor(1.0), says_two.expand(4, 3), batch([2, 0, 2, 2]))  # 3 of 4
    tally.add(torch.tensor(4.0), says_two.expand(2, 3), batch([1, 1], views=2))  # 0 of 2, one image
    mixed = batch([2, 2])
    mixed.mix(mixed.images, torch.tensor([[0, 1], [1, 0]]), torch.full((2, 2), 0.5))
    tally.add(torch.tensor(4.0), says_two.expand(2, 3), mixed)
    tally.seconds, tally.lr = 2.0, 0.1
    row = tally.row(Ranks())
    assert row == {
        "lr": 0.1,
        "train_loss": 2.5,  # (4 * 1 + 2 * 4 + 2 * 4) / 8 rows
        "train_top1": 50.0,  # 3 of 6 unmixed rows
        "train_top1_share": 0.75,  # 6 of 8 rows
        "train_seconds": 2.0,
        "images_per_second": pytest.approx(3.5),  # 4 + 1 + 2 images
    }
