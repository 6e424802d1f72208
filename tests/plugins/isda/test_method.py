"""ISDA in a composition: the loss is the formula's, the estimates are a run's state, processes share them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury_isda import ISDA
from augury_isda.functional import conditional_logits

N, C, A, STEPS = 12, 4, 3, 10


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def composed(fc: nn.Module | None = None, before: tuple[Any, ...] = (), **options: Any) -> augury.Composition:
    fc = nn.Linear(A, C) if fc is None else fc
    return augury.compose(
        [*before, (ISDA, options)], num_classes=C, classifier=fc, total_steps=STEPS, steps_per_epoch=4
    )


def make_batch(methods: augury.Composition, seed: int = 0, k: int = 1) -> augury.Batch:
    """A batch of N images whose rows are mixed from k classes, with smoothing."""
    g = torch.Generator().manual_seed(seed)
    batch = methods.batch(torch.zeros(N, 1, 2, 2), torch.randint(C, (N,), generator=g))
    if k > 1:
        batch.labels = torch.randint(C, (N, k), generator=g)
        batch.shares = torch.rand(N, k, generator=g).softmax(1)
        batch.smoothing = torch.rand(N, k, generator=g) / 2
        batch.row_weights = torch.rand(N, generator=g) + 0.5
    return batch


def make_features(seed: int) -> Tensor:
    g = torch.Generator().manual_seed(100 + seed)
    return torch.randn(N, A, generator=g, dtype=torch.float64) @ torch.randn(A, A, generator=g, dtype=torch.float64)


def statistics(features: Tensor, labels: Tensor, weights: Tensor, covariance: str) -> dict[int, np.ndarray]:
    """Each class's covariance matrix, share-weighted, over all rows given."""
    found = {}
    for c in labels.unique().tolist():
        row, k = (labels == c).nonzero(as_tuple=True)
        full = np.cov(features[row].detach().numpy().T, aweights=weights[row, k].numpy(), ddof=0)
        found[c] = full if covariance == "full" else np.diag(np.diag(full))
    return found


def written_out(
    batch: augury.Batch, features: Tensor, fc: nn.Linear, sigma: dict[int, np.ndarray], strength: float
) -> Tensor:
    """Mean over rows of row weight * sum_k share * [(1 - e) CE(z + strength/2 sigma^2, y) + e * mean_c CE(z, c)]."""
    losses = []
    for i, feature in enumerate(features):
        z = fc.weight @ feature + fc.bias
        row = torch.zeros((), dtype=torch.float64)
        for y, share, e in zip(batch.labels[i].tolist(), batch.shares[i], batch.smoothing[i], strict=True):
            away = fc.weight - fc.weight[y]
            raised = z + strength / 2 * (away @ torch.from_numpy(sigma[y]) * away).sum(1)
            row = row - share * ((1 - e) * raised.log_softmax(0)[y] + e * z.log_softmax(0).mean())
        losses.append(batch.row_weights[i] * row)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("schedule", ["step", "epoch"])
@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_loss_and_gradients_are_the_formula_s(schedule: str, covariance: str, k: int) -> None:
    fc = nn.Linear(A, C).double()
    methods = composed(fc, lambda_0=3.0, schedule=schedule, covariance=covariance).double()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(7):
        batch, features = make_batch(methods, step, k), make_features(step).requires_grad_()
        seen.append((features.detach(), batch.labels, batch.shares.double()))
        sigma = statistics(*(torch.cat(part) for part in zip(*seen, strict=True)), covariance)
        # 10 steps of 4 an epoch are 3 epochs.
        strength = 3.0 * step / STEPS if schedule == "step" else 3.0 * (step // 4) / 3
        inputs = (fc.weight, fc.bias, features)
        expected = written_out(batch, features, fc, sigma, strength)
        expected_gradients = torch.autograd.grad(expected, inputs)
        loss = methods.compute_loss(batch, augury.ModelOutput(features, fc(features)))
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(torch.autograd.grad(loss, inputs), expected_gradients, rtol=1e-8, atol=1e-10)
        methods.step()
    plain = written_out(batch, features, fc, sigma, 0.0)
    assert abs(expected - plain) > 1e-2, "the strength must have told"


def test_at_first_the_loss_is_the_cross_entropy_and_lambda_is_logged() -> None:
    fc = nn.Linear(A, C)
    methods = composed(fc, lambda_0=0.8)
    batch, features = make_batch(methods), make_features(0).float()
    loss = methods.compute_loss(batch, augury.ModelOutput(features, fc(features)))
    assert torch.equal(loss, F.cross_entropy(fc(features), batch.labels[:, 0]))
    assert methods["isda"].count.sum() == N
    assert methods.post_epoch({}) == {"isda/lambda": 0.0}
    for _ in range(2):
        methods.step()
        methods.compute_loss(batch, augury.ModelOutput(features, fc(features)))
    assert methods.post_epoch({})["isda/lambda"] == pytest.approx((0.08 + 0.16) / 2)


def test_estimates_change_once_a_loss_and_in_no_other_hook() -> None:
    fc = nn.Linear(A, C)
    methods = composed(fc)
    batch, features = make_batch(methods, k=2), make_features(0).float()
    for times in (1, 2):
        methods.compute_loss(batch, augury.ModelOutput(features, fc(features)))
        assert methods["isda"].count.sum() == pytest.approx(times * N)
        before = {name: value.clone() for name, value in methods["isda"].state_dict().items()}
        assert before.keys() == {"mean", "covariance", "count"}
        methods.augment_batch(batch)
        methods.step()
        methods.post_epoch({})
        methods.eval()
        fc(features)
        methods.train()
        assert all(torch.equal(value, before[name]) for name, value in methods["isda"].state_dict().items())
    assert not list(methods.parameters())


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_state_survives_saving(covariance: str, tmp_path: Path) -> None:
    fc = nn.Linear(A, C)
    methods = composed(fc, covariance=covariance)
    for step in range(3):
        features = make_features(step).float()
        methods.compute_loss(make_batch(methods, step), augury.ModelOutput(features, fc(features)))
        methods.step()
    torch.save(methods.state_dict(), tmp_path / "state.pt")
    again = composed(fc, covariance=covariance)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    features = make_features(9).float()
    losses = [m.compute_loss(make_batch(m, 9), augury.ModelOutput(features, fc(features))) for m in (methods, again)]
    assert torch.equal(*losses)
    for name, value in methods["isda"].state_dict().items():
        assert torch.equal(value, again["isda"].state_dict()[name])


def test_mixed_precision() -> None:
    """bfloat16 features and logits under autocast: loss and state are float32, and those of the rounded numbers."""
    fc = nn.Linear(A, C)
    methods = composed(fc, lambda_0=5.0)
    methods.step()
    batch, inputs = make_batch(methods), make_features(0).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = inputs.to(torch.bfloat16).requires_grad_()
        logits = fc(features)
        assert logits.dtype == torch.bfloat16
        loss = methods.compute_loss(batch, augury.ModelOutput(features, logits))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in methods["isda"].state_dict().values())
    sigma = statistics(features.double(), batch.labels, batch.shares.double(), "full")
    expected = written_out(batch, features.double(), nn.Linear.double(fc), sigma, 0.5)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-2, atol=1e-2)
    found = torch.from_numpy(np.stack([sigma[c] for c in sorted(sigma)])).float()
    torch.testing.assert_close(methods["isda"].covariance[sorted(sigma)], found, rtol=1e-5, atol=1e-6)


class Raise(augury.Method):
    """Makes logits conditional on the label already."""

    sets_class_logits = True

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput) -> Iterator[None]:
        output.class_logits = output.logits[:, None] + torch.arange(C)
        return (yield)


def test_conditional_logits_of_another_method_are_added_to() -> None:
    fc = nn.Linear(A, C)
    methods = composed(fc, (Raise,), lambda_0=9.0)
    methods.step()
    batch, features = make_batch(methods), make_features(0).float()
    found = methods.compute_loss(batch, augury.ModelOutput(features, fc(features)))
    raised = fc(features) + torch.arange(C)
    varied = conditional_logits(raised, fc.weight, methods["isda"].covariance, batch.labels, 0.9)
    torch.testing.assert_close(found, F.cross_entropy(varied[:, 0], batch.labels[:, 0]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lambda_0": -1}, "isda: option `lambda_0` must be >= 0, got -1"),
        ({"lambda_0": float("inf")}, "isda: option `lambda_0` must be a finite number"),
        ({"covariance": "banded"}, "isda: option `covariance` must be one of 'full' or 'diagonal', got 'banded'"),
        ({"schedule": "batch"}, "isda: option `schedule` must be one of 'step' or 'epoch', got 'batch'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(augury.UsageError, match=told):
        composed(**options)


def test_what_it_needs_is_asked_for() -> None:
    with pytest.raises(
        augury.UsageError, match="isda needs a model whose classifier is one nn.Linear; .* in Sequential"
    ):
        composed(nn.Sequential(nn.Linear(A, C)))
    with pytest.raises(augury.UsageError, match="isda: needs `total_steps`") as told:
        augury.compose([ISDA], num_classes=C)
    assert "isda: needs the network's classifier" in str(told.value)
    methods = augury.compose([(ISDA, {"schedule": "epoch"})], num_classes=C, classifier=nn.Linear(A, C), total_steps=9)
    with pytest.raises(augury.UsageError, match="isda: needs `steps_per_epoch`"):
        methods.compute_loss(make_batch(methods), augury.ModelOutput(torch.zeros(N, A), torch.zeros(N, C)))


def train(rank: int, size: int, folder: Path) -> None:
    """Three steps on this process's share of the same batches."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.manual_seed(0)
    fc = nn.Linear(A, C)
    methods = composed(fc, lambda_0=9.0)
    rows = slice(rank * N // size, (rank + 1) * N // size)
    for step in range(3):
        whole, features = make_batch(methods, step, k=2), make_features(step).float()[rows]
        batch = augury.Batch(**{name: t[rows] for name, t in vars(whole).items() if isinstance(t, Tensor)})
        fc.zero_grad()
        loss = methods.compute_loss(batch, augury.ModelOutput(features, fc(features)))
        loss.backward()
        methods.step()
    ranks = methods.run.ranks
    found = {"loss": loss.detach(), "weight": fc.weight.grad, "bias": fc.bias.grad}
    found = {name: ranks.mean(value) for name, value in found.items()}
    torch.save({**found, **methods["isda"].state_dict()}, folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


def test_two_processes_on_half_batches_give_what_one_gives(tmp_path: Path) -> None:
    train(0, 1, tmp_path)
    mp.spawn(train, args=(2, tmp_path), nprocs=2)
    one, *both = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert one["count"].sum() == pytest.approx(3 * N)
    for found in both:
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)
