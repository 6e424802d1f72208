"""The contract: four hooks, and the markers that declare and implement them.

A method implements the hooks it needs as methods of its class, marked with `augury.hookimpl`. A hookimpl may name any
subset of a hook's parameters. Order of calls is the order in which the user names the methods; `tryfirst` and
`trylast` are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from augury.batch import Batch, ModelOutput
    from augury.run import Run

PROJECT = "augury"
CONTRACT_VERSION = "1.0"
"""Of the hooks and of what they are given: major.minor. What worked with a minor version works with later ones of its
major."""
HOOKS = ("pre_train_stage", "augment_batch", "compute_loss", "post_epoch")

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def pre_train_stage(run: Run) -> None:
    """Prepare, once, before a fresh training starts.

    May train an auxiliary network (`run.train_network`), pass over the data (`run.loader`), fit and measure. What it
    makes must be the method's parameters, buffers or frozen modules: those are checkpointed, and the hook is not
    called again on resume. What takes long goes through `run.keep`, so that an interrupted stage does not repeat it.

        @augury.hookimpl
        def pre_train_stage(self, run):
            for batch in run.loader("base"):
                self.count += len(batch)
    """


@hookspec
def augment_batch(batch: Batch, run: Run) -> None:
    """Change `batch` in place: images, labels, weights, smoothing, row weights. Training only, on the training device.

    Called without gradients. Draw from `run.generator` (tensors) and `run.random` (decisions of the host), so that the
    draws depend on the step alone. Mixtures of rows go through `batch.mix`, which lets everything that belongs to a
    row travel with it; `batch.take` leaves images out. Row weights are multiplied, never set: the run's settings and
    other methods may have weighted rows before. The network is left as it was found, as in `compute_loss`.

        @augury.hookimpl
        def augment_batch(self, batch, run):
            noise = torch.randn(batch.images.shape, generator=run.generator, device=run.device)
            batch.images += self.options.scale * noise
    """


@hookspec(firstresult=True)
def compute_loss(batch: Batch, output: ModelOutput, run: Run) -> Tensor:
    """Return the scalar loss. Training only, float32, outside autocast; gradients flow to the network and to the
    method.

    The criterion of core is the last implementation. A method **adds a term** as a wrapper that yields and adds:

        @augury.hookimpl(wrapper=True)
        def compute_loss(self, output):
            loss = yield
            return loss + self.options.weight * output.features.square().mean()

    It **changes what the criterion sees** as a wrapper that sets `output.logits` or `output.class_logits`, which the
    criterion takes instead where they are set, and returns what it yields; behind a method that has set
    `class_logits`, one that changes `logits` must change both. It **replaces the criterion** as a plain
    implementation; two of those in one composition are refused. What it sums over the batch it sums over all
    processes: `run.ranks`.

    Features and logits are part of the graph, so a loss may be differentiated by them; under autocast they are float32
    copies, and the logits do not depend on `output.features` there. The network is left as it was found, weights and
    BatchNorm's statistics: a further pass through it is made in evaluation mode, or through `self.freeze(network)`.
    """


@hookspec
def post_epoch(run: Run, metrics: dict[str, Any]) -> dict[str, float] | None:
    """After each epoch: log what is worth logging; returned numbers join the epoch's row as `<method>/<key>`.

    `metrics` holds the row as it stands (`epoch`, `train_loss`, `val_top1`, ...); it is a copy.

        @augury.hookimpl
        def post_epoch(self, run, metrics):
            return {"count": float(self.count)}
    """
