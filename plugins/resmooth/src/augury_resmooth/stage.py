"""What ReSmooth's pre-train stage measures: the log-losses of all images, and the mixture fitted to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import augury
from augury_resmooth.figures import losses_figure
from augury_resmooth.functional import Mixture, fit_mixture, histogram, log_odds

EXTREMES = 8
"""How many of the most ID and of the most OOD images are shown."""


def measure(log_losses: Callable[[augury.Batch], Tensor], run: augury.Run) -> dict[str, Tensor]:
    """Measure every training image as both pipelines make it, and fit the mixture.

    Args:
        log_losses: the frozen network's, M float64.
        run: lends the images.

    Returns:
        `base` and `augmented`, n log-losses each, over all processes; `mixture`, 3 x 2: weights, means, variances.

    Raises:
        AuguryError: losses that are not finite, or that no mixture can be fitted to.
    """
    found = {}
    for pipeline in ("base", "augmented"):
        measured = [(log_losses(batch), batch.indices) for batch in run.loader(pipeline)]
        every, images = (run.ranks.gather_rows(torch.cat(part)) for part in zip(*measured, strict=True))
        found[pipeline] = every if run.ranks.size == 1 else every[_new(images)]
    losses = torch.cat([found["base"], found["augmented"]])
    if strange := int((~losses.isfinite()).sum()):
        raise augury.AuguryError(
            f"resmooth: the frozen network's loss must be finite and is not on {strange} of {len(losses)} images. "
            "If the stage trained it, it diverged: lower optim.lr. Else give another network."
        )
    # All processes fit the same losses from the same start.
    mixture = fit_mixture(losses, run.random.getrandbits(32))
    if fault := mixture.useless(len(losses)):
        low, high = (float(loss.exp()) for loss in losses.aminmax())
        raise augury.AuguryError(
            f"resmooth: {fault}, so nothing tells images in distribution from those out of it: the frozen network's "
            f"loss is {low:.3g} to {high:.3g}. Make data.augmented stronger, take a better network, or smooth "
            "all augmented images alike with loss=smooth."
        )
    return {**found, "mixture": torch.tensor(mixture, dtype=torch.float64)}


def _new(images: Tensor) -> Tensor:
    """Which of the images, in order, are none that was there just before: processes fill up their shares."""
    return torch.cat([images.new_ones(1, dtype=torch.bool), images[1:] != images[:-1]])


def show(kept: Mapping[str, Tensor], run: augury.Run, classes: tuple[str, ...] | None) -> None:
    """Draw the losses with the mixture, and the augmented images that are most in distribution and most out of it."""
    mixture = as_mixture(kept["mixture"])
    bases, augmented = (histogram(kept[pipeline]) for pipeline in ("base", "augmented"))
    run.log_figure("losses", losses_figure(bases, augmented, mixture))
    # The probabilities of many are 1 to the last digit; the odds still differ.
    odds = log_odds(kept["augmented"], mixture).cpu()
    order = odds.argsort(stable=True)
    count = min(EXTREMES, len(order) // 2)
    chosen = torch.cat([order.flip(0)[:count], order[:count].flip(0)])
    images, captions = [], []
    for batch in run.loader("augmented", chosen) if count else ():
        images.append(batch.images)
        captions += batch.labels[:, 0].tolist()
    if images:
        names = [classes[label] if classes else f"class {label}" for label in captions]
        told = [f"{name}\nP(ID) {_percent(p)}" for name, p in zip(names, odds[chosen].sigmoid().tolist(), strict=True)]
        run.log_images("extremes", torch.cat(images), told)


def _percent(probability: float) -> str:
    if not 0.001 <= probability <= 0.999:
        return "< 0.1 %" if probability < 0.5 else "> 99.9 %"
    return f"{100 * probability:.1f} %"


def as_mixture(numbers: Tensor) -> Mixture:
    """3 x 2 numbers as a mixture."""
    weights, means, variances = numbers.tolist()
    return Mixture(tuple(weights), tuple(means), tuple(variances))


def digest(network: nn.Module) -> str:
    """What tells one network from another: its weights and statistics."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
