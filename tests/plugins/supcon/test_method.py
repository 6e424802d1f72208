"""SupCon in a composition: the loss is the formula's, the queue is a run's state, processes share both."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.plugins.supcon.test_functional import mixed_equation
from tests.train.small_runs import assert_same_run, resumed, small
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury_supcon import SupCon
from augury_train.training.trainer import train

N, C, A, STEPS = 8, 4, 6, 3


class Observer(augury.Method):
    """Asks for three views."""

    views = 3
    views_alike = False

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        assert batch.views == 3


def composed(*before: Any, **options: Any) -> augury.Composition:
    """Float64 throughout: the head, the queue and the classifier."""
    torch.manual_seed(1)
    fc = nn.Linear(A, C)
    return augury.compose([*before, (SupCon, {"dim": 5, **options})], num_classes=C, classifier=fc).double()


def make_batch(methods: augury.Composition, step: int, k: int = 2) -> augury.Batch:
    g = torch.Generator().manual_seed(step)
    views = [torch.zeros(N, 1, 2, 2)] * methods.views
    batch = methods.batch(views, torch.randint(C, (N,), generator=g))
    rows = len(batch)
    if k > 1:
        batch.labels = torch.randint(C, (rows, k), generator=g)
        batch.shares = torch.rand(rows, k, generator=g).softmax(1)
        batch.smoothing, batch.label_weights = torch.full((rows, k), 0.1), torch.ones(rows, k)
    batch.row_weights = torch.rand(rows, generator=g) + 0.5
    return batch


def make_features(step: int, views: int = 2) -> Tensor:
    g = torch.Generator().manual_seed(100 + step)
    return torch.randn(views * N, A, generator=g, dtype=torch.float64)


def taken(batch: augury.Batch, features: Tensor, rank: int, size: int) -> Tensor:
    """A process's part of a batch, in place, and of its features."""
    kept = torch.arange(rank * N // size, (rank + 1) * N // size)
    rows = torch.cat([kept + view * N for view in range(batch.views)])
    batch.take(kept)
    return features[rows]


def term(methods: augury.Composition, batch: augury.Batch, features: Tensor) -> Tensor:
    """The loss without the criterion, which sees logits of no meaning."""
    logits = torch.zeros(len(batch), C, dtype=torch.float64)
    loss = methods.compute_loss(batch, augury.ModelOutput(features, logits))
    plain = augury.compose([], num_classes=C)
    return loss - plain.compute_loss(batch, augury.ModelOutput(features, logits))


def written_out(
    head: nn.Module, batch: augury.Batch, features: Tensor, queue: Tensor, soft_queue: Tensor, temperature: float
) -> Tensor:
    z = F.normalize(head(features), dim=1)
    soft = torch.zeros(len(batch), C, dtype=torch.float64)
    for i in range(len(batch)):
        for label, share in zip(batch.labels[i].tolist(), batch.shares[i].tolist(), strict=True):
            soft[i, label] += share
    full, soft = torch.cat([z, queue]), torch.cat([soft, soft_queue])
    weight = batch.row_weights.view(batch.views, -1).mean(0).repeat(batch.views)
    losses = [weight[i] * mixed_equation(full, soft, i, temperature) for i in range(len(batch))]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("k", [1, 2])
def test_the_term_is_the_formula_with_the_queue_of_the_steps_before(k: int) -> None:
    methods = composed(queue=20, temperature=0.2, weight=0.7)
    method = methods["supcon"]
    assert isinstance(method, SupCon)
    queue, soft_queue = torch.zeros(0, 5, dtype=torch.float64), torch.zeros(0, C, dtype=torch.float64)
    for step in range(STEPS):
        batch, features = make_batch(methods, step, k), make_features(step)
        ours, theirs = features.clone().requires_grad_(), features.clone().requires_grad_()
        found = term(methods, batch, ours)
        expected = 0.7 * written_out(method.head, batch, theirs, queue, soft_queue, 0.2)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
        inputs = [ours, *method.head.parameters()]
        got, wanted = (
            torch.autograd.grad(loss, [leaf, *inputs[1:]]) for loss, leaf in ((found, ours), (expected, theirs))
        )
        for one, other in zip(got, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            z = F.normalize(method.head(features), dim=1)
        # Both views of an image one after the other.
        order = torch.arange(2 * N).view(2, N).t().flatten()
        queue = torch.cat([queue, z[order]])[-20:]
        soft_queue = torch.cat([soft_queue, batch.soft_targets(C).double()[order]])[-20:]
        methods.step()
        torch.testing.assert_close(method.queue[-len(queue) :], queue, rtol=1e-12, atol=0)
        torch.testing.assert_close(method.queue_targets[-len(queue) :], soft_queue)


def test_views_beyond_the_second_are_another_methods() -> None:
    methods = composed(Observer, temperature=0.2)
    two = composed(temperature=0.2)
    batch, features = make_batch(methods, 0), make_features(0, views=3)
    first = make_batch(two, 0)
    for name in ("labels", "shares", "smoothing", "label_weights"):
        setattr(first, name, getattr(batch, name)[: 2 * N])
    batch.row_weights = torch.rand(N).repeat(3)
    first.row_weights = batch.row_weights[: 2 * N]
    assert torch.allclose(term(methods, batch, features), term(two, first, features[: 2 * N]))


def test_a_method_that_weighs_one_view_for_all_leaves_the_term_its_size() -> None:
    methods = composed(Observer, temperature=0.2)
    batch, features = make_batch(methods, 0), make_features(0, views=3)
    batch.row_weights = torch.ones(3 * N)
    alike = term(methods, batch, features)
    batch.row_weights = torch.tensor([3.0, 0.0, 0.0]).repeat_interleave(N)
    assert torch.allclose(term(methods, batch, features), alike)


def test_computed_again_a_step_leaves_the_queue_alone() -> None:
    methods = composed(queue=20)
    method = methods["supcon"]
    term(methods, make_batch(methods, 0), make_features(0))
    methods.step()
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    assert int((before["queue_targets"].sum(1) > 0).sum()) == 2 * N
    loss = term(methods, make_batch(methods, 1), make_features(1))
    with methods.again():
        again = term(methods, make_batch(methods, 1), make_features(1))
    assert torch.equal(loss, again), "with the queue of before the step"
    for name, buffer in method.named_buffers():
        assert torch.equal(buffer, before[name])
    methods.step()
    assert not torch.equal(method.queue, before["queue"])


def test_rows_of_a_skipped_step_do_not_join_the_queue() -> None:
    methods, plain = composed(queue=60), composed(queue=60)
    term(methods, make_batch(methods, 0), make_features(0))
    methods.step(changed=False)
    plain.step(changed=False)
    for composition in (methods, plain):
        term(composition, make_batch(composition, 1), make_features(1))
        composition.step()
    assert torch.equal(methods["supcon"].queue, plain["supcon"].queue)


def test_rows_that_are_not_finite_leave_the_queue_usable() -> None:
    methods = composed(queue=100)
    features = make_features(0)
    features[3, 2], features[5, 0] = torch.nan, torch.inf
    assert term(methods, make_batch(methods, 0), features).isnan()
    methods.step()
    queue, targets = methods["supcon"].queue, methods["supcon"].queue_targets
    assert queue.isfinite().all()
    assert int((targets.sum(1) > 0).sum()) == 2 * N - 2
    assert term(methods, make_batch(methods, 1), make_features(1)).isfinite()


def test_a_queue_shorter_than_a_batch_holds_the_newest_rows() -> None:
    short, long = composed(queue=3), composed(queue=50)
    for step in range(2):
        for methods in (short, long):
            term(methods, make_batch(methods, step), make_features(step))
            methods.step()
    assert torch.equal(short["supcon"].queue, long["supcon"].queue[-3:])
    assert torch.equal(short["supcon"].queue_targets, long["supcon"].queue_targets[-3:])


def in_a_process(rank: int, size: int, folder: Path) -> None:
    """Steps on this process's images; losses, gradients and queue."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    methods = composed(queue=20, temperature=0.2)
    found = []
    for step in range(STEPS):
        batch, features = make_batch(methods, step), make_features(step)
        mine = taken(batch, features, rank, size).requires_grad_()
        loss = term(methods, batch, mine)
        gradients = torch.autograd.grad(loss, [mine, *methods.parameters()])
        # As DistributedDataParallel does.
        averaged = [methods.run.ranks.mean(gradient) for gradient in gradients[1:]]
        methods.step()
        found.append(
            [methods.run.ranks.mean(loss.detach()), gradients[0] / size, averaged, list(methods["supcon"].buffers())]
        )
        found[-1][-1] = [buffer.clone() for buffer in found[-1][-1]]
    torch.save(found, folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_loss_gradients_and_queue_of_one(tmp_path: Path) -> None:
    in_a_process(0, 1, tmp_path)
    mp.spawn(in_a_process, args=(2, tmp_path), nprocs=2)
    one, *both = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for rank, found in enumerate(both):
        for (loss, features, weights, buffers), expected in zip(found, one, strict=True):
            torch.testing.assert_close(loss, expected[0], rtol=1e-12, atol=0)
            rows = expected[1].unflatten(0, (2, N))[:, rank * N // 2 : (rank + 1) * N // 2].flatten(0, 1)
            torch.testing.assert_close(features, rows, rtol=1e-10, atol=1e-14)
            for ours, theirs in zip([*weights, *buffers], [*expected[2], *expected[3]], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("weight", -0.1, ">= 0"),
        ("weight", float("nan"), "finite"),
        ("temperature", 0, "> 0"),
        ("temperature", float("inf"), "finite"),
        ("dim", 0, ">= 1"),
        ("dim", 1.5, "a whole number"),
        ("queue", -1, ">= 0"),
        ("queue", 65537, "<= 65536"),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: Any, told: str) -> None:
    with pytest.raises(augury.UsageError, match=rf"supcon: option `{option}` .*{re.escape(told)}"):
        augury.compose([("supcon", {option: value})], num_classes=C, classifier=nn.Linear(A, C))


def test_a_loop_that_tells_no_classifier_is_refused() -> None:
    with pytest.raises(augury.UsageError, match="supcon: needs `num_features`"):
        augury.compose(["supcon"], num_classes=C)


@pytest.mark.slow
@pytest.mark.parametrize("others", [(), ("dcutmix", "isda")], ids=["alone", "dcutmix+isda"])
def test_a_run_is_resumed_bit_for_bit(others: tuple[str, ...], tmp_path: Path) -> None:
    config = small(*others, ("supcon", {"dim": 8, "queue": 120}))
    train(config, tmp_path / "whole")
    resumed(config, tmp_path / "resumed", 5)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
