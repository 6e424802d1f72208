"""What AgMax's tests share: small compositions, and the loss of each agreement written out in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import augury
from augury_agmax import AgMax
from augury_agmax.functional import TINY

N, CLASSES = 6, 4
AGREEMENTS = ("mi", "mse", "kl", "ce")


def composed(
    *before: Any, after: Any = (), seed: int = 0, classes: int = CLASSES, **options: Any
) -> augury.Composition:
    """AgMax between other methods; a Q-network of 8 units unless `options` say otherwise."""
    if options.get("agreement", "mi") == "mi":
        options = {"n_units": 8, **options}
    return augury.compose([*before, (AgMax, options), *after], num_classes=classes, seed=seed)


def batch_of(methods: augury.Composition, n: int = N) -> augury.Batch:
    """Two views of n random images."""
    torch.manual_seed(1)
    labels = torch.arange(n) % methods.run.spec.num_classes
    return methods.batch((torch.randn(n, 3, 8, 8), torch.randn(n, 3, 8, 8)), labels)


def random_output(rows: int = 2 * N, scale: float = 2.0, classes: int = CLASSES) -> augury.ModelOutput:
    """Random logits in float64, with gradients."""
    generator = torch.Generator().manual_seed(2)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return augury.ModelOutput(torch.zeros(rows, 3), logits.requires_grad_())


def log_softmax(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(1, keepdim=True)


def criterion(logits: Tensor, targets: Tensor) -> Tensor:
    """1/2 [CE(z, y) + CE(z', y')] in float64."""
    n = len(logits) // 2
    losses = -(targets.double() * log_softmax(logits.double())).sum(1)
    return 0.5 * (losses[:n].sum() / n + losses[n:].sum() / n)


def formula(logits: Tensor, q: nn.Module, targets: Tensor, beta: float = 4.0) -> Tensor:
    """1/2 [CE(z, y) + CE(z', y')] - 1/3 [H + H' + H_q] + beta mean|q - p or p'|, in float64.

    Args:
        targets: M x C soft labels, view-major.
    """
    n = len(logits) // 2
    z, z_other = logits.double()[:n], logits.double()[n:]
    hidden, out = (layer for layer in q if isinstance(layer, nn.Linear))
    joint = torch.cat([z, z_other], 1)
    active = (joint @ hidden.weight.double().t() + hidden.bias.double()).clamp(min=0)
    z_q = active @ out.weight.double().t() + out.bias.double()
    p, p_other, p_q = (log_softmax(one).exp() for one in (z, z_other, z_q))

    def entropy(one: Tensor) -> Tensor:
        mean = one.sum(0) / n
        mean = torch.where(mean > TINY, mean, torch.full_like(mean, TINY))
        return -(mean * mean.log()).sum()

    entropies = entropy(p) + entropy(p_other) + entropy(p_q)
    gap = ((p_q - p).abs().sum() + (p_q - p_other).abs().sum()) / (2 * n * logits.shape[1])
    return criterion(logits, targets) - entropies / 3 + beta * gap


def simple_formula(agreement: str, logits: Tensor, targets: Tensor) -> Tensor:
    """1/2 [CE(z, y) + CE(z', y')] + the agreement of z and z', in float64."""
    n, classes = len(logits) // 2, logits.shape[1]
    z, z_other = logits.double()[:n], logits.double()[n:]
    log_p, log_p_other = log_softmax(z), log_softmax(z_other)
    terms = {
        "mse": ((z - z_other) ** 2).sum() / (n * classes),
        "kl": (log_p_other.exp() * (log_p_other - log_p)).sum() / n,
        "ce": -(log_p.exp() * log_p_other).sum() / (n * classes),
    }
    return criterion(logits, targets) + terms[agreement]
