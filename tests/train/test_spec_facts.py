"""What methods are told of the images: counts and statistics, known without decoding one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.train.small_runs import small

import augury
from augury.registry import Register
from augury_train.data import source, view
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer

FACTS = ("num_images", "class_counts", "mean", "std")


class Needing(augury.Method):
    """Cannot do without any of them."""

    facts = FACTS

    @augury.hookimpl
    def post_epoch(self) -> None:
        """Does nothing."""


def test_a_plan_knows_them_without_decoding_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(view, "decode", refuse)
    monkeypatch.setattr(source.ArraySource, "read", refuse)
    register = Register.load().offering("needing", Needing)
    plan = make_plan(small("needing", data={"mean": [0.3], "std": [0.2], "images_per_class": 9}), register)
    spec, labels = plan.spec, plan.data.splits.train.labels
    assert spec.num_images == len(labels) == 90
    assert spec.class_counts == (9,) * 10
    assert (spec.mean, spec.std) == ((0.3,), (0.2,))
    assert all(isinstance(count, int) for count in spec.class_counts)


def test_they_are_those_of_what_the_loader_gives() -> None:
    register = Register.load().offering("needing", Needing)
    trainer = Trainer(make_plan(small("needing"), register))
    spec = trainer.methods["needing"].spec
    batches = list(trainer.loader("base"))
    labels, indices = (torch.cat([getattr(b, name) for b in batches]).flatten() for name in ("labels", "indices"))
    assert indices.sort().values.tolist() == list(range(spec.num_images))
    assert tuple(labels.bincount(minlength=10).tolist()) == spec.class_counts
    images = torch.cat([batch.images for batch in batches])
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (spec.mean, spec.std))
    pixels = 255 * (images * std + mean)
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-3)
    assert 0 <= pixels.round().min() < pixels.round().max() <= 255


@pytest.mark.parametrize("missing", FACTS)
def test_a_loop_of_ones_own_gives_them_or_is_asked_by_name(missing: str) -> None:
    given: dict[str, Any] = {"num_images": 6, "class_counts": [3, 2, 1], "mean": [0.5], "std": torch.tensor([0.25])}
    spec = augury.compose([Needing], num_classes=3, **given)["needing"].spec
    assert (spec.num_images, spec.class_counts, spec.mean, spec.std) == (6, (3, 2, 1), (0.5,), (0.25,))
    del given[missing]
    with pytest.raises(augury.UsageError) as caught:
        augury.compose([Needing], num_classes=3, **given)
    assert str(caught.value) == (f"needing: needs `{missing}`, which is not known. Pass {missing}=… to augury.compose.")
