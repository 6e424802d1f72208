"""ISDA's mathematics: running statistics of each class's features, and the variances of logits that follow from them.

Letters in shapes: M rows, K labels a row is mixed from, C classes, A features, S slots. A slot is a class that occurs
in the batch: all the heavy work is per slot, neither per row nor per class. Nothing here waits for an accelerator:
there S is min(M*K, C), known beforehand, and the slots to spare do work that changes nothing. On the CPU asking is
free, and S is the number of classes present.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 32 * 2**20
"""Size of the largest tensor of a block of slots: a few covariances, still in the cache when they are multiplied."""

KEEP_BYTES = 512 * 2**20
"""Products that are larger are not kept for the backward pass but computed again, block by block."""


def present_classes(labels: Tensor, num_classes: int, *, synchronise: bool | None = None) -> tuple[Tensor, Tensor]:
    """Number the classes that occur in a batch.

    Args:
        labels: int64 of any shape, in [0, C).
        num_classes: C.
        synchronise: whether to wait for the device for their exact number; None: on the CPU only.

    Returns:
        classes: S int64, ascending; exactly those that occur, or, where `synchronise` is false, zeros after them in the
            slots to spare.
        slots: int64 of the shape of `labels`, `classes[slots] == labels`.
    """
    occurs = labels.new_zeros(num_classes).scatter_(0, labels.flatten(), 1)
    slots = (occurs.cumsum(0) - 1)[labels]
    size = int(occurs.sum()) if _may_wait(labels, synchronise) else min(labels.numel(), num_classes)
    return labels.new_zeros(size).scatter_(0, slots.flatten(), labels.flatten()), slots


@torch.no_grad()
def update_(
    mean: Tensor,
    covariance: Tensor,
    count: Tensor,
    features: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    synchronise: bool | None = None,
) -> None:
    """Pool a batch into the running estimates, in place (arXiv 1909.12220; divisor = count).

    With batch count m, batch mean mu', batch covariance S', and a = m/(m+n):
    S <- (1-a) S + a S' + a(1-a)(mu-mu')(mu-mu')^T, mu <- (1-a) mu + a mu', n <- n+m.
    Classes that are absent do not change.

    A row mixed from K classes counts for each of them with its share, so that mean and covariance are share-weighted
    ones over all rows so far. A row with a feature that is not finite (or whose square is not) counts for nothing.

    Args:
        mean: C x A, changed.
        covariance: C x A x A, or C x A for variances alone, changed.
        count: C, changed.
        features: M x A.
        labels: M x K int64.
        weights: M x K, the shares.
        synchronise: see `present_classes`; without it, second moments are batched products that know no group's size.
    """
    classes, slots = present_classes(labels, len(mean), synchronise=synchronise)
    finite = features.square().sum(1, keepdim=True).isfinite()
    # Zeroed, not only weighted by 0: 0 * inf is not a number.
    rows = torch.where(finite, features, 0)[:, None].expand(-1, labels.shape[1], -1).flatten(0, 1)
    shares = torch.where(finite, weights, 0).flatten()
    slots = slots.flatten()

    added = mean.new_zeros(len(classes)).index_add_(0, slots, shares)
    tiny = torch.finfo(mean.dtype).tiny
    sums = mean.new_zeros(len(classes), mean.shape[1]).index_add_(0, slots, shares[:, None] * rows)
    batch_mean = sums / added.clamp_min(tiny)[:, None]
    total = (count[classes] + added).clamp_min(tiny)
    alpha = added / total
    shift = batch_mean - mean[classes]

    # The second moments' change is a sum of outer products f f^T: one f of each row, one of each slot's shift.
    centred = (rows - batch_mean[slots]) * (shares / total[slots]).sqrt()[:, None]
    factors = torch.cat([centred, shift * (alpha * (1 - alpha)).sqrt()[:, None]])
    owners = torch.cat([slots, torch.arange(len(classes), device=slots.device)])
    if covariance.ndim == 2:
        change = covariance[classes] * -alpha[:, None]
        covariance.index_add_(0, classes, change.index_add_(0, owners, factors.square()))
    elif _may_wait(labels, synchronise):
        _pool_by_class(covariance, classes, alpha, factors, owners)
    else:
        _pool_in_blocks(covariance, classes, alpha, factors, owners)
    mean.index_add_(0, classes, alpha[:, None] * shift)
    count.index_add_(0, classes, added)


def _pool_by_class(covariance: Tensor, classes: Tensor, alpha: Tensor, factors: Tensor, owners: Tensor) -> None:
    """Sort the factors by class, and pass over each class's covariance once, where it lies."""
    sizes = owners.bincount(minlength=len(classes)).tolist()
    groups = factors[owners.argsort()].split(sizes)
    for number, old_share, group in zip(classes.tolist(), (1 - alpha).tolist(), groups, strict=True):
        covariance[number].addmm_(group.t(), group, beta=old_share)


def _pool_in_blocks(covariance: Tensor, classes: Tensor, alpha: Tensor, factors: Tensor, owners: Tensor) -> None:
    """Multiply all factors for each slot, others' zeroed: more arithmetic, but no size that the host must ask for."""
    width = covariance.shape[-1]
    for block in _blocks(len(classes), width * max(width, len(factors)) * factors.element_size()):
        own = owners == torch.arange(block.start, block.stop, device=owners.device)[:, None]
        group = own[:, :, None] * factors
        old = covariance[classes[block]] * -alpha[block, None, None]
        # The change of a slot to spare is 0, which is why it may point at any class.
        covariance.index_add_(0, classes[block], torch.baddbmm(old, group.mT, group))


def class_variances(weight: Tensor, covariance: Tensor, classes: Tensor) -> Tensor:
    """The variance of each logit's distance to the true class's logit: (w_c - w_y)^T S_y (w_c - w_y).

    Differentiable in `weight`; the covariance is a constant.

    Args:
        weight: C x A, the classifier's.
        covariance: C x A x A, or C x A for variances alone.
        classes: S int64, the true classes y.

    Returns:
        S x C.
    """
    if covariance.ndim == 3:
        return _FullVariances.apply(weight, covariance, classes)
    variances = covariance[classes]
    # Expanded into matrix products. Moving all weights alike changes nothing, and keeps the terms that cancel small.
    centred = weight - weight.detach().mean(0)
    own = centred[classes]
    squares = variances @ centred.square().t() + (variances * own.square()).sum(1, keepdim=True)
    return squares - 2 * (variances * own) @ centred.t()


class _FullVariances(torch.autograd.Function):
    """The quadratic form, with a backward pass that reuses its products (w_c - w_y)^T S_y."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, covariance: Tensor, classes: Tensor) -> Tensor:
        num_slots, (num_classes, width) = len(classes), weight.shape
        keep = num_slots * num_classes * width * weight.element_size() <= KEEP_BYTES
        kept = weight.new_empty(num_slots if keep else 0, num_classes, width)
        variances = weight.new_empty(num_slots, num_classes)
        for block in _blocks_of_products(weight, len(classes)):
            differences = _differences(weight, classes[block])
            products = torch.bmm(differences, covariance[classes[block]], out=kept[block] if keep else None)
            torch.sum(differences.mul_(products), 2, out=variances[block])
        # Saved through autograd: a covariance changed before the backward pass is an error, not a wrong gradient.
        ctx.save_for_backward(classes, *([kept] if keep else [weight, covariance]))
        return variances

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        classes, *saved = ctx.saved_tensors
        # A loop may call `backward` under autocast.
        with torch.autocast(grad.device.type, enabled=False):
            if len(saved) == 1:
                return _weight_gradient(grad, saved[0], classes), None, None
            weight, covariance = saved
            gradient = torch.zeros_like(weight)
            for block in _blocks_of_products(weight, len(classes)):
                products = torch.bmm(_differences(weight, classes[block]), covariance[classes[block]])
                gradient += _weight_gradient(grad[block], products, classes[block])
            return gradient, None, None


def _differences(weight: Tensor, classes: Tensor) -> Tensor:
    """w_c - w_y for the true classes y: C x A -> S x C x A."""
    return weight - weight[classes][:, None]


def _weight_gradient(grad: Tensor, products: Tensor, classes: Tensor) -> Tensor:
    """With q_yc = (w_c - w_y)^T S_y: d/dw_c = 2 sum_y g_yc q_yc, and d/dw_y = -2 sum_c g_yc q_yc."""
    gradient = torch.einsum("sc,sca->ca", grad, products)
    return 2 * gradient.index_add_(0, classes, torch.einsum("sc,sca->sa", grad, products), alpha=-1)


def _blocks_of_products(weight: Tensor, num_slots: int) -> Iterator[slice]:
    width = weight.shape[1]
    return _blocks(num_slots, width * max(weight.shape) * weight.element_size())


def _blocks(num_slots: int, slot_bytes: int) -> Iterator[slice]:
    """Slots in blocks whose largest tensor, of `slot_bytes` a slot, is within BLOCK_BYTES (one slot at least)."""
    size = max(1, BLOCK_BYTES // slot_bytes)
    for start in range(0, num_slots, size):
        yield slice(start, min(start + size, num_slots))


def conditional_logits(logits: Tensor, weight: Tensor, covariance: Tensor, labels: Tensor, strength: float) -> Tensor:
    """ISDA's logits: those whose cross-entropy bounds the expected one over features drawn from N(a, strength * S_y).

    z + strength/2 * (w_c - w_y)^T S_y (w_c - w_y) for each label y of a row.

    Args:
        logits: M x C, or M x K x C where they depend on the label already.
        weight: C x A, the classifier's.
        covariance: C x A x A, or C x A for variances alone; a constant for the gradient.
        labels: M x K int64.
        strength: the lambda of the step.

    Returns:
        M x K x C, differentiable in `logits` and `weight`.
    """
    classes, slots = present_classes(labels, len(weight))
    variances = class_variances(weight, covariance, classes)
    return torch.add(logits if logits.ndim == 3 else logits[:, None], variances[slots], alpha=strength / 2)


def _may_wait(labels: Tensor, synchronise: bool | None) -> bool:
    return labels.device.type == "cpu" if synchronise is None else synchronise
