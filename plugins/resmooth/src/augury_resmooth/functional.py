"""ReSmooth's mathematics: log-losses, the mixture fitted to them, its posterior, and the smoothing that follows.

Letters in shapes: M rows, K labels a row is mixed from, C classes, n losses. ID: in distribution, OOD: out of it.
After arXiv 2205.12606.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

import augury

LOSS_OFFSET = 1e-10
"""What is added to a loss before its logarithm, as in the official code."""

FIT = {"n_components": 2, "max_iter": 10, "tol": 1e-2, "reg_covar": 5e-4}
"""The official code's settings of scikit-learn's `GaussianMixture`."""


class Mixture(NamedTuple):
    """A two-component Gaussian mixture of log-losses; the first component is ID, the one with the smaller mean."""

    weights: tuple[float, float]
    means: tuple[float, float]
    variances: tuple[float, float]

    def fault(self) -> str | None:
        """What keeps it from being such a mixture, None when nothing does."""
        if not all(math.isfinite(number) for pair in self for number in pair):
            return "finite numbers"
        if min(self.weights) <= 0 or abs(sum(self.weights) - 1) > 1e-3:
            return "a mixture whose weights are > 0 and sum to 1"
        if self.means[0] > self.means[1]:
            return "a mixture whose first component (ID) has the smaller mean"
        return None if min(self.variances) > 0 else "a mixture with variances > 0"


def log_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """log(CE + 1e-10) of rows, in float64: in float32 a confident row's loss rounds to 0 or a multiple of 1.2e-7.

    Args:
        logits: M x C float.
        labels: M x K int64.
        weights: M x K float, summing to 1 in each row.

    Returns:
        M float64.
    """
    losses = augury.row_losses(logits.double(), labels, weights.double(), torch.zeros_like(weights))
    return (losses + LOSS_OFFSET).log()


def fit_mixture(losses: Tensor, seed: int) -> Mixture:
    """Fit a two-component mixture to log-losses by expectation maximisation, with the official code's settings.

    Ten iterations may end it before it converges; that is the published procedure, so nothing warns of it.

    Args:
        losses: n >= 2 finite log-losses.
        seed: of the k-means that EM starts from, in [0, 2**32).
    """
    # Its import takes longer than a fit, and a resumed run or a loop with a given mixture fits nothing.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    fitted = GaussianMixture(**FIT, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(losses.cpu().double().numpy()[:, None])
    order = fitted.means_[:, 0].argsort(kind="stable")
    parts = (fitted.weights_, fitted.means_[:, 0], fitted.covariances_[:, 0, 0])
    return Mixture(*((float(part[order[0]]), float(part[order[1]])) for part in parts))


def posterior(losses: Tensor, mixture: Mixture) -> Tensor:
    """P(ID | loss) in closed form, on the losses' device: the sigmoid of log-odds that are quadratic in the log-loss.

    With d = loss - mean_ID and s = mean_ID - mean_OOD the log-odds are
    log(w_ID / w_OOD) + 1/2 log(v_OOD / v_ID) - d^2 / (2 v_ID) + (d + s)^2 / (2 v_OOD).

    Args:
        losses: M finite log-losses.
        mixture: the six numbers, on the host.

    Returns:
        M float64.
    """
    (w_in, w_out), (mean_in, mean_out), (v_in, v_out) = mixture
    shift = mean_in - mean_out
    constant = math.log(w_in / w_out) + (math.log(v_out / v_in) + shift * shift / v_out) / 2
    d = losses.double() - mean_in
    log_odds = (d * ((1 / v_out - 1 / v_in) / 2)).add_(shift / v_out).mul_(d).add_(constant)
    return log_odds.sigmoid_()


def smoothing(posterior: Tensor, base: Tensor, smooth_org: float, smooth_aug: float) -> Tensor:
    """The label smoothing of rows: (1 - q) smooth_aug for augmented ones, smooth_org for base ones.

    Args:
        posterior: M float, q = P(ID); what it holds for base rows does not matter.
        base: M bool, the rows of pipeline `base`.
        smooth_org, smooth_aug: in [0, 1].

    Returns:
        M of the posterior's dtype.
    """
    return torch.where(base, smooth_org, (1 - posterior) * smooth_aug)


def balance(base: Tensor, prob: float, base_rows: Tensor, rows: int) -> Tensor:
    """Row weights with which base and augmented rows weigh prob : 1 - prob in the mean, however many there are of each.

    Where there are none of one kind, every row keeps weight 1.

    Args:
        base: M bool, the rows of pipeline `base`.
        prob: in [0, 1].
        base_rows: 0-dimensional, how many base rows the batch has over all processes.
        rows: how many rows it has over all processes.

    Returns:
        M float32, with mean 1 over all processes.
    """
    count = base_rows.double()
    pair = torch.stack([(1 - prob) * rows / (rows - count), prob * rows / count])
    pair = torch.where((count == 0) | (count == rows), 1.0, pair)
    return pair.float()[base.long()]
