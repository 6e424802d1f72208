"""Methods that would read what another one leaves out, or makes otherwise: refused in either order, by name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import augury
from augury.method import declared

FACTS: dict[str, Any] = {"num_classes": 3, "total_steps": 8}


class Plain(augury.Method):
    @augury.hookimpl
    def post_epoch(self) -> None:
        """Does nothing."""


class Squares(augury.Method):
    """Replaces the criterion by the mean square of a row's logits."""

    @augury.hookimpl
    def compute_loss(self, output: augury.ModelOutput) -> Tensor:
        return output.logits.square().mean(1)


class ReadsBoth(Squares):
    reads_class_logits = True


class Sets(augury.Method):
    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Any:
        output.class_logits = 2 * output.logits[:, None]
        return (yield)


class Silent(Sets):
    """Sets them, and does not say so."""

    sets_class_logits = False


class Tempers(augury.Method):
    """Changes those that another method has set, and sets none of its own."""

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Any:
        output.class_logits = output.class_logits / 3
        return (yield)


class Alike(Plain):
    views = 2
    views_alike = True


class Apart(Plain):
    views = 2
    views_alike = False


class Mixes(Plain):
    mixes = True


class Inside(Plain):
    mixes_hidden = True


class Looks(Plain):
    reads_images = True


class BySetting(Plain):
    """Declares what its option says."""

    class Options(augury.Options):
        what: str = ""

    @classmethod
    def declares(cls, options: Any) -> tuple[str, ...]:
        return (options.what,) if options.what else ()


def refused(*methods: Any, **facts: Any) -> list[str]:
    with pytest.raises(augury.UsageError) as caught:
        augury.compose(methods, **FACTS, **facts)
    return str(caught.value).splitlines()


def in_both_orders(*methods: Any, line: str, **facts: Any) -> None:
    for order in itertools.permutations(methods):
        assert refused(*order, **facts) == [line], order


def composed(*methods: Any, **facts: Any) -> None:
    for order in itertools.permutations(methods):
        augury.compose(order, **FACTS, **facts)


def unread(criterion: str, setting: str) -> str:
    return (
        f"{criterion} replaces the criterion and does not read `class_logits`, which is all that {setting} changes: "
        f"{setting} would do nothing. Leave {criterion} or {setting} out."
    )


def test_a_criterion_that_does_not_read_class_logits_is_refused_beside_isda() -> None:
    in_both_orders(Squares, "isda", line=unread("squares", "isda"), classifier=nn.Linear(4, 3))
    in_both_orders(Squares, Plain, Sets, line=unread("squares", "sets"))
    composed(ReadsBoth, "isda", classifier=nn.Linear(4, 3))
    composed(ReadsBoth, Sets)
    composed(Squares, Plain)


def test_a_method_declares_by_its_options() -> None:
    frozen: dict[str, Any] = {"frozen": nn.Linear(1, 3), "prob": 0.0}
    distill = ("resmooth", {**frozen, "loss": "distill"})
    in_both_orders(Squares, distill, line=unread("squares", "resmooth"))
    composed(Squares, ("resmooth", frozen))
    assert len(refused(Squares, (BySetting, {"what": "sets_class_logits"}))) == 1
    composed(Squares, BySetting)
    assert declared(BySetting, BySetting.Options(what="mixes"), "mixes")
    assert not declared(BySetting, BySetting.Options(what="mixes"), "mixes_hidden")
    assert not declared(BySetting, BySetting.Options(), "mixes")
    assert len(refused(Alike, (BySetting, {"what": "mixes"}))) == 1
    assert len(refused((BySetting, {"what": "reads_images"}), Inside)) == 1


@pytest.mark.parametrize("mixing", [Mixes, Inside, "dcutmix"])
def test_views_that_must_be_mixed_alike_are_refused_beside_what_mixes(mixing: Any) -> None:
    name = mixing if isinstance(mixing, str) else mixing.__name__.lower()
    line = (
        f"alike compares the views of an image, and {name} mixes each view with other images, so the views would not "
        f"be of one image. Leave alike or {name} out."
    )
    in_both_orders(Alike, mixing, line=line)
    composed(Apart, mixing)
    composed(Alike, Apart)


def test_a_method_that_looks_at_images_is_refused_beside_one_that_mixes_inside_the_network() -> None:
    line = (
        "looks looks at the images that the network saw, and inside mixes inside the network, where the images stay "
        "unmixed. Leave looks or inside out."
    )
    in_both_orders(Looks, Inside, line=line)
    composed(Looks, Mixes)


def loss_of(*methods: Any) -> Tensor:
    made = augury.compose(methods, **FACTS)
    batch = made.batch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]))
    return made.compute_loss(batch, augury.ModelOutput(torch.zeros(4, 5), torch.arange(12.0).view(4, 3)))


def test_class_logits_that_are_set_without_a_word_are_told() -> None:
    with pytest.raises(augury.MethodError) as caught:
        loss_of(Silent)
    assert str(caught.value) == (
        "silent: `compute_loss` sets `output.class_logits`, which its class does not declare: a criterion that does "
        "not read them could not be refused. Set `sets_class_logits = True` in the class."
    )
    loss_of(Sets)


def test_whoever_changes_class_logits_that_are_there_declares_nothing() -> None:
    expected = torch.nn.functional.cross_entropy(2 * torch.arange(12.0).view(4, 3) / 3, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(loss_of(Sets, Tempers), expected)


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (lambda output: output.logits.mean(), "a tensor of shape ()"),
        (lambda output: output.logits, "a tensor of shape (4, 3)"),
        (lambda output: output.logits.mean(1)[:2], "a tensor of shape (2,)"),
        (lambda output: 1.5, "a float"),
        (lambda output: None, "a NoneType"),
    ],
)
def test_a_criterion_that_returns_no_row_losses_is_told(made: Any, got: str) -> None:
    class Wrong(augury.Method):
        @augury.hookimpl
        def compute_loss(self, output: augury.ModelOutput) -> Any:
            return made(output)

    with pytest.raises(augury.MethodError) as caught:
        loss_of(Wrong)
    assert str(caught.value) == (
        f"wrong: `compute_loss` replaces the criterion and must return the losses of the 4 rows, got {got}. augury "
        "weighs them by `batch.row_weights` and takes their mean; a term is added by a wrapper."
    )


def test_augury_weighs_the_rows_of_a_methods_criterion_and_hands_them_out() -> None:
    seen: list[Tensor] = []

    class Looking(augury.Method):
        @augury.hookimpl(wrapper=True)
        def compute_loss(self, output: augury.ModelOutput) -> Any:
            assert output.row_losses is None
            loss = yield
            seen.append(output.row_losses)
            return loss

    for methods in ([Looking, Squares], [Squares, Looking]):
        made = augury.compose(methods, **FACTS)
        batch = made.batch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]))
        batch.row_weights = torch.tensor([0.0, 1.0, 2.0, 0.5])
        logits = torch.arange(12.0).view(4, 3).requires_grad_()
        loss = made.compute_loss(batch, augury.ModelOutput(torch.zeros(4, 5), logits))
        rows = logits.square().mean(1)
        torch.testing.assert_close(loss, (batch.row_weights * rows).sum() / 4)
        torch.testing.assert_close(seen[-1], rows)
        (gradient,) = torch.autograd.grad(seen[-1].sum(), logits, retain_graph=True)
        torch.testing.assert_close(gradient, 2 * logits.detach() / 3)
