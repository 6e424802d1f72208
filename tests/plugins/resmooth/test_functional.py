"""ReSmooth's mathematics against the formulas and against scikit-learn."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from augury_resmooth.functional import Mixture, balance, fit_mixture, log_losses, posterior, smoothing

# The official code's settings.
SETTINGS = {"max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}

MIXTURES = [
    Mixture((0.7, 0.3), (-7.0, -0.5), (2.0, 0.6)),
    Mixture((0.3, 0.7), (-3.0, -2.5), (0.5, 4.0)),
    Mixture((0.999, 0.001), (-20.0, 2.0), (5e-4, 5e-4)),
    Mixture((1e-9, 1 - 1e-9), (-9.0, -9.0), (5e-4, 9.0)),
]


def planted(low: int, high: int) -> tuple[Tensor, Tensor]:
    """Log-losses of two groups that hardly overlap, shuffled, and which of them are of the lower one."""
    losses = torch.cat([-8 + 1.2 * torch.randn(low), 0.2 + 0.7 * torch.randn(high)]).double()
    member = torch.arange(low + high) < low
    order = torch.randperm(low + high)
    return losses[order], member[order]


def sklearn_mixture(mixture: Mixture) -> GaussianMixture:
    """The same mixture as scikit-learn's object, as if fitted."""
    made = GaussianMixture(2)
    made.weights_ = np.array(mixture.weights)
    made.means_ = np.array(mixture.means)[:, None]
    made.covariances_ = np.array(mixture.variances)[:, None, None]
    made.precisions_cholesky_ = 1 / np.sqrt(made.covariances_)
    return made


def test_log_losses_are_the_formulas() -> None:
    logits, labels = 3 * torch.randn(50, 7), torch.randint(7, (50, 1))
    found = log_losses(logits, labels, torch.ones(50, 1))
    for row, label, value in zip(logits.double().tolist(), labels[:, 0].tolist(), found.tolist(), strict=True):
        cross_entropy = math.log(math.fsum(math.exp(z - row[label]) for z in row))
        assert value == pytest.approx(math.log(cross_entropy + 1e-10), abs=1e-12)
    assert found.dtype == torch.float64


def test_log_losses_of_confident_rows_keep_their_order() -> None:
    logits = torch.tensor([[14.0, 0.0], [18.0, 0.0], [20.0, 0.0], [200.0, 0.0], [0.0, 200.0]])
    found = log_losses(logits, torch.zeros(5, 1, dtype=torch.int64), torch.ones(5, 1))
    expected = [math.log(math.log1p(math.exp(-z)) + 1e-10) for z in (14, 18, 20, 200)] + [math.log(200)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


def test_log_losses_of_mixed_labels_weigh_them() -> None:
    logits, labels = torch.randn(6, 4), torch.randint(4, (6, 2))
    weights = torch.tensor([[0.25, 0.75]]).expand(6, 2)
    log_p = logits.double().log_softmax(1)
    expected = -(0.25 * log_p[range(6), labels[:, 0]] + 0.75 * log_p[range(6), labels[:, 1]])
    torch.testing.assert_close(log_losses(logits, labels, weights), (expected + 1e-10).log())


@pytest.mark.parametrize(("low", "high"), [(3000, 1000), (500, 3000)])
def test_mixture_separates_planted_clusters(low: int, high: int) -> None:
    losses, member = planted(low, high)
    mixture = fit_mixture(losses, seed=1)
    assert mixture.fault() is None
    assert mixture.means == pytest.approx((-8, 0.2), abs=0.15)
    assert mixture.weights[0] == pytest.approx(low / (low + high), abs=0.02)
    assert [v**0.5 for v in mixture.variances] == pytest.approx([1.2, 0.7], abs=0.1)
    assert ((posterior(losses, mixture) >= 0.5) == member).double().mean() > 0.995


def test_fit_has_the_published_settings() -> None:
    # Overlapping groups and a spike: the iterations, the tolerance and the regularisation all show in the result.
    losses = torch.cat([torch.randn(300), 1.5 + 3 * torch.randn(300), torch.full((200,), -4.0)]).double()

    def reference(**settings: float) -> list[list[float]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = GaussianMixture(2, random_state=3, **settings).fit(losses.numpy()[:, None])
        order = fit.means_[:, 0].argsort()
        return [list(p.flatten()[order]) for p in (fit.weights_, fit.means_, fit.covariances_)]

    found = [list(pair) for pair in fit_mixture(losses, seed=3)]
    np.testing.assert_allclose(found, reference(**SETTINGS), rtol=1e-12)
    for change in ({"max_iter": 2}, {"tol": 1e-9, "max_iter": 100}, {"reg_covar": 0.5}):
        assert not np.allclose(found, reference(**{**SETTINGS, **change}), rtol=1e-6), change


def test_fit_that_does_not_converge_is_silent() -> None:
    losses = 2 * torch.randn(20_000, dtype=torch.float64) ** 3
    with pytest.warns(ConvergenceWarning):
        fit = GaussianMixture(2, random_state=0, **SETTINGS).fit(losses.numpy()[:, None])
    found = fit_mixture(losses, seed=0)
    assert sorted(found.variances) == pytest.approx(sorted(fit.covariances_.flatten()), rel=1e-12)


def test_fit_of_equal_losses_is_a_mixture() -> None:
    mixture = fit_mixture(torch.full((40,), -23.0), seed=0)
    assert mixture.fault() is None
    assert posterior(torch.tensor([-23.0]), mixture).isfinite()


def test_fit_is_a_function_of_losses_and_seed() -> None:
    losses, _ = planted(300, 300)
    assert fit_mixture(losses, seed=5) == fit_mixture(losses, seed=5)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_posterior_is_that_of_scikit_learn(mixture: Mixture) -> None:
    extremes = [math.log(1e-10), 0.0, 7.0, -40.0, 1e3, -1e3, 1e5, 1e-300, *mixture.means, sum(mixture.means) / 2]
    losses = torch.cat([torch.linspace(-30, 10, 20_001, dtype=torch.float64), torch.tensor(extremes).double()])
    expected = torch.from_numpy(sklearn_mixture(mixture).predict_proba(losses.numpy()[:, None])[:, 0])
    found = posterior(losses, mixture)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.isfinite().all()


def test_posterior_of_a_fit_is_that_of_the_fit() -> None:
    losses, _ = planted(2000, 1000)
    fit = GaussianMixture(2, random_state=0, **SETTINGS).fit(losses.numpy()[:, None])
    expected = fit.predict_proba(losses.numpy()[:, None])[:, fit.means_[:, 0].argmin()]
    found = posterior(losses, fit_mixture(losses, seed=0))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_posterior_leaves_its_input_alone() -> None:
    losses = torch.linspace(-9, 1, 11, dtype=torch.float64)
    posterior(losses, MIXTURES[0])
    assert torch.equal(losses, torch.linspace(-9, 1, 11, dtype=torch.float64))


def test_smoothing_is_by_pipeline() -> None:
    q, base = torch.tensor([1.0, 0.75, 0.0, 0.3]).double(), torch.tensor([False, False, False, True])
    torch.testing.assert_close(smoothing(q, ~base, 0.1, 0.4), torch.tensor([0.0, 0.1, 0.4, 0.1]).double())


@pytest.mark.parametrize("prob", [0.0, 0.2, 0.37, 1.0])
@pytest.mark.parametrize(("rows", "base_rows"), [(5, 1), (7, 3), (128, 26), (2, 1), (129, 128)])
def test_balance_weighs_exactly_whatever_the_batch(rows: int, base_rows: int, prob: float) -> None:
    base = torch.randperm(rows) < base_rows
    weights = balance(base, prob, base.sum(), rows).double()
    assert float(weights[base].sum()) / rows == pytest.approx(prob, abs=1e-6)
    assert float(weights[~base].sum()) / rows == pytest.approx(1 - prob, abs=1e-6)
    assert weights[base].unique().numel() == weights[~base].unique().numel() == 1


@pytest.mark.parametrize("prob", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("base", [torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)])
def test_balance_of_one_part_alone_is_one(base: Tensor, prob: float) -> None:
    assert torch.equal(balance(base, prob, base.sum(), 5), torch.ones(5))


@pytest.mark.parametrize(
    ("mixture", "told"),
    [
        (Mixture((0.5, 0.6), (-1, 0), (1, 1)), "sum to 1"),
        (Mixture((1.0, 0.0), (-1, 0), (1, 1)), "> 0 and sum to 1"),
        (Mixture((0.5, 0.5), (1, 0), (1, 1)), "smaller mean"),
        (Mixture((0.5, 0.5), (-1, 0), (1, 0)), "variances > 0"),
        (Mixture((0.5, 0.5), (-1, math.nan), (1, 1)), "finite"),
    ],
)
def test_what_is_no_mixture_is_told(mixture: Mixture, told: str) -> None:
    assert told in str(mixture.fault())
