"""SWA as a method: options, the running mean of the weights, and the hook that puts it into the network."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import augury
from augury_swa.functional import batch_norms, flat, fold_, set_statistics_, unflatten_


class SWA(augury.Method):
    """Replace the weights, after the training's last step, by their mean over the ends of the last epochs
    (arXiv 1803.05407; UAI 2018), and compute BatchNorm's statistics for them.

    State: `average`, the mean so far, a vector of P float32, one for each parameter of the network; `count`, of how
    many weights it is the mean.
    """

    class Options(augury.Options):
        """The options of SWA."""

        start: float = Field(
            0.75,
            ge=0,
            lt=1,
            description="share of the training after which averaging starts: the first weights are those at the end of "
            "epoch round(start * epochs), the first epoch at the earliest. Paper: 0.75 of the usual training's epochs",
        )
        every: int = Field(
            1, ge=1, le=10_000, description="epochs between two weights that are averaged. Paper: 1 at a constant rate"
        )

    contract = "2.0"
    facts = ("total_steps", "steps_per_epoch", "build_network")
    keeps_last = True

    average: Tensor
    count: Tensor

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        assert spec.build_network is not None, "declared in facts"
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in spec.build_network().parameters())
        self.register_buffer("average", torch.zeros(size))
        self.register_buffer("count", torch.tensor(0))

    @augury.hookimpl
    def post_step(self, run: augury.Run) -> None:
        """Average at the ends of epochs, and put the average into the network after the last step."""
        if run.step == 0 and batch_norms(run.network):
            # Where a loop lends no data, it is better told before the training than behind it.
            run.loader("augmented")
        last = run.step + 1 == run.total_steps
        if self._is_averaged(run) or (last and not self.count):
            fold_(self.average, self.count, flat(run.network))
        if last:
            unflatten_(run.network, self.average)
            self._set_statistics(run)

    @augury.hookimpl
    def post_epoch(self) -> dict[str, float]:
        """Tell how many weights were averaged so far."""
        return {"models": float(self.count)}

    def _is_averaged(self, run: augury.Run) -> bool:
        """Whether the step that was just made ends an epoch whose weights are averaged."""
        assert self.spec.steps_per_epoch is not None, "declared in facts"
        epochs, rest = divmod(run.step + 1, self.spec.steps_per_epoch)
        since = epochs - max(1, round(self.options.start * run.epochs))
        return rest == 0 and since >= 0 and since % int(self.options.every) == 0

    def _set_statistics(self, run: augury.Run) -> None:
        """Compute BatchNorm's statistics on the training images, each process on its share."""
        if not (layers := batch_norms(run.network)):
            return
        set_statistics_(run.network, (batch.images for batch in run.loader("augmented")))
        for layer in layers:
            # All shares are equally long, so this is the mean over the batches of all.
            layer.running_mean, layer.running_var = map(run.ranks.mean, (layer.running_mean, layer.running_var))  # type: ignore[arg-type]
