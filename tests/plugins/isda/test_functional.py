"""ISDA's statistics and conditional logits against formulas written out over samples, in float64."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from augury_isda import functional
from augury_isda.functional import class_variances, conditional_logits, present_classes, update_

C, A = 7, 5
State = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["full", "diagonal"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[True, False], ids=["asking", "not-asking"])
def synchronise(request: pytest.FixtureRequest) -> bool:
    """Both ways of finding the classes present: the CPU's, and the one that never waits for a device."""
    return request.param


def empty(kind: str, dtype: torch.dtype = torch.float64) -> State:
    moments = (A, A) if kind == "full" else (A,)
    return torch.zeros(C, A, dtype=dtype), torch.zeros(C, *moments, dtype=dtype), torch.zeros(C, dtype=dtype)


def random_rows(n: int, k: int, classes: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated features around 50, labels of the given classes (a row may name one twice), shares that sum to 1."""
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(n, A, generator=g, dtype=torch.float64) @ torch.randn(A, A, generator=g, dtype=torch.float64)
    labels = torch.tensor(classes)[torch.randint(len(classes), (n, k), generator=g)]
    weights = torch.rand(n, k, generator=g, dtype=torch.float64) + 0.1
    return features + 50 + labels[:, :1], labels, weights / weights.sum(1, keepdim=True)


def pooled(rows: list[tuple[Tensor, Tensor, Tensor]], kind: str) -> State:
    """numpy's weighted statistics of each class, over all rows at once."""
    features = np.concatenate([f.repeat_interleave(y.shape[1], 0).numpy() for f, y, _ in rows])
    labels = np.concatenate([y.flatten().numpy() for _, y, _ in rows])
    weights = np.concatenate([w.flatten().numpy() for _, _, w in rows])
    mean, covariance, count = empty(kind)
    for c in range(C):
        of_class, shares = features[labels == c], weights[labels == c]
        count[c] = shares.sum()
        if len(of_class):
            mean[c] = torch.from_numpy(np.average(of_class, axis=0, weights=shares))
            full = torch.from_numpy(np.cov(of_class.T, aweights=shares, ddof=0))
            covariance[c] = full if kind == "full" else full.diagonal()
    return mean, covariance, count


# Classes 5 and 6 come late, 4 has one sample in all, 2 never comes; some batches are of one row, or of one class.
STREAM = [(6, [0, 1]), (1, [3]), (40, [0, 1, 3]), (1, [4]), (9, [5]), (64, [0, 1, 3, 5, 6]), (2, [1])]


@pytest.mark.parametrize("k", [1, 3])
def test_a_stream_of_batches_gives_the_statistics_of_all_its_samples(kind: str, synchronise: bool, k: int) -> None:
    stream = [random_rows(n, k, classes, seed) for seed, (n, classes) in enumerate(STREAM)]
    state = empty(kind)
    for rows in stream:
        update_(*state, *rows, synchronise=synchronise)
    for found, expected in zip(state, pooled(stream, kind), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (state[1][[2, 4]].abs().max() < 1e-20) if k == 1 else (state[1][2] == 0).all()


def test_blocks_of_one_slot_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "BLOCK_BYTES", 1)
    rows = random_rows(30, 2, list(range(C)), 3)
    state = empty("full")
    update_(*state, *rows, synchronise=False)
    for found, expected in zip(state, pooled([rows], "full"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_absent_classes_do_not_change(kind: str, synchronise: bool) -> None:
    state = empty(kind)
    update_(*state, *random_rows(50, 1, list(range(C)), 0))
    before = [t.clone() for t in state]
    update_(*state, *random_rows(4, 1, [2, 5], 1), synchronise=synchronise)
    others = [0, 1, 3, 4, 6]
    for old, new in zip(before, state, strict=True):
        assert torch.equal(old[others], new[others])
        assert not torch.equal(old[[2, 5]], new[[2, 5]])


def test_float32_keeps_variances_that_are_small_beside_the_mean(kind: str, synchronise: bool) -> None:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(600, A, generator=g) + 3000
    state = empty(kind, torch.float32)
    one = torch.ones(100, 1)
    for part in features.split(100):
        update_(*state, part, one.long() * 3, one, synchronise=synchronise)
    expected = torch.from_numpy(np.cov(features.double().T.numpy(), ddof=0)).float()
    found = state[1][3] if kind == "full" else state[1][3].diag()
    torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=2e-3, atol=0)


def test_counts_stay_exact_over_millions_of_rows() -> None:
    state = empty("diagonal", torch.float32)
    state[2][1] = 12_000_000
    rows = torch.ones(3, A), torch.ones(3, 1, dtype=torch.long), torch.ones(3, 1)
    for _ in range(100):
        update_(*state, *rows)
    assert state[2][1] == 12_000_300


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e200])
@pytest.mark.parametrize("k", [1, 2])
def test_rows_that_are_not_finite_are_left_out(kind: str, synchronise: bool, bad: float, k: int) -> None:
    good, last = random_rows(20, k, [0, 1, 2], 0), random_rows(3, k, [2, 4], 1)
    last[0][:, 1] = bad
    state = empty(kind)
    update_(*state, *(torch.cat([a, b]) for a, b in zip(last, good, strict=True)), synchronise=synchronise)
    update_(*state, *last, synchronise=synchronise)
    for found, expected in zip(state, pooled([good], kind), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_classes_present() -> None:
    labels = torch.tensor([[4, 2], [2, 9], [4, 4]])
    classes, slots = present_classes(labels, 10)
    assert classes.tolist() == [2, 4, 9]
    assert torch.equal(classes[slots], labels)
    classes, slots = present_classes(labels, 10, synchronise=False)
    assert classes.tolist() == [2, 4, 9, 0, 0, 0], "as many slots as labels"
    assert torch.equal(classes[slots], labels)
    assert len(present_classes(labels, 4 + 6, synchronise=False)[0]) == 6
    assert len(present_classes(labels % 3, 3, synchronise=False)[0]) == 3, "never more slots than classes"


def test_nothing_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the meta device have no values: whoever asks for one fails."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # that device has none
    mean, covariance, count = (t.to("meta") for t in empty(kind, torch.float32))
    features, labels, shares = (t.to("meta") for t in random_rows(12, 2, [0, 1, 5], 0))
    weight = torch.empty(C, A, device="meta", requires_grad=True)
    update_(mean, covariance, count, features.float(), labels, shares.float())
    logits = conditional_logits(features.float() @ weight.t(), weight, covariance, labels, 0.5)
    assert logits.shape == (12, 2, C)
    logits.sum().backward()


def spread(kind: str, classes: int, seed: int) -> Tensor:
    """A covariance (or variances) of each class."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.randn(classes, A, A, generator=g, dtype=torch.float64)
    full = factor @ factor.mT
    return full if kind == "full" else full.diagonal(dim1=1, dim2=2).clone()


def dense_logits(logits: Tensor, weight: Tensor, covariance: Tensor, labels: Tensor, strength: float) -> Tensor:
    """The formula, one sample and label at a time, for autograd to differentiate."""
    rows = []
    for z, of_row in zip(logits, labels, strict=True):
        for y in of_row:
            away = weight - weight[y]
            sigma = covariance[y] if covariance.ndim == 3 else covariance[y].diag()
            rows.append(z + strength / 2 * torch.stack([d @ sigma @ d for d in away]))
    return torch.stack(rows).reshape(*labels.shape, -1)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "computed-again"])
@pytest.mark.parametrize("k", [1, 3])
def test_values_and_gradients_are_those_of_the_dense_formulation(
    kind: str, k: int, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not keep:
        monkeypatch.setattr(functional, "KEEP_BYTES", 0)
        monkeypatch.setattr(functional, "BLOCK_BYTES", 2 * C * A * 8)
    features, labels, shares = random_rows(16, k, [0, 2, 3, 6], 5)
    covariance = spread(kind, C, 1)
    g = torch.Generator().manual_seed(2)
    made = []
    for form in (conditional_logits, dense_logits):
        g.manual_seed(2)
        weight = torch.randn(C, A, generator=g, dtype=torch.float64).requires_grad_()
        bias = torch.randn(C, generator=g, dtype=torch.float64).requires_grad_()
        inputs = ((features - 50) / 9).requires_grad_()
        logits = form(F.linear(inputs, weight, bias), weight, covariance, labels, 0.7)
        loss = -(shares * logits.log_softmax(2).gather(2, labels[:, :, None])[:, :, 0]).sum(1).mean()
        made.append([logits.detach(), loss.detach(), *torch.autograd.grad(loss, (weight, bias, inputs))])
        inputs.grad = None
    for found, expected in zip(*made, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_gradcheck(kind: str) -> None:
    weight = torch.randn(4, A, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    covariance = spread(kind, 4, 3)
    classes = torch.tensor([0, 1, 3])
    assert torch.autograd.gradcheck(lambda w: class_variances(w, covariance, classes), (weight,))


def test_logits_that_depend_on_the_label_already_are_added_to() -> None:
    weight, covariance = torch.randn(C, A, generator=torch.Generator().manual_seed(0)), spread("full", C, 0).float()
    labels = torch.tensor([[0, 3], [5, 5]])
    before = torch.arange(2.0 * 2 * C).reshape(2, 2, C)
    moved = conditional_logits(before, weight, covariance, labels, 1.0)
    zero = conditional_logits(torch.zeros(2, C), weight, covariance, labels, 1.0)
    torch.testing.assert_close(moved, before + zero)


def test_own_class_has_no_variance_and_others_have_some() -> None:
    weight = torch.randn(C, A, generator=torch.Generator().manual_seed(0))
    variances = class_variances(weight, spread("full", C, 0).float(), torch.arange(C))
    assert (variances.diagonal() == 0).all()
    assert (variances + torch.eye(C) > 0).all()


def test_backward_under_autocast_is_in_float32() -> None:
    weight = torch.randn(C, A, generator=torch.Generator().manual_seed(0)).requires_grad_()
    variances = class_variances(weight, spread("full", C, 0).float(), torch.arange(C))
    (expected,) = torch.autograd.grad(variances.sum(), weight, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(variances.sum(), weight)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_a_covariance_changed_before_it_is_needed_again_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "KEEP_BYTES", 0)
    weight, covariance = torch.randn(C, A, requires_grad=True), spread("full", C, 0).float()
    variances = class_variances(weight, covariance, torch.arange(2))
    covariance.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        variances.sum().backward()


@pytest.mark.parametrize("strength", [0.02, 1.0])
def test_the_loss_bounds_the_expected_one_over_varied_features(kind: str, strength: float) -> None:
    """Features drawn from N(a, strength * covariance): their mean cross-entropy is no larger.

    The bound is Jensen's inequality, log of the mean of exp(loss), which small variances let a sample tell exactly.
    """
    g = torch.Generator().manual_seed(4)
    weight = torch.randn(C, A, generator=g, dtype=torch.float64) / 2
    bias = torch.randn(C, generator=g, dtype=torch.float64)
    covariance, draws = spread(kind, C, 6), 100_000
    for y in (0, 4):
        a = torch.randn(A, generator=g, dtype=torch.float64)
        label = torch.tensor([[y]])
        z = F.linear(a, weight, bias)[None]
        bound = F.cross_entropy(conditional_logits(z, weight, covariance, label, strength)[:, 0], label[0])
        root = torch.linalg.cholesky(covariance[y]) if kind == "full" else covariance[y].sqrt().diag()
        noise = torch.randn(draws, A, generator=g, dtype=torch.float64) @ root.mT
        losses = F.cross_entropy(
            F.linear(a + strength**0.5 * noise, weight, bias), label[0].expand(draws), reduction="none"
        )
        mean, error = losses.mean(), losses.std() / draws**0.5
        assert mean <= bound + 3 * error
        assert bound > F.cross_entropy(z, label[0]), "or it would bound nothing"
        if strength < 0.1:
            odds = losses.exp()
            torch.testing.assert_close(odds.mean(), bound.exp(), rtol=0, atol=float(4 * odds.std() / draws**0.5))
