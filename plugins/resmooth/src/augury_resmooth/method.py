"""ReSmooth as a method: options, the frozen network and its mixture, and the hooks that make and use them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from torch import Tensor, nn

import augury
from augury_resmooth.figures import losses_figure, smoothing_figure
from augury_resmooth.functional import Mixture, balance, fit_mixture, log_losses, posterior, smoothing

BINS = 20
"""Bins of the posterior's histogram; even, so that P(ID) < 0.5 fills the lower half."""


class ReSmooth(augury.Method):
    """Smooth an augmented image's label by how little a network trained on base images knows it (arXiv 2205.12606).

    State: the `frozen` network; the mixture's `weights`, `means` and `variances` (2 each, ID first, float64, NaN until
    fitted); `histogram`, the augmented rows of the epoch so far by their P(ID), over all processes.
    """

    class Options(augury.Options):
        """The options of ReSmooth."""

        model_config = ConfigDict(arbitrary_types_allowed=True)

        prob: float = Field(
            0.2,
            ge=0,
            le=1,
            description="share of base images in a batch and in the loss. Paper: with RandAugment 0.2 on CIFAR-100, 0 "
            "on CIFAR-10 and SVHN; with jigsaw or rotation 0.6",
        )
        smooth_org: float = Field(
            0.0, ge=0, le=1, description="label smoothing of base images. Paper: 0 in the runs it reports"
        )
        smooth_aug: float = Field(
            0.4,
            ge=0,
            le=1,
            description="label smoothing of an augmented image that is surely out of distribution. Paper, with "
            "RandAugment: 0.4 on CIFAR-10, 0.6 on CIFAR-100, 0.3 on SVHN",
        )
        frozen: nn.Module | None = Field(
            None,
            exclude=True,
            description="in Python: a network trained on base images, images -> logits, which is copied; the stage "
            "trains one when unset",
        )
        mixture: Mixture | None = Field(
            None,
            exclude=True,
            description="in Python: the mixture fitted to the log-losses of `frozen`: (weights, means, variances), two "
            "numbers each, ID first; the stage fits one when unset",
        )

        @field_validator("mixture")
        @classmethod
        def _usable(cls, mixture: Mixture | None, info: ValidationInfo) -> Mixture | None:
            if mixture is None:
                return None
            if "frozen" in info.data and info.data["frozen"] is None:
                raise ValueError("given together with `frozen`, the network whose losses it was fitted to")
            if fault := mixture.fault():
                raise ValueError(fault)
            return mixture

    unmixed = True

    weights: Tensor
    means: Tensor
    variances: Tensor
    histogram: Tensor

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        # Built now, whether or not a stage will run, so that a checkpoint finds it in its place.
        self.frozen = self.freeze(self._untrained() if options.frozen is None else options.frozen)
        self._read: Mixture | None = None
        unfitted = Mixture(*[(float("nan"), float("nan"))] * 3)
        for name, pair in (options.mixture or unfitted)._asdict().items():
            self.register_buffer(name, torch.tensor(pair, dtype=torch.float64))
        self.register_buffer("histogram", torch.zeros(BINS, dtype=torch.int64))

    @classmethod
    def pipelines(cls, options: Any) -> Mapping[str, float]:
        """A share `prob` of base rows in every batch."""
        return {"base": options.prob, "augmented": 1 - options.prob}

    def _untrained(self) -> nn.Module:
        if self.spec.build_network is None:
            raise augury.UsageError(
                "resmooth: needs a network trained on base images, and this loop cannot train one. "
                'Pass ("resmooth", {"frozen": model}).'
            )
        return self.spec.build_network()

    @augury.hookimpl
    def pre_train_stage(self, run: augury.Run) -> None:
        """Train the frozen network and fit the mixture to its losses, as far as they are not given."""
        if self.options.frozen is None:
            self.frozen.copy_from(run.train_network("base"))
            # Normalisation layers gather statistics of their own in each process: the first one's are taken.
            for buffer in self.frozen.buffers():
                buffer.copy_(run.ranks.gather_rows(buffer[None])[0])
        if self.options.mixture is None:
            self._fit(run)

    def _fit(self, run: augury.Run) -> None:
        base, augmented = (run.ranks.gather_rows(self._pass(run, name)) for name in ("base", "augmented"))
        losses = torch.cat([base, augmented])
        if strange := int((~losses.isfinite()).sum()):
            raise augury.AuguryError(
                f"resmooth: the frozen network's loss must be finite and is not on {strange} of {len(losses)} images. "
                "If its training diverged, lower optim.lr; or pass a trained network as `frozen`."
            )
        # All processes fit the same losses from the same start.
        mixture = fit_mixture(losses, run.random.getrandbits(32))
        for name, pair in mixture._asdict().items():
            buffer = getattr(self, name)
            buffer.copy_(buffer.new_tensor(pair))
        self._read = None
        run.log_figure("losses", losses_figure(base, augmented, mixture))

    def _pass(self, run: augury.Run, pipeline: str) -> Tensor:
        """The log-losses of one pass over the training images."""
        return torch.cat([self._log_losses(b.images, b.labels, b.weights) for b in run.loader(pipeline)])

    @torch.no_grad()
    def _log_losses(self, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The frozen network's log-losses, measured outside autocast so that stage and training measure alike.

        Args:
            images: M x ch x H x W float.
            labels: M x K int64.
            weights: M x K float, summing to 1 in each row.

        Returns:
            M float64.
        """
        with torch.autocast(images.device.type, enabled=False):
            logits = self.frozen(images)
        if logits.ndim != 2 or logits.shape[1] != self.spec.num_classes:
            raise augury.UsageError(
                f"resmooth: `frozen` must give logits of {self.spec.num_classes} classes for each image, got the shape "
                f"{tuple(logits.shape)}. Pass a network trained on these classes."
            )
        return log_losses(logits, labels, weights)

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        """Smooth the labels of rows, and weigh base and augmented rows as `prob` says."""
        base = batch.made_by("base")
        id_probability = self._posterior(batch, base, self._mixture())
        counts = run.ranks.sum(_counts(id_probability, base))
        self.histogram += counts[:BINS]
        epsilon = smoothing(id_probability, base, self.options.smooth_org, self.options.smooth_aug)
        # Labels that were smoothed before keep that: smoothing by a and then by b is smoothing by a + (1 - a) b.
        batch.smoothing = batch.smoothing + (1 - batch.smoothing) * epsilon.to(batch.smoothing)[:, None]
        rows = len(batch) * run.ranks.size
        batch.row_weights = batch.row_weights * balance(base, self.options.prob, counts[BINS], rows)
        run.log("smoothing", epsilon.mean())

    def _mixture(self) -> Mixture:
        """The six numbers in the buffers, read from the device once."""
        if self._read is None:
            pairs = torch.stack([self.weights, self.means, self.variances]).tolist()
            self._read = Mixture(*((first, second) for first, second in pairs))
        if self._read.fault():
            raise augury.UsageError(
                "resmooth: its mixture is not fitted. Call methods.pre_train_stage(host) before training, or pass both "
                "`frozen` and `mixture`."
            )
        return self._read

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._read = None

    def _posterior(self, batch: augury.Batch, base: Tensor, mixture: Mixture) -> Tensor:
        """P(ID) of the batch's augmented rows, M float64."""
        # Choosing rows makes the host wait for an accelerator, so there base rows pass through the network as well.
        on_cpu = batch.device.type == "cpu"
        rows = (~base).nonzero().squeeze(1) if on_cpu else torch.arange(len(base), device=batch.device)
        found = torch.ones(len(base), dtype=torch.float64, device=batch.device)
        if len(rows):
            losses = self._log_losses(batch.images[rows], batch.labels[rows], batch.weights[rows])
            # An image on which the frozen network overflows is none that it knows.
            found[rows] = posterior(losses, mixture).masked_fill(~losses.isfinite(), 0.0)
        return found

    @augury.hookimpl
    def post_epoch(self, run: augury.Run, metrics: dict[str, Any]) -> dict[str, float] | None:
        """Return the share of the epoch's augmented rows with P(ID) < 0.5; after the first epoch, draw a histogram."""
        counts = self.histogram.clone()
        self.histogram.zero_()
        if not counts.any():
            return None
        # Network, mixture and transforms stay as they are, so one epoch's picture is every epoch's.
        if metrics.get("epoch") == 1:
            run.log_figure("smoothing", smoothing_figure(counts, self.options.smooth_aug))
        return {"ood_share": float(counts[: BINS // 2].sum() / counts.sum())}


def _counts(id_probability: Tensor, base: Tensor) -> Tensor:
    """Augmented rows by their P(ID) in `BINS` bins, and in a last one the base rows: BINS + 1 int64."""
    bins = (id_probability * BINS).long().clamp_(max=BINS - 1).masked_fill(base, BINS)
    return torch.zeros(BINS + 1, dtype=torch.int64, device=base.device).scatter_add_(0, bins, torch.ones_like(bins))
