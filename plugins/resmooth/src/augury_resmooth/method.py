"""ReSmooth as a method: the frozen network and its mixture, and the hooks that make and use them."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import augury
from augury_resmooth.figures import losses_figure, smoothing_figure
from augury_resmooth.functional import (
    LOSS_BINS,
    Mixture,
    balance,
    distillation,
    fair_choice,
    histogram,
    label_weight,
    log_losses,
    official_smoothing,
    posterior,
    smoothing,
)
from augury_resmooth.options import ReSmoothOptions
from augury_resmooth.stage import as_mixture, digest, measure, show

BINS = 50
"""Bins of the histogram of smoothings, over [0, 1]."""

FAIR_LIMIT = 256
"""The most images of a batch that a fair comparison trains on, as in the official program."""


class ReSmooth(augury.Method):
    """Smooth an augmented image's label by how little a network trained on base images knows it (arXiv 2205.12606).

    State: the `frozen` network; the mixture's `weights`, `means` and `variances` (2 each, ID first, float64, NaN until
    fitted); `base_losses`, the base images of the stage by their log-loss; and, of the epoch so far and over all
    processes, `losses` and `smoothings`, the augmented rows by log-loss and by smoothing, `judged`, those in
    distribution and out of it, and `answered`, how many of each the network in training was asked and knew (2 x 2).
    """

    Options = ReSmoothOptions

    contract = "2.0"
    unmixed = True

    frozen: augury.Frozen | None
    weights: Tensor
    means: Tensor
    variances: Tensor
    base_losses: Tensor
    losses: Tensor
    smoothings: Tensor
    judged: Tensor
    answered: Tensor

    def __init__(self, options: ReSmoothOptions, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        # Built now, whether or not a stage will run, so that a checkpoint finds it in its place.
        self.frozen = self.freeze(self._network()) if options.needs_network else None
        self._read: Mixture | None = None
        self._seen: Tensor | None = None
        unfitted = Mixture(*[(float("nan"), float("nan"))] * 3)
        for name, pair in (options.mixture or unfitted)._asdict().items():
            self.register_buffer(name, torch.tensor(pair, dtype=torch.float64))
        shapes = {"base_losses": LOSS_BINS[2] - 1, "losses": LOSS_BINS[2] - 1, "smoothings": BINS, "judged": 2}
        for name, size in shapes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        self.register_buffer("answered", torch.zeros(2, 2, dtype=torch.int64))

    @classmethod
    def pipelines(cls, options: ReSmoothOptions) -> Mapping[str, float]:
        """A share `prob` of base rows in every batch; none in a fair comparison."""
        return {"base": options.base_share, "augmented": 1 - options.base_share}

    @classmethod
    def declares(cls, options: ReSmoothOptions) -> tuple[str, ...]:
        """Distillation cools the logits that the criterion sees, and shows the images to the frozen network."""
        return ("sets_class_logits", "reads_images") if options.loss == "distill" else ()

    @classmethod
    def check(cls, options: ReSmoothOptions, spec: augury.Spec) -> None:
        """Refuse a `pretrained` that is no such network, and more classes to compare than there are."""
        if options.pretrained is not None:
            _pretrained(options.pretrained, spec)
        if options.top_k is not None and options.top_k > spec.num_classes:
            raise augury.UsageError(
                f"resmooth: option `top_k` must be at most the {spec.num_classes} classes, got {options.top_k}. "
                "Leave it out for all."
            )

    def _network(self) -> nn.Module:
        if self.options.frozen is not None:
            return self.options.frozen
        if self.spec.build_network is None:
            raise augury.UsageError(
                "resmooth: needs a network trained on base images, and this loop cannot train one. "
                'Pass ("resmooth", {"frozen": model}).'
            )
        return self.spec.build_network()

    @augury.hookimpl
    def pre_train_stage(self, run: augury.Run) -> None:
        """Train the frozen network and fit the mixture to its losses, as far as they are needed and not given."""
        options = self.options
        if self.frozen is None:
            return
        if options.pretrained is not None:
            self.frozen.copy_from(_pretrained(options.pretrained, self.spec))
        elif options.frozen is None:
            self.frozen.copy_from(run.train_network("base"))
        # Normalisation layers gather statistics of their own in each process: the first one's are taken.
        for buffer in self.frozen.buffers():
            buffer.copy_(run.ranks.gather_rows(buffer[None])[0])
        if options.judges and options.mixture is None:
            self._fit(run)

    def _fit(self, run: augury.Run) -> None:
        def make() -> Mapping[str, Tensor]:
            return measure(lambda batch: self._log_losses(batch.images, batch.labels, batch.shares), run)

        # What a network given in Python has measured is nobody else's.
        given = self.options.frozen is not None
        assert self.frozen is not None
        kept = make() if given else run.keep("mixture", make, {"network": digest(self.frozen)})
        for name, pair in zip(Mixture._fields, kept["mixture"], strict=True):
            getattr(self, name).copy_(pair)
        self.base_losses.copy_(histogram(kept["base"]))
        self._read = None
        show(kept, run, self.spec.classes)

    @torch.no_grad()
    def _judge(self, images: Tensor) -> Tensor:
        """The frozen network's logits, M x C, outside autocast so that stage and training measure alike."""
        assert self.frozen is not None
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.frozen(images)
        if logits.ndim != 2 or logits.shape[1] != self.spec.num_classes:
            raise augury.UsageError(
                f"resmooth: `frozen` must give logits of {self.spec.num_classes} classes for each image, got the shape "
                f"{tuple(logits.shape)}. Pass a network trained on these classes."
            )
        return logits

    def _log_losses(self, images: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The frozen network's log-losses of rows, M float64."""
        return log_losses(self._judge(images), labels, weights)

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        """Smooth the labels of rows, and weigh base and augmented rows as `prob` says."""
        options, base = self.options, batch.made_by("base")
        self._seen = None
        q = (
            self._posterior(batch, base, run)
            if options.judges
            else torch.zeros(len(batch), dtype=torch.float64, device=batch.device)
        )
        epsilon, row_weights = self._smoothing(q, base, batch, run)
        # Labels that were smoothed before keep that: smoothing by a and then by b is smoothing by a + (1 - a) b.
        batch.smoothing = batch.smoothing + (1 - batch.smoothing) * epsilon.to(batch.smoothing)[:, None]
        batch.row_weights = batch.row_weights * row_weights.to(batch.row_weights)
        run.log("smoothing", epsilon.mean())
        if options.fair_comparison is not None:
            self._take_fairly(batch, q, base, run)
            return
        base_rows = run.ranks.sum(base.sum())
        batch.row_weights = batch.row_weights * balance(base, options.prob, base_rows, len(batch) * run.ranks.size)

    def _smoothing(self, q: Tensor, base: Tensor, batch: augury.Batch, run: augury.Run) -> tuple[Tensor, Tensor]:
        """Smoothing and row weights, M float64 each."""
        options = self.options
        if options.loss == "distill":
            return torch.where(base, options.smooth_org, 0.0).double(), torch.ones_like(q)
        if options.loss == "smooth":
            q = torch.zeros_like(q)
        permutation = batch.permutation(run.generator) if options.weighting == "random" else None
        q, smoothed = label_weight(q, base, options.weighting, run.generator, permutation)
        if options.variant == "official":
            epsilon, weights = official_smoothing(q, smoothed, options.smooth_org, options.smooth_aug)
        else:
            epsilon, weights = smoothing(q, smoothed, options.smooth_org, options.smooth_aug), torch.ones_like(q)
        bins = (epsilon * BINS).long().clamp_(0, BINS - 1)
        counts = torch.zeros_like(self.smoothings).scatter_add_(0, bins, smoothed.long())
        self.smoothings += run.ranks.sum(counts)
        return epsilon, weights

    def _posterior(self, batch: augury.Batch, base: Tensor, run: augury.Run) -> Tensor:
        """P(ID) of the batch's rows, M float64; 1 of base rows."""
        mixture = self._mixture()
        # Choosing rows makes the host wait for an accelerator, so there base rows pass through the network as well.
        on_cpu = batch.device.type == "cpu"
        rows = (~base).nonzero().squeeze(1) if on_cpu else torch.arange(len(base), device=batch.device)
        found = torch.ones(len(base), dtype=torch.float64, device=batch.device)
        seen = torch.zeros_like(self.losses)
        if len(rows):
            losses = self._log_losses(batch.images[rows], batch.labels[rows], batch.shares[rows])
            # An image on which the frozen network overflows is none that it knows.
            found[rows] = posterior(losses, mixture).masked_fill(~losses.isfinite(), 0.0)
            seen = histogram(losses, (~base[rows]).long())
        found = torch.where(base, 1.0, found)
        inside = ((found >= 0.5) & ~base).sum()
        judged = torch.stack([inside, (~base).sum() - inside])
        sums = run.ranks.sum(torch.cat([judged, seen]))
        self.judged += sums[:2]
        self.losses += sums[2:]
        # 0 in distribution, 1 out of it, 2 base.
        self._seen = torch.where(base, 2, (found < 0.5).long())
        return found

    def _take_fairly(self, batch: augury.Batch, q: Tensor, base: Tensor, run: augury.Run) -> None:
        """Leave in the batch the images of a fair comparison: none where the batch lacks one part in any process."""
        views = (batch.views, -1)
        q, candidates = q.view(views).mean(0), ~base.view(views).any(0)
        inside, outside = (((part & candidates).sum()) for part in (q >= 0.5, q < 0.5))
        # The only place where ReSmooth makes the host wait: how many rows there are is the host's business.
        counts = run.ranks.gather_rows(torch.stack([inside, outside])[None])
        count = min(int(counts.min()), FAIR_LIMIT // run.ranks.size)
        # Normalisation layers cannot train on a single image.
        count = count if count > 1 else 0
        chosen = fair_choice(q, candidates, str(self.options.fair_comparison), count, run.generator)
        batch.take(chosen)
        if self._seen is not None:
            self._seen = self._seen.view(views)[:, chosen].flatten()
        run.log("skipped", float(count == 0))

    def _mixture(self) -> Mixture:
        """The six numbers in the buffers, read from the device once."""
        if self._read is None:
            self._read = as_mixture(torch.stack([self.weights, self.means, self.variances]))
        if self._read.fault():
            raise augury.UsageError(
                "resmooth: its mixture is not fitted. Call methods.pre_train_stage(host) before training, or pass both "
                "`frozen` and `mixture`."
            )
        return self._read

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._read = None

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Count right answers on the ID and the OOD part; with loss=distill, train augmented rows on
        CE(z/T, y) + lambda_ T^2 KL(z/T || frozen/T)."""
        if not run.again:
            self._count(batch, output.logits, run)
        if self.options.loss != "distill":
            return (yield)
        options, augmented = self.options, ~batch.made_by("base")
        # The same image for both, as other methods may have changed it.
        teacher = self._judge(batch.images)
        given = output.logits[:, None] if output.class_logits is None else output.class_logits
        cooled = torch.where(augmented[:, None, None], given / options.temperature, given)
        output.class_logits = cooled.expand(-1, batch.labels.shape[1], -1)
        loss = yield
        kl = distillation(output.logits, teacher, options.temperature, options.top_k)
        label_weights = (batch.shares * batch.label_weights).sum(1)
        distance = (batch.row_weights * label_weights * augmented * kl).mean()
        run.log("distillation", distance)
        return loss + options.lambda_ * options.temperature**2 * distance

    def _count(self, batch: augury.Batch, logits: Tensor, run: augury.Run) -> None:
        """Add to `answered`; a row that another method mixed has no one answer."""
        if self._seen is None or batch.mixed or len(self._seen) != len(batch):
            return
        right = logits.detach().argmax(1) == batch.labels[:, 0]
        counts = torch.zeros(3, 2, dtype=torch.int64, device=right.device)
        counts.index_add_(0, self._seen, torch.stack([torch.ones_like(right), right], 1).long())
        self.answered += run.ranks.sum(counts[:2])

    @augury.hookimpl
    def post_epoch(self, run: augury.Run, metrics: dict[str, Any]) -> dict[str, float] | None:
        """Return the share of the epoch's augmented rows with P(ID) < 0.5, and the accuracy on both parts; after the
        first epoch, draw histograms of log-losses and of smoothing."""
        judged, answered, losses, smoothings = (
            t.clone() for t in (self.judged, self.answered, self.losses, self.smoothings)
        )
        for counts in (self.judged, self.answered, self.losses, self.smoothings):
            counts.zero_()
        # Network, mixture and transforms stay as they are, so one epoch's picture is every epoch's.
        if metrics.get("epoch") == 1:
            if losses.any():
                run.log_figure("epoch_losses", losses_figure(self.base_losses, losses, self._mixture()))
            if smoothings.any() and self.options.loss == "sample_smooth":
                run.log_figure("smoothing", smoothing_figure(smoothings))
        found = {}
        if judged.any():
            found["ood_share"] = float(judged[1] / judged.sum())
        for name, (rows, right) in zip(("id_top1", "ood_top1"), answered.tolist(), strict=True):
            if rows:
                found[name] = 100 * right / rows
        return found or None


def _pretrained(place: str, spec: augury.Spec) -> nn.Module:
    """The network of that run or file, which must be of the run's model and classes."""
    if spec.read_weights is None:
        raise augury.UsageError(
            'resmooth: option `pretrained` needs augury\'s own loop. Pass ("resmooth", {"frozen": model}) here.'
        )
    try:
        return spec.read_weights(place)
    except augury.UsageError as error:
        raise augury.UsageError(f"resmooth: option `pretrained`: {error}") from None
