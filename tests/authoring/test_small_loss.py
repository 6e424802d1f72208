"""Small-loss selection, written from the pages alone: it passes the contract, selects what it says, and composes."""

from __future__ import annotations

import pytest
import torch
from tests.authoring.small_loss import SmallLoss
from torch import nn

import augury
from augury.testing import MethodContract


class TestSmallLoss(MethodContract):
    method = SmallLoss
    options = {"until": 0.01}


@pytest.mark.parametrize("others", [[], ["dcutmix", "isda"], ["agmax"]], ids="+".join)
def test_the_loss_is_that_of_the_rows_kept_and_terms_of_others_stay(others: list[str]) -> None:
    torch.manual_seed(0)
    classifier = nn.Linear(6, 5)
    given = {"num_classes": 5, "num_images": 40, "classifier": classifier, "total_steps": 10}
    plain = augury.compose(others, **given)
    chosen = augury.compose([(SmallLoss, {"keep": 0.5, "until": 0.1}), *others], **given)
    losses = []
    for methods in (plain, chosen):
        methods.run.step = 5
        torch.manual_seed(1)
        views = [torch.randn(8, 1, 4, 4) for _ in range(methods.views)]
        batch = methods.batch(views, torch.arange(8) % 5, indices=torch.arange(8) + 3)
        methods.augment_batch(batch)
        output = augury.ModelOutput(features := torch.randn(len(batch), 6), classifier(features))
        losses.append(methods.compute_loss(batch, output).detach())
    with torch.no_grad():
        reference = augury.compose([*others, Peek], **given)
        reference.run.step = 5
        torch.manual_seed(1)
        batch = reference.batch([torch.randn(8, 1, 4, 4) for _ in range(reference.views)], torch.arange(8) % 5)
        reference.augment_batch(batch)
        output = augury.ModelOutput(features := torch.randn(len(batch), 6), classifier(features))
        reference.compute_loss(batch, output)
    rows = reference["peek"].rows
    kept = rows.sort().values[: len(rows) // 2]
    assert float(losses[1] - losses[0]) == pytest.approx(float(kept.mean() - rows.mean()), rel=1e-4, abs=1e-6)
    assert int(chosen["smallloss"].seen.sum()) == len(rows) // 2
    assert chosen["smallloss"].seen[:3].sum() == 0, "by the images' positions"


class Peek(augury.Method):
    """Keeps the criterion's row losses."""

    rows: torch.Tensor

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput):  # type: ignore[no-untyped-def]
        loss = yield
        self.rows = output.row_losses
        return loss
