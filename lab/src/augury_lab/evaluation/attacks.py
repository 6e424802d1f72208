"""Adversarial images: FGSM and PGD within a distance of each pixel, on images in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from augury.errors import UsageError

Logits = Callable[[Tensor], Tensor]
"""Images N x ch x H x W in [0, 1] -> logits N x C, differentiable."""

PGD_STEPS = 20
PGD_STEP = 0.25
"""Of the distance: 2/255 for 8/255, the larger attack on CIFAR-10 of Madry et al. 2018, arXiv 1706.06083."""


def ascent(logits_of: Logits, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sign of the gradient of the cross-entropy for each pixel, and the answers.

    What is differentiated is log((1 - p_y) / p_y) = log sum_{c != y} exp z_c - z_y. It rises with the cross-entropy
    -log p_y, so that the signs are the same; but where p_y is 1 in float32 the gradient of the cross-entropy vanishes,
    and an attack on a network that is sure of itself would do nothing and make it look robust.

    Args:
        logits_of: the network.
        images: N x ch x H x W float32 in [0, 1].
        labels: N int64.

    Returns:
        signs N x ch x H x W in {-1, 0, 1}, and the predicted classes N int64.
    """
    pixels = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = logits_of(pixels)
        own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
        others = logits.masked_fill(own, -torch.inf).logsumexp(1)
        margin = others - logits.gather(1, labels[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(margin.sum(), pixels)
    return gradient.sign(), logits.detach().argmax(1)


def fgsm(images: Tensor, signs: Tensor, epsilon: float) -> Tensor:
    """One step of size epsilon along the signs (Goodfellow et al. 2015, arXiv 1412.6572), kept in [0, 1].

    Args:
        images, signs: N x ch x H x W, signs as `ascent` gives them.
        epsilon: distance of each pixel, on the scale of [0, 1].
    """
    return (images + epsilon * signs).clamp_(0, 1)


def pgd(
    logits_of: Logits,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    generator: torch.Generator,
    steps: int = PGD_STEPS,
    step: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Projected gradient ascent from a random start (Madry et al. 2018, arXiv 1706.06083).

    x_0 = x + U(-epsilon, epsilon), x_{t+1} = x_t + step * sign(gradient), each brought back to within epsilon of x and
    into [0, 1].

    Args:
        logits_of: the network.
        images: N x ch x H x W float32 in [0, 1].
        labels: N int64.
        epsilon: largest distance of each pixel, on the scale of [0, 1].
        generator: on the images' device, of the random start.
        steps: how many.
        step: their size; a quarter of epsilon when None.

    Returns:
        the last images, and N bool: right on each image on the way, the last one and the clean one included. Any of
        them is an image within the distance, so one that is mistaken is enough.
    """
    step = PGD_STEP * epsilon if step is None else step
    low, high = (images - epsilon).clamp_(0, 1), (images + epsilon).clamp_(0, 1)
    with torch.no_grad():
        right = logits_of(images).argmax(1) == labels
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    found = (images + epsilon * (2 * noise - 1)).clamp(low, high)
    for _ in range(steps):
        signs, answers = ascent(logits_of, found, labels)
        right &= answers == labels
        found = (found + step * signs).clamp(low, high)
    with torch.no_grad():
        right &= logits_of(found).argmax(1) == labels
    return found, right


def check_epsilons(epsilons: Sequence[float], flag: str) -> list[float]:
    """Distances in units of 1/255, from 0 to 255, each once and in order.

    Raises:
        UsageError: one that is none.
    """
    for epsilon in epsilons:
        if not 0 <= epsilon <= 255:
            raise UsageError(
                f"{flag}: an epsilon must be from 0 to 255, in units of 1/255 of the pixels' range, got {epsilon:g}. "
                f"Write {flag} 1,2,4,8."
            )
    return sorted({float(epsilon) for epsilon in epsilons})
