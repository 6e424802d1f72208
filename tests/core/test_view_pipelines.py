"""Methods that say which pipeline makes each view: what agrees, what is refused, and what a loop's batches say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import augury
from augury.errors import UsageError
from augury.method import check_method


class Plain(augury.Method):
    @augury.hookimpl
    def post_epoch(self) -> None:
        """Does nothing."""


class Clean(Plain):
    """Asks for the first of three views as it is."""

    views = 3
    view_pipelines = ("base", "augmented", "augmented")


class CleanPair(Plain):
    views = 2
    view_pipelines = ("base", "augmented")


class Reversed(Plain):
    views = 2
    view_pipelines = ("augmented", "base")


class Two(Plain):
    views = 2


class Four(Plain):
    views = 4


class Shares(Plain):
    @classmethod
    def pipelines(cls, options: Any) -> dict[str, float]:
        return {"base": 0.5, "augmented": 0.5}


def composed(*methods: Any) -> augury.Composition:
    return augury.compose(methods, num_classes=3)


def refused(*methods: Any) -> list[str]:
    with pytest.raises(UsageError) as caught:
        composed(*methods)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("methods", "views", "expected"),
    [
        ([Plain], 1, ()),
        ([Two, Four], 4, ()),
        ([Clean], 3, ("base", "augmented", "augmented")),
        ([Clean, Two], 3, ("base", "augmented", "augmented")),
        ([Clean, CleanPair], 3, ("base", "augmented", "augmented")),
        ([CleanPair, Four], 4, ("base", "augmented", "augmented", "augmented")),
    ],
)
def test_views_are_the_most_and_those_that_nobody_asks_for_are_augmented(
    methods: list[type[augury.Method]], views: int, expected: tuple[str, ...]
) -> None:
    for order in itertools.permutations(methods):
        made = composed(*order)
        assert (made.views, made.view_pipelines) == (views, expected)


def test_different_pipelines_of_a_view_are_refused() -> None:
    for first, second in itertools.permutations([Clean, Reversed]):
        (line,) = refused(first, second)
        asked = {Clean: "clean asks for base, augmented, augmented", Reversed: "reversed asks for augmented, base"}
        assert line == (
            f"the methods ask for different pipelines of the views: {asked[first]}; {asked[second]}. Leave one of them "
            "out."
        )


def test_pipelines_of_views_and_shares_of_rows_are_refused() -> None:
    for order in itertools.permutations([CleanPair, Shares]):
        assert refused(*order) == [
            "cleanpair asks for a pipeline for each view, shares for shares of the rows; a row is made by one. Leave "
            "cleanpair or shares out."
        ]


@pytest.mark.parametrize(("views", "asked"), [(2, ("base",)), (1, ("base", "augmented")), (3, ("base", "base"))])
def test_each_view_must_be_named(views: int, asked: tuple[str, ...]) -> None:
    wrong = type("Wrong", (Plain,), {"views": views, "view_pipelines": asked})
    with pytest.raises(UsageError) as caught:
        check_method(wrong, "wrong")
    assert str(caught.value) == f"wrong: `view_pipelines` names {len(asked)} pipelines for {views} view(s)."


def test_a_pipeline_that_there_is_not_is_refused_by_name() -> None:
    (line,) = refused(type("Odd", (Plain,), {"views": 2, "view_pipelines": ("clean", "augmented")}))
    assert line.startswith("odd: ")
    assert "`clean`" in line
    assert "Pipelines: augmented, base" in line


def test_a_loop_of_ones_own_is_told_by_the_batch_who_made_a_row() -> None:
    methods = composed(Two, Clean)
    images, labels = torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([0, 1, 2, 0])
    batch = methods.batch((images, 10 + images, 20 + images), labels)
    assert batch.pipeline.tolist() == [0] * 4 + [1] * 8
    assert batch.made_by("base").nonzero().flatten().tolist() == [0, 1, 2, 3]
    given = torch.arange(12) % 2
    assert torch.equal(methods.batch((images,) * 3, labels, pipeline=given).pipeline, given)
    with pytest.raises(UsageError, match=r"needs 3 view\(s\) of each image, got 2\. Pass a tuple of 3\."):
        methods.batch((images, images), labels)


def test_two_views_are_the_first_of_three() -> None:
    """agmax compares two views; a third is another method's."""
    labels = torch.tensor([0, 1, 2, 0])
    images = [torch.zeros(4, 1, 2, 2)] * 3
    alone, beside = (augury.compose(methods, num_classes=3, seed=1) for methods in (["agmax"], ["agmax", Clean]))
    logits = torch.randn(12, 3)
    pair, three = alone.batch(images[:2], labels), beside.batch(images, labels)
    criterion = torch.nn.functional.cross_entropy
    terms = []
    for methods, batch in ((alone, pair), (beside, three)):
        rows = len(batch)
        loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(rows, 4), logits[:rows]))
        terms.append(loss - criterion(logits[:rows], batch.labels[:, 0]))
    torch.testing.assert_close(terms[0], terms[1])
