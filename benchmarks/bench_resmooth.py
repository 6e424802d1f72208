"""ReSmooth's posterior of a batch, in closed form, against scikit-learn's `predict_proba` called for each batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from augury_resmooth.functional import FIT, Mixture, posterior

N, REPEATS, CALLS = 256, 40, 20


def fitted_mixture() -> GaussianMixture:
    """A mixture fitted to log-losses of two planted groups."""
    generator = torch.Generator().manual_seed(0)
    low = -7 + 1.5 * torch.randn(7000, generator=generator, dtype=torch.float64)
    high = -0.5 + 0.8 * torch.randn(3000, generator=generator, dtype=torch.float64)
    return GaussianMixture(**FIT, random_state=0).fit(torch.cat([low, high]).numpy()[:, None])


def seconds(call: Callable[[Tensor], Tensor], losses: Tensor) -> float:
    """Seconds of one call, mean of several in a row."""
    started = time.perf_counter()
    for _ in range(CALLS):
        call(losses)
    return (time.perf_counter() - started) / CALLS


def bench() -> list[dict[str, Any]]:
    """One row."""
    fitted = fitted_mixture()
    order = fitted.means_[:, 0].argsort()
    parts = (fitted.weights_, fitted.means_[:, 0], fitted.covariances_[:, 0, 0])
    mixture = Mixture(*((float(part[order[0]]), float(part[order[1]])) for part in parts))

    def ours(losses: Tensor) -> Tensor:
        return posterior(losses, mixture)

    def reference(losses: Tensor) -> Tensor:
        return torch.from_numpy(fitted.predict_proba(losses.cpu().numpy()[:, None])[:, order[0]]).to(losses.device)

    losses = -12 + 14 * torch.rand(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        apart = float((ours(losses) - reference(losses)).abs().max())
        assert apart < 1e-6, f"the two posteriors differ by {apart}"
        times = [(seconds(ours, losses), seconds(reference, losses)) for _ in range(REPEATS + 3)][3:]
    fast, slow = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return [
        {
            "what": f"ReSmooth's posterior, N={N}, against scikit-learn's predict_proba per batch",
            "ratio": slow / fast,
            "unit": "× faster",
            "at_least": 10.0,
            "detail": f"{fast:.0f} µs against {slow:.0f} µs, median of {REPEATS}, apart by {apart:.0e}",
        }
    ]


if __name__ == "__main__":
    for row in bench():
        print(f"{row['ratio']:8.1f} {row['unit']} (at least {row['at_least']:g}): {row['what']}: {row['detail']}")
