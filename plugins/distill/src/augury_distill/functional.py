"""The mathematics of distillation (Hinton et al., 2015)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergences(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute T^2 KL(p || q) for each row, with p = softmax(teacher / T) and q = softmax(student / T).

    The gradient by the student's logits is T (q - p): the factor T^2 keeps its size where T changes (section 2 of
    arXiv 1503.02531).

    Args:
        student: logits M x C float.
        teacher: logits M x C float.
        temperature: T > 0.

    Returns:
        M float, >= 0 but for rounding.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)
