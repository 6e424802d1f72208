"""What may be named, how, and what is told before anything is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn

import augury


class Quiet(augury.Method):
    """Counts how many of it are made."""

    class Options(augury.Options):
        weight: float = Field(0.5, ge=0)

    made = 0

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        Quiet.made += 1
        self.start = nn.Parameter(torch.randn(3))

    @augury.hookimpl
    def post_epoch(self) -> None:
        return None


class Loud(Quiet):
    pass


class Sharing(Quiet):
    class Options(augury.Options):
        base: float = 0.25

    @classmethod
    def pipelines(cls, options: Any) -> dict[str, float]:
        return {"base": options.base, "augmented": 1 - options.base}


class AlsoSharing(Sharing):
    pass


class Pair(Quiet):
    views = 2
    min_rows = 6


class Mixing(Quiet):
    mixes = True


class Measuring(Quiet):
    unmixed = True


class Linear(Quiet):
    linear_classifier = True


def refused(*methods: Any, **facts: Any) -> list[str]:
    """The lines with which a composition is refused; none of it may have been made."""
    before = Quiet.made
    with pytest.raises(augury.UsageError) as caught:
        augury.compose(methods, num_classes=3, **facts)
    assert Quiet.made == before
    return str(caught.value).splitlines()


def test_names_classes_pairs_and_objects() -> None:
    made = Quiet(Quiet.Options(weight=3), augury.Spec(3))
    methods = augury.compose(["dcutmix", ("agmax", {"n_units": 4}), made, (Loud, {"weight": 2})], num_classes=3)
    assert list(methods.methods) == ["dcutmix", "agmax", "quiet", "loud"]
    assert methods["quiet"] is made
    assert (methods["agmax"].options.n_units, methods["loud"].options.weight) == (4, 2.0)
    assert methods["agmax"].spec.num_classes == 3


def test_everything_wrong_is_told_at_once_in_the_order_of_names() -> None:
    lines = refused(
        "cutmux",
        (Quiet, {"weigth": 1, "weight": -2}),
        ("isda", {"lambda_0": "much"}),
        nn.Linear,
        Linear,
        Mixing,
        Measuring,
    )
    starts = [
        "unknown method `cutmux`. Installed and listed:",
        "quiet: option `weight` must be >= 0, got -2. Set it with --with quiet:weight=0.5.",
        "quiet: unknown option `weigth`. Options: weight. Did you mean `weight`?",
        "isda: option `lambda_0` must be a number, got 'much'. Set it with --with isda:lambda_0=0.5.",
        "linear: <class 'torch.nn.modules.linear.Linear'> is no method",
        "measuring must see images before mixing mixes them. Name measuring before mixing.",
        "linear: needs the network's classifier, an nn.Linear. Pass classifier=model.fc, say, to augury.compose.",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines


def test_a_classifier_that_is_not_linear_is_refused() -> None:
    classifier = nn.Sequential(nn.Linear(2, 3))
    assert refused(Linear, classifier=classifier) == [
        "linear needs a model whose classifier is one nn.Linear; this one ends in Sequential. Choose another model."
    ]
    methods = augury.compose([Linear], num_classes=3, classifier=nn.Linear(2, 3))
    assert methods["linear"].spec.num_features == 2


def test_a_method_is_named_once() -> None:
    assert refused(Quiet, Loud, (Quiet, {"weight": 1})) == ["quiet is named 2 times; name it once."]


def test_shares_of_pipelines_must_agree() -> None:
    (line,) = refused(Sharing, (AlsoSharing, {"base": 0.5}))
    assert "sharing asks for {'base': 0.25, 'augmented': 0.75}" in line
    assert "alsosharing asks for {'base': 0.5, 'augmented': 0.5}" in line
    assert augury.compose([Sharing, Quiet, AlsoSharing], num_classes=3).pipeline_shares == {
        "base": 0.25,
        "augmented": 0.75,
    }
    assert augury.compose([Quiet], num_classes=3).pipeline_shares == {"base": 0.0, "augmented": 1.0}
    assert augury.compose([], num_classes=3).pipeline_shares == {"base": 0.0, "augmented": 1.0}


def test_mixing_comes_after_what_must_see_unmixed_images() -> None:
    assert len(refused(Mixing, Quiet, Measuring)) == 1
    assert list(augury.compose([Measuring, Quiet, Mixing], num_classes=3).methods) == ["measuring", "quiet", "mixing"]


def test_views_are_the_most_that_a_method_needs_and_batches_must_have_them() -> None:
    methods = augury.compose([Quiet, Pair], num_classes=3)
    assert (methods.views, augury.compose([Quiet], num_classes=3).views) == (2, 1)
    images, labels = torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([0, 1, 2, 0])
    made_by, indices = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0]), torch.tensor([9, 8, 7, 6])
    batch = methods.batch((images, 10 + images), labels, pipeline=made_by, indices=indices)
    assert batch.images.flatten().tolist() == [0, 1, 2, 3, 10, 11, 12, 13]
    assert batch.labels[:, 0].tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert batch.indices.tolist() == [9, 8, 7, 6, 9, 8, 7, 6]
    assert torch.equal(batch.pipeline, made_by)
    with pytest.raises(
        augury.UsageError, match=r"^pair: needs 2 view\(s\) of each image, got 1\. Pass a tuple of 2\.$"
    ):
        methods.batch(torch.cat([images, images]), labels.repeat(2))
    with pytest.raises(augury.UsageError) as caught:
        methods.batch(images[:1], torch.tensor([3]))
    assert len(str(caught.value).splitlines()) == 3, "views, labels and rows"
    with pytest.raises(augury.UsageError, match="pair: needs at least 6 rows in a batch, got 4"):
        methods.batch((images[:2], images[:2]), labels[:2])


def test_a_methods_first_weights_are_its_own_and_move_no_generator() -> None:
    def start(*methods: type[Quiet], seed: int = 0) -> torch.Tensor:
        torch.manual_seed(len(methods))
        before = torch.get_rng_state()
        made = augury.compose(methods, num_classes=3, seed=seed)["quiet"].start
        assert torch.equal(torch.get_rng_state(), before)
        return made

    alone = start(Quiet)
    assert torch.equal(alone, start(Quiet, Loud))
    assert torch.equal(alone, start(Loud, Quiet))
    assert not torch.equal(alone, start(Quiet, seed=1))
    assert not torch.equal(alone, augury.compose([Loud], num_classes=3)["loud"].start)


@pytest.mark.parametrize("counts", [(1, 2), (1, 2, -3), (), (0, 0, 0)])
def test_counts_of_classes_that_do_not_fit_are_refused(counts: tuple[int, ...]) -> None:
    (line,) = refused(Quiet, class_counts=counts)
    assert line == f"class_counts must be 3 numbers >= 0, the images of each class, got {list(counts)}."
    assert augury.compose([Quiet], num_classes=3, class_counts=[4, 0, 2])["quiet"].spec.class_counts == (4, 0, 2)
