"""The contract: five hooks, and the markers that declare and implement them.

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
CONTRACT_VERSION = "2.0"
"""Of the hooks and of what they are given: major.minor. What worked with a minor version works with later ones of its
major."""
HOOKS = ("pre_train_stage", "augment_batch", "compute_loss", "post_step", "post_epoch")

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
    """Change `batch` in place: images, labels, shares, smoothing, weights. Training only, on the training device.

    Called without gradients. Draw from `run.generator` (tensors) and `run.random` (decisions of the host), so that the
    draws depend on the step alone. Mixtures of rows go through `batch.mix`, which lets everything that belongs to a
    row travel with it; `batch.take` leaves images out. Weights of rows and of labels are multiplied, never set: the
    run's settings and other methods may have weighted them before. The network is left as it was found, as in
    `compute_loss`.

        @augury.hookimpl
        def augment_batch(self, batch, run):
            noise = torch.randn(batch.images.shape, generator=run.generator, device=run.device)
            batch.images += self.options.scale * noise
    """


@hookspec(firstresult=True)
def compute_loss(batch: Batch, output: ModelOutput, run: Run) -> Tensor:
    """Return the loss. Training only, float32, outside autocast; gradients flow to the network and to the method.

    The criterion of core is the last implementation. A method **adds a term** as a wrapper that yields the scalar loss
    and adds:

        @augury.hookimpl(wrapper=True)
        def compute_loss(self, output):
            loss = yield
            return loss + self.options.weight * output.features.square().mean()

    It **changes what the criterion sees** as a wrapper that sets `output.features`, `output.logits` or
    `output.class_logits`, and returns what it yields. The criterion takes `class_logits` where they are set
    (`sets_class_logits` declares that); behind a method that has set them, one that changes `logits` must change both.

    It **replaces the criterion** as a plain implementation that returns the M losses of the rows, each label weighed by
    its share and its `label_weights`; core takes their mean with `row_weights`. Two of those in one composition are
    refused, and so is one that does not declare `reads_class_logits` beside a method that sets them.

        @augury.hookimpl
        def compute_loss(self, batch, output):
            hinge = (1 - output.logits.gather(1, batch.labels)).relu()
            return (batch.shares * batch.label_weights * hinge).sum(1)

    It **chooses or weighs rows by their loss** behind its `yield`, where `output.row_losses` are the M that the loss
    holds, and puts others in their place by `output.replace_rows`:

            loss = yield
            weights = (output.row_losses.detach() < 1).float()
            return output.replace_rows(loss, weights * output.row_losses, batch)

    What is summed over the batch is summed over all processes: `run.ranks`. `batch.images` are what the network saw,
    unless rows were mixed inside it (`batch.hidden`); a method that looks at them declares `reads_images`. A trained
    network to compare with is `run.read_network(place)`, which computes in the run's precision and returns float32.

    Features and logits are part of the graph, so a loss may be differentiated by them; under autocast they are float32
    copies, and the logits do not depend on `output.features` there. The network is left as it was found, weights and
    BatchNorm's statistics: a further pass through it is made in evaluation mode, or through `self.freeze(network)`.
    A step may be evaluated twice on one batch (sharpness-aware training); then `run.again` is True the second time, the
    draws are the same, and statistics are left as the first time made them.
    """


@hookspec
def post_step(run: Run) -> None:
    """Change the network, without gradients, after the optimiser has: average weights, clip them, look back.

    Called after each step in which the optimiser changed weights, and after the training's last whatever became of it,
    before the step is counted: in the training's first, `run.step` is 0. The network is in training mode and writable
    in place, alike in all processes.

        @augury.hookimpl
        def post_step(self, run):
            for parameter in run.network.parameters():
                parameter.clamp_(-self.options.bound, self.options.bound)
    """


@hookspec
def post_epoch(run: Run, metrics: dict[str, Any]) -> dict[str, float] | None:
    """After each epoch: log what is worth logging; returned numbers join the epoch's row as `<method>/<key>`.

    `metrics` holds the row as it stands (`epoch`, `train_loss`, `val_top1`, ...); it is a copy.

        @augury.hookimpl
        def post_epoch(self, run, metrics):
            return {"count": float(self.count)}
    """
