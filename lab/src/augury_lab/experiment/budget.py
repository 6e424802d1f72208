"""Equal compute: how many epochs of a composition take the base's forward passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from augury.errors import UsageError
from augury.registry import Register
from augury_lab.experiment.suite import Suite
from augury_train.config import RunConfig
from augury_train.data.view import DataSet
from augury_train.training.plan import make_plan
from augury_train.training.rehearsal import passes_on_noise


@dataclass(frozen=True)
class _Need:
    """Forward passes of a run: so many an epoch, and so many once."""

    epoch: float
    once: float


def equal_compute(suite: Suite, data: DataSet, register: Register | None) -> dict[str, int]:
    """The epochs of each composition in which it makes no more forward passes than the base does in its own, pre-train
    stages included.

    Counted in two short rehearsals on noise, so that whatever a method does is counted and none has to tell.

    Raises:
        UsageError: not one epoch fits.
    """
    images, seed = len(data.splits.train), suite.config.seed
    needs = {}
    for name in suite.compositions:
        config = suite.run_config(name, seed)
        needs[name] = _need(config, register, data, images)
    base = needs[suite.base]
    budget = base.once + base.epoch * suite.run_config(suite.base, seed).optim.epochs
    epochs = {name: int((budget - need.once) / need.epoch + 1e-9) for name, need in needs.items()}
    for name, count in epochs.items():
        if count < 1:
            need = needs[name].once + needs[name].epoch
            enough = math.ceil((need - base.once) / base.epoch)
            raise UsageError(
                f"composition {name}: one epoch takes {need:,.0f} forward passes, and the base's {budget:,.0f} are the "
                f"budget of --equal compute. Set optim.epochs to {enough} or more, or leave out --equal compute."
            )
    return epochs


def _need(config: RunConfig, register: Register | None, data: DataSet, images: int) -> _Need:
    batch = config.optim.batch_size
    one, two = (passes_on_noise(make_plan(config, register, data), epochs) for epochs in (1, 2))
    # The noise is two batches, in training and in a stage that looks at each image.
    return _Need(epoch=(two - one) / 2 * (images // batch), once=(2 * one - two) / (2 * batch) * images)
