"""A loss that is computed a second time on one batch: the same draws, the same number, and statistics that stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import augury

CLASSES, ROWS = 3, 6


class Drawing(augury.Method):
    """Draws in each hook that its option names, on the device and on the host, and keeps what it drew."""

    class Options(augury.Options):
        hooks: tuple[str, ...] = ("augment_batch", "compute_loss", "post_step")

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.drawn: dict[str, list[float]] = {"augment_batch": [], "compute_loss": [], "post_step": []}
        self.again: list[bool] = []

    def draw(self, hook: str, run: augury.Run) -> float:
        if hook not in self.options.hooks:
            return 0.0
        number = float(torch.rand((), generator=run.generator)) + run.random.random()
        self.drawn[hook].append(number)
        return number

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        batch.images = batch.images + self.draw("augment_batch", run)

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, run: augury.Run) -> Any:
        self.again.append(run.again)
        loss = yield
        return loss * (1 + self.draw("compute_loss", run)) + self.draw("compute_loss", run)

    @augury.hookimpl
    def post_step(self, run: augury.Run) -> None:
        self.draw("post_step", run)


def composed(*methods: Any, fc: nn.Linear | None = None, seed: int = 0) -> augury.Composition:
    return augury.compose(
        methods, num_classes=CLASSES, classifier=fc, total_steps=8, steps_per_epoch=1, seed=seed, device="cpu"
    )


def batch_of(methods: augury.Composition) -> augury.Batch:
    batch = methods.batch(torch.zeros(ROWS, 1, 2, 2), torch.arange(ROWS) % CLASSES)
    methods.augment_batch(batch)
    return batch


def output_of(fc: nn.Linear, features: Tensor) -> augury.ModelOutput:
    return augury.ModelOutput(features, fc(features))


def test_a_loss_with_draws_is_the_same_to_the_last_bit() -> None:
    methods, fc, features = composed(Drawing), nn.Linear(4, CLASSES), torch.randn(ROWS, 4)
    for _ in range(2):
        batch = batch_of(methods)
        first = methods.compute_loss(batch, output_of(fc, features))
        with methods.again():
            second = methods.compute_loss(batch, output_of(fc, features))
            third = methods.compute_loss(batch, output_of(fc, 2 * features))
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
        methods.step()
    drawn = methods["drawing"].drawn["compute_loss"]
    assert drawn[:2] == drawn[2:4] != drawn[6:8]
    assert methods["drawing"].again == [False, True, True] * 2
    assert not methods.run.again


def test_parts_of_a_step_are_computed_again_in_their_order() -> None:
    methods, fc, features = composed(Drawing), nn.Linear(4, CLASSES), torch.randn(ROWS, 4)
    batches = [batch_of(methods) for _ in range(3)]
    first = [methods.compute_loss(batch, output_of(fc, features)) for batch in batches]
    with methods.again():
        second = [methods.compute_loss(batch, output_of(fc, features)) for batch in batches]
    assert all(map(torch.equal, first, second))
    assert len({float(loss.detach()) for loss in first}) == 3


def test_an_error_ends_it() -> None:
    methods = composed(Drawing)
    with pytest.raises(ZeroDivisionError), methods.again():
        raise ZeroDivisionError
    assert not methods.run.again


def test_isdas_statistics_move_once() -> None:
    fc, features = nn.Linear(4, CLASSES), torch.randn(ROWS, 4)
    methods, once = composed(("isda", {"lambda_0": 0.5}), fc=fc), composed(("isda", {"lambda_0": 0.5}), fc=fc)
    for _ in range(3):
        batch = batch_of(methods)
        first = methods.compute_loss(batch, output_of(fc, features))
        before = {name: value.clone() for name, value in methods.state_dict().items()}
        with methods.again():
            second = methods.compute_loss(batch, output_of(fc, features))
        assert torch.equal(first, second)
        once.compute_loss(batch, output_of(fc, features))
        for name, value in methods.state_dict().items():
            assert torch.equal(value, before[name]), name
            assert torch.equal(value, once.state_dict()[name]), name
        methods.step()
        once.step()
    assert methods["isda"].count.sum() == 3 * ROWS


def history(*hooks: str, computed: int = 1) -> dict[str, list[float]]:
    """What is drawn over three steps where these hooks draw, each loss being computed so often."""
    methods, fc = composed((Drawing, {"hooks": hooks})), nn.Linear(4, CLASSES)
    for _ in range(3):
        batch = batch_of(methods)
        for _ in range(computed):
            methods.compute_loss(batch, output_of(fc, torch.zeros(ROWS, 4)))
        methods.step()
    return methods["drawing"].drawn


def test_hooks_draw_each_by_itself() -> None:
    every = history("augment_batch", "compute_loss", "post_step")
    for hook in ("augment_batch", "compute_loss", "post_step"):
        assert history(hook)[hook] == every[hook]
        assert len(set(every[hook])) == len(every[hook])
    assert not set(every["augment_batch"]) & {*every["compute_loss"], *every["post_step"]}
    assert history("augment_batch", "compute_loss", computed=3)["augment_batch"] == every["augment_batch"]


def test_an_epochs_end_draws_by_itself() -> None:
    """A resumed run has no epoch's end before its first batch, and draws the same there."""

    class Draws(augury.Method):
        @augury.hookimpl
        def augment_batch(self, run: augury.Run) -> None:
            self.drawn = run.random.random(), float(torch.rand((), generator=run.generator))

        @augury.hookimpl
        def post_epoch(self, run: augury.Run) -> None:
            run.random.random()
            torch.rand(3, generator=run.generator)

    found = []
    for ends in (True, False):
        methods = augury.compose([Draws], num_classes=3)
        methods.step()
        if ends:
            methods.post_epoch({"epoch": 1})
        methods.augment_batch(methods.batch(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)))
        found.append(methods["draws"].drawn)
    assert found[0] == found[1]


def test_methods_that_replace_row_losses_hear_of_each_other() -> None:
    """One keeps half of the rows, the other moves a share of each to something else: dropped rows count for nothing."""

    class Keeps(augury.Method):
        @augury.hookimpl(wrapper=True)
        def compute_loss(self, batch: augury.Batch, output: augury.ModelOutput):  # type: ignore[no-untyped-def]
            loss = yield
            kept = torch.tensor([2.0, 2.0, 0.0, 0.0])
            return output.replace_rows(loss, kept * output.row_losses, batch)

    class Moves(augury.Method):
        @augury.hookimpl(wrapper=True)
        def compute_loss(self, batch: augury.Batch, output: augury.ModelOutput):  # type: ignore[no-untyped-def]
            loss = yield
            return output.replace_rows(loss, 0.1 * output.row_losses, batch)

    for order in ([Keeps, Moves], [Moves, Keeps]):
        methods = augury.compose(order, num_classes=3)
        batch = methods.batch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]))
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
        loss = methods.compute_loss(batch, augury.ModelOutput(logits, logits))
        rows = torch.nn.functional.cross_entropy(logits, batch.labels[:, 0], reduction="none")
        torch.testing.assert_close(loss, (0.1 * torch.tensor([2.0, 2.0, 0.0, 0.0]) * rows).mean())
