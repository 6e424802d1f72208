"""What docs/composition.md says beside its formulas: what is refused, how wrappers nest, what travels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import augury

PAGE = (Path(__file__).parents[2] / "docs" / "composition.md").read_text(encoding="utf-8")


class Plain(augury.Method):
    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        """Leaves it."""


class Two(Plain):
    views = 2


class Three(Plain):
    views = 3


class Replaces(augury.Method):
    reads_class_logits = True

    @augury.hookimpl
    def compute_loss(self, batch: augury.Batch) -> torch.Tensor:
        return torch.full((len(batch),), 7.0)


class ReplacesToo(Replaces):
    pass


class Fifth(Plain):
    share = 0.2

    @classmethod
    def pipelines(cls, options: Any) -> dict[str, float]:
        return {"base": cls.share, "augmented": 1 - cls.share}


class FiftyPercent(Fifth):
    share = 0.5


class FifthToo(Fifth):
    pass


class Mixes(Plain):
    mixes = True


class Unmixed(Plain):
    unmixed = True


class Inside(Plain):
    mixes_hidden = True


class Linear(Plain):
    linear_classifier = True


class Counts(Plain):
    facts = ("steps_per_epoch",)


class Large(Plain):
    min_rows = 9


class Later(Plain):
    contract = "9.0"


class Alike(Plain):
    views, views_alike = 2, True


class CleanFirst(Plain):
    views, views_alike, view_pipelines = 2, False, ("base", "augmented")


class CleanLast(Plain):
    views, views_alike, view_pipelines = 2, False, ("augmented", "base")


class Looks(Plain):
    reads_images = True


class Blind(Replaces):
    reads_class_logits = False


class Sets(Plain):
    sets_class_logits = True


REFUSED = [
    [Plain, Plain],
    [Alike, Mixes],
    [CleanFirst, CleanLast],
    [CleanFirst, Fifth],
    [Looks, Inside],
    [Blind, Sets],
    [Replaces, ReplacesToo],
    [Fifth, FiftyPercent],
    [Mixes, Unmixed],
    [Inside, Mixes],
    [Linear],
    [Counts],
    [Large],
    [Later],
]


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_what_the_page_says_is_refused_is_refused_in_these_words() -> None:
    told = re.findall(r"^\|[^|]+\|[^|]+\| `([^`]+)` \|$", section("What is refused"), re.MULTILINE)
    assert len(told) == len(REFUSED)
    for words, methods in zip(told, REFUSED, strict=True):
        with pytest.raises(augury.UsageError) as found:
            augury.compose(methods, num_classes=3, classifier=nn.Identity(), device="cpu").batch(
                torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
            )
        (line,) = str(found.value).splitlines()
        assert words in line


def test_what_agrees_goes_together() -> None:
    given: dict[str, Any] = {"num_classes": 3}
    assert augury.compose([Plain, Two], **given).views == 2
    assert augury.compose([Fifth, Plain, FifthToo], **given).pipeline_shares == {"base": 0.2, "augmented": 0.8}
    assert augury.compose([Plain], **given).pipeline_shares == {"base": 0.0, "augmented": 1.0}
    augury.compose([Unmixed, Mixes, Inside], **given)
    with pytest.raises(augury.UsageError, match="Pass pipeline=…"):  # a loop says itself which rows are base
        augury.compose([Fifth], **given).batch(torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_wrappers_nest_as_drawn_and_wrap_what_replaces_the_criterion(place: int) -> None:
    """A replacing method is called where the criterion is, wherever it is named."""
    said: list[str] = []

    class A(augury.Method):
        sets_class_logits = True

        @augury.hookimpl(wrapper=True)
        def compute_loss(self, output: augury.ModelOutput) -> Any:
            name = type(self).__name__
            said.append(f"{name}, before, {output.class_logits is not None}")
            output.class_logits = output.logits[:, None]
            loss = yield
            said.append(f"{name}, after, {float(loss)}")
            return loss + 1

    class B(A):
        pass

    methods: list[Any] = [A, B]
    methods.insert(place, Replaces)
    made = augury.compose(methods, num_classes=3)
    batch = made.batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    loss = made.compute_loss(batch, augury.ModelOutput(torch.zeros(2, 5), torch.zeros(2, 3)))
    assert said == ["A, before, False", "B, before, True", "B, after, 7.0", "A, after, 8.0"]
    assert float(loss) == 9


def test_what_travels_travels_as_the_table_says() -> None:
    batch = augury.Batch.of(torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([0, 1, 2, 3]))
    batch.smoothing = torch.tensor([[0.0], [0.1], [0.2], [0.3]])
    batch.row_weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    batch.pipeline = torch.tensor([0, 1, 0, 1])
    sources = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    shares = torch.tensor([[0.75, 0.25]]).repeat(4, 1)
    for _ in range(2):
        batch.mix(batch.images, sources, shares)
    assert batch.labels[0].tolist() == [0, 1, 1, 2], "those of row 0, then those of row 1, as they were then"
    torch.testing.assert_close(batch.smoothing[0], torch.tensor([0.0, 0.1, 0.1, 0.2]))
    torch.testing.assert_close(batch.shares[0], torch.tensor([0.5625, 0.1875, 0.1875, 0.0625]))
    torch.testing.assert_close(batch.row_weights[0], torch.tensor(0.75 * 1.25 + 0.25 * 2.25))
    assert batch.pipeline.tolist() == [0, 1, 0, 1]
    assert batch.indices.tolist() == [0, 1, 2, 3]
