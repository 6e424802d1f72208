"""ISDA's step (update, loss, backward) against the dense formulation, which multiplies matrices for each sample."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from augury_isda.functional import conditional_logits, update_

N, C, A = 128, 100, 640
STRENGTH = 0.25
REPEATS = 5

State = tuple[Tensor, Tensor, Tensor]


def ours(state: State, features: Tensor, labels: Tensor, fc: torch.nn.Linear) -> Tensor:
    """The loss as augury_isda computes it; updates `state` in place."""
    mean, covariance, count = state
    update_(mean, covariance, count, features.detach(), labels[:, None], torch.ones(len(labels), 1))
    logits = conditional_logits(fc(features), fc.weight, covariance, labels[:, None], STRENGTH)
    return F.cross_entropy(logits[:, 0], labels)


def dense_update(state: State, features: Tensor, labels: Tensor) -> None:
    """The running estimate as the official program forms it: samples spread over all classes, a share per number."""
    mean, covariance, count = state
    (n, width), classes = features.shape, len(mean)
    member = F.one_hot(labels, classes).to(features.dtype)
    member_nca = member[:, :, None].expand(n, classes, width)
    features_nca = features[:, None].expand(n, classes, width) * member_nca
    size_ca = member_nca.sum(0).clamp_min(1)
    batch_mean = features_nca.sum(0) / size_ca
    centred = features_nca - batch_mean.expand(n, classes, width) * member_nca
    batch_covariance = torch.bmm(centred.permute(1, 2, 0), centred.permute(1, 0, 2))
    batch_covariance = batch_covariance / size_ca[:, :, None].expand(classes, width, width)
    added = member.sum(0)
    added_caa, count_caa = (t[:, None, None].expand(classes, width, width) for t in (added, count))
    share_caa = added_caa / (added_caa + count_caa)
    share_caa[share_caa.isnan()] = 0
    shift = mean - batch_mean
    between = share_caa * (1 - share_caa) * torch.bmm(shift[:, :, None], shift[:, None, :])
    covariance.copy_(covariance * (1 - share_caa) + batch_covariance * share_caa + between)
    mean.copy_(mean * (1 - share_caa[:, :, 0]) + batch_mean * share_caa[:, :, 0])
    count += added


def dense(state: State, features: Tensor, labels: Tensor, fc: torch.nn.Linear) -> Tensor:
    """The loss as the official program forms it: a C x C matrix for each sample, of which the diagonal is used."""
    dense_update(state, features.detach(), labels)
    n, (classes, width) = len(labels), fc.weight.shape
    weight_nca = fc.weight.expand(n, classes, width)
    own_nca = weight_nca.gather(1, labels[:, None, None].expand(n, classes, width))
    products = torch.bmm(weight_nca - own_nca, state[1][labels])
    quadratic = torch.bmm(products, (weight_nca - own_nca).permute(0, 2, 1))
    variances = (quadratic * torch.eye(classes).expand(n, classes, classes)).sum(2)
    return F.cross_entropy(fc(features) + STRENGTH / 2 * variances, labels)


Loss = Callable[[State, Tensor, Tensor, torch.nn.Linear], Tensor]


class Case:
    """One formulation with a state of its own, on the same batches as the other's."""

    def __init__(self, loss: Loss) -> None:
        generator = torch.Generator().manual_seed(0)
        self.loss = loss
        self.state = (torch.zeros(C, A), torch.zeros(C, A, A), torch.zeros(C))
        self.features = torch.randn(N, A, generator=generator).requires_grad_()
        self.labels = torch.randint(C, (N,), generator=generator)
        self.fc = torch.nn.Linear(A, C)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(C, A, generator=generator) / A**0.5)
            self.fc.bias.zero_()

    def step(self) -> float:
        """Update, loss, backward."""
        loss = self.loss(self.state, self.features, self.labels, self.fc)
        loss.backward()
        self.features.grad = self.fc.weight.grad = self.fc.bias.grad = None
        return loss.item()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def peak_mb(self) -> float:
        """Most memory that a step holds beyond what was held before it, by torch's record of every allocation."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else the profiler tells of the GPU it misses
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            self.step()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "trace.json")
            recorded.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
        memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
        return max(accumulate(e["args"]["Bytes"] for e in memory)) / 1e6


def bench() -> list[dict[str, Any]]:
    """Rows of time and memory, both on one thread.

    With more, whatever else runs on the machine decides: a thread kept from its core for a moment holds up the others
    at the end of every operation.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure()
    finally:
        torch.set_num_threads(threads)


def measure() -> list[dict[str, Any]]:
    """Both formulations, in turn."""
    cases = {"ours": Case(ours), "dense": Case(dense)}
    times: dict[str, list[float]] = {name: [] for name in cases}
    losses = {name: case.step() for name, case in cases.items()}
    assert abs(losses["ours"] - losses["dense"]) < 1e-4, f"the two formulations disagree: {losses}"
    for _ in range(REPEATS):
        for name, case in cases.items():
            times[name].append(case.seconds())
    fast, slow = (statistics.median(times[name]) * 1e3 for name in ("ours", "dense"))
    small, large = (cases[name].peak_mb() for name in ("ours", "dense"))
    what = f"ISDA update + loss + backward, N={N} C={C} A={A} float32, against the per-sample dense formulation"
    return [
        {
            "what": what,
            "ratio": slow / fast,
            "unit": "× faster",
            "at_least": 10.0,
            "detail": f"{fast:.0f} ms against {slow:.0f} ms a step, median of {REPEATS}, one thread",
        },
        {
            "what": what,
            "ratio": large / small,
            "unit": "× less peak memory",
            "at_least": 4.0,
            "detail": f"{small:.0f} MB against {large:.0f} MB beyond the state",
        },
    ]


if __name__ == "__main__":
    for row in bench():
        print(f"{row['ratio']:8.1f} {row['unit']} (at least {row['at_least']:g}): {row['what']}: {row['detail']}")
