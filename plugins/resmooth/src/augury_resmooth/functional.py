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


LOSS_BINS = (-23.2, 8.8, 161)
"""Bins of log-losses: the lowest edge, the highest, how many edges. A loss of 0 has the logarithm -23.03."""


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

    def useless(self, images: int) -> str | None:
        """Why it tells nothing of the losses of so many images that it was fitted to, None where it does."""
        if min(self.weights) * images < 1:
            return "one component of the mixture of log-losses is empty"
        if self.means[1] - self.means[0] < 1e-6:
            return "both components of the mixture of log-losses are the same"
        return None


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


def histogram(losses: Tensor, counted: Tensor | None = None) -> Tensor:
    """Counts of log-losses in `LOSS_BINS`, int64; what lies outside counts at the edge.

    Args:
        losses: M float64.
        counted: M int64, how often each counts; once when None.
    """
    low, high, edges = LOSS_BINS
    bins = ((losses.nan_to_num(nan=high) - low) * ((edges - 1) / (high - low))).clamp(0, edges - 2).long()
    counted = torch.ones_like(bins) if counted is None else counted
    return torch.zeros(edges - 1, dtype=torch.int64, device=losses.device).scatter_add_(0, bins, counted)


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
    """P(ID | loss) in closed form, on the losses' device.

    Args:
        losses: M finite log-losses.
        mixture: the six numbers, on the host.

    Returns:
        M float64.
    """
    return log_odds(losses, mixture).sigmoid_()


def log_odds(losses: Tensor, mixture: Mixture) -> Tensor:
    """log P(ID | loss) - log P(OOD | loss), which is quadratic in the log-loss.

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
    return (d * ((1 / v_out - 1 / v_in) / 2)).add_(shift / v_out).mul_(d).add_(constant)


def label_weight(
    posterior: Tensor, base: Tensor, weighting: str, generator: torch.Generator, permutation: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The q that smooths each row by (1 - q) smooth_aug, and which rows it smooths at all.

    `regular`: P(ID) of the row, augmented rows alone. The paper's ablations take base rows in, whose P(ID) is 1:
    `reverse` 1 - P(ID), `random` P(ID) of another row, `uniform` a draw from [0, 1).

    Args:
        posterior: M float64, P(ID); what it holds for base rows does not matter.
        base: M bool, the rows of pipeline `base`.
        weighting: `regular`, `reverse`, `random` or `uniform`.
        generator: what `uniform` draws from.
        permutation: M int64, the rows whose P(ID) `random` takes; only that needs it.

    Returns:
        q, M float64, and M bool.
    """
    if weighting == "regular":
        return posterior, ~base
    everyone = torch.ones_like(base)
    known = torch.where(base, 1.0, posterior)
    if weighting == "reverse":
        return 1 - known, everyone
    if weighting == "random":
        assert permutation is not None
        return known[permutation], everyone
    drawn = torch.rand(len(base), dtype=torch.float64, generator=generator, device=base.device)
    return drawn, everyone


def smoothing(q: Tensor, smoothed: Tensor, smooth_org: float, smooth_aug: float) -> Tensor:
    """The label smoothing of rows: (1 - q) smooth_aug where `smoothed`, smooth_org elsewhere.

    Args:
        q: M float.
        smoothed: M bool.
        smooth_org, smooth_aug: in [0, 1].

    Returns:
        M of q's dtype.
    """
    return torch.where(smoothed, (1 - q) * smooth_aug, smooth_org)


def official_smoothing(q: Tensor, smoothed: Tensor, smooth_org: float, smooth_aug: float) -> tuple[Tensor, Tensor]:
    """The official program's loss -(1 - s) log p_y - (1 - q) s mean_c log p_c, s = smooth_aug, as smoothing and row
    weight: (1 - q) s / (1 - q s) and 1 - q s where `smoothed`.

    Args:
        as for `smoothing`.

    Returns:
        smoothing and row weights, M of q's dtype each.
    """
    weight = torch.where(smoothed, 1 - q * smooth_aug, 1.0)
    # Both are 0 where q = s = 1, and such a row has no loss at all.
    share = ((1 - q) * smooth_aug / weight.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(max=1)
    return torch.where(smoothed, share, smooth_org), weight


def distillation(logits: Tensor, teacher: Tensor, temperature: float, top_k: int | None = None) -> Tensor:
    """KL(student || teacher) of rows, both softmax at `temperature` over the teacher's first `top_k` classes.

    Args:
        logits: M x C float, the student's; the gradient goes there alone.
        teacher: M x C float.
        temperature: > 0.
        top_k: how many classes; all when None, or where there are no more.

    Returns:
        M float32 at least.
    """
    teacher = teacher.to(logits)
    if top_k is not None and top_k < teacher.shape[1]:
        teacher, classes = teacher.topk(top_k, 1)
        logits = logits.gather(1, classes)
    ours, theirs = ((z / temperature).log_softmax(1) for z in (logits, teacher))
    return (ours.exp() * (ours - theirs)).sum(1)


def fair_choice(posterior: Tensor, candidates: Tensor, part: str, count: int, generator: torch.Generator) -> Tensor:
    """The images that a fair comparison trains on: `count` at random of those in distribution, out of it, or of both.

    Args:
        posterior: N float, P(ID) of images.
        candidates: N bool, which images may be chosen.
        part: `id`, `ood` or `mix`.
        count: at most as many as the part has.
        generator: of the posterior's device.

    Returns:
        `count` numbers of images, int64.
    """
    wanted = {"id": posterior >= 0.5, "ood": posterior < 0.5, "mix": torch.ones_like(candidates)}[part] & candidates
    order = torch.rand(len(wanted), generator=generator, device=wanted.device)
    # Those that are not wanted come last.
    return torch.where(wanted, order, 2.0).argsort()[:count]


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
