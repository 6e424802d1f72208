"""What flows through a step: the batch that the hooks change, and what the network made of it.

Letters in shapes: N images, M = views * N rows (view-major: all of view 0, then all of view 1), C classes, K labels a
row is mixed from, A features, ch x H x W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from augury.hidden import HiddenMix

PIPELINES = ("base", "augmented")


@dataclass
class Batch:
    """One training batch on the training device; `augment_batch` changes it in place.

    Attributes:
        images: M x ch x H x W float, normalised.
        labels: M x K int64, the classes a row is mixed from (K = 1 when nothing is mixed).
        shares: M x K float32, the share of each of them; a row's shares sum to 1.
        label_weights: M x K float32, weight of each label in the row's loss, its class's weight say; 1 unless set.
        smoothing: M x K float32 in [0, 1], label smoothing of each of them. Weight and smoothing travel with their
            label when rows are mixed.
        row_weights: M float32, weight of the row in the mean of the losses, for what is of a row and not of a label; 1
            unless a method says otherwise.
        pipeline: M int64, which of `pipelines` made the row; under mixing, that of the row's first image.
        indices: M int64, position of the image in the training split, from 0 to `num_images` - 1.
        views: how many versions of each image the batch holds.
        pipelines: the names that `pipeline` counts.
        hidden: what is to be mixed inside the network in this batch's forward pass (`augury.forward` does it), or None.
    """

    images: Tensor
    labels: Tensor
    shares: Tensor
    label_weights: Tensor
    smoothing: Tensor
    row_weights: Tensor
    pipeline: Tensor
    indices: Tensor
    views: int = 1
    pipelines: tuple[str, ...] = PIPELINES
    hidden: HiddenMix | None = None

    @classmethod
    def of(
        cls,
        images: Tensor,
        labels: Tensor,
        *,
        views: int = 1,
        pipeline: Tensor | None = None,
        indices: Tensor | None = None,
        pipelines: tuple[str, ...] = PIPELINES,
    ) -> Batch:
        """Make an unmixed, unsmoothed batch.

        Args:
            images: M x ch x H x W float, view-major.
            labels: M int64 classes.
            views: number of views in `images`.
            pipeline: M int64 indices into `pipelines`; the last of them (`augmented`) everywhere when None.
            indices: M int64 positions in the training split; 0 to N-1 in each view when None.
        """
        rows, device = len(labels), images.device
        if indices is None:
            indices = torch.arange(rows // views, device=device).repeat(views)
        if pipeline is None:
            pipeline = torch.full((rows,), len(pipelines) - 1, device=device)
        ones = torch.ones(rows, 1, device=device)
        return cls(
            images=images,
            labels=labels.long()[:, None],
            shares=ones,
            label_weights=torch.ones_like(ones),
            smoothing=torch.zeros_like(ones),
            row_weights=torch.ones(rows, device=device),
            pipeline=pipeline,
            indices=indices,
            views=views,
            pipelines=pipelines,
        )

    def __len__(self) -> int:
        """Rows, M."""
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.images.device

    @property
    def mixed(self) -> bool:
        """Whether a row may come from several images (K > 1)."""
        return self.labels.shape[1] > 1

    def view_slices(self) -> list[slice]:
        """The rows of each view, in order."""
        n = len(self) // self.views
        return [slice(v * n, (v + 1) * n) for v in range(self.views)]

    def view(self, number: int) -> Batch:
        """View `number` as a batch of N rows that shares this one's memory."""
        rows = self.view_slices()[number]
        tensors = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self) if f.name not in _PLAIN}
        return dataclasses.replace(self, **tensors, views=1)

    def made_by(self, pipeline: str) -> Tensor:
        """M bool: which rows the pipeline of that name made."""
        return self.pipeline == self.pipelines.index(pipeline)

    def permutation(self, generator: torch.Generator) -> Tensor:
        """M int64: a random row of the same view for each row, without repetition."""
        n = len(self) // self.views
        return torch.cat(
            [torch.randperm(n, generator=generator, device=self.device) + v * n for v in range(self.views)]
        )

    def mix(self, images: Tensor, sources: Tensor, shares: Tensor) -> None:
        """Replace the rows by mixtures, in place: labels, with their weights and smoothing, and row weights follow the
        images.

        Rows that are mixtures already keep all their labels: K becomes K_sources * K. A row's weight in the mean
        becomes the share-weighted mean of its sources' weights; its pipeline and index stay those of its first image.

        Args:
            images: M x ch x H x W, the mixed images.
            sources: M x S int64, the rows each new row is mixed from; a row must stay within its view, its first
                source is itself.
            shares: M x S float32, the share of each source; they sum to 1 over S.

        Raises:
            ValueError: shapes that do not fit, or rows are to be mixed inside the network already, which comes last.
        """
        self._refuse_hidden("mix")
        if sources.ndim != 2 or sources.shape != shares.shape or not len(sources) == len(images) == len(self):
            raise ValueError(
                f"batch.mix takes sources and shares of one shape, M x S with M = {len(self)}, and images of M rows; "
                f"got {tuple(sources.shape)}, {tuple(shares.shape)} and {tuple(images.shape)}."
            )
        self.shares = (shares[:, :, None] * self.shares[sources]).flatten(1)
        for name in ("labels", "label_weights", "smoothing"):
            setattr(self, name, getattr(self, name)[sources].flatten(1))
        self.row_weights = (shares * self.row_weights[sources]).sum(1)
        self.images = images

    def mix_hidden(self, layer: str, mix: Callable[[Tensor], Tensor], sources: Tensor, shares: Tensor) -> None:
        """Replace the rows by mixtures inside the network: labels and row weights follow at once as in `mix`, the
        images stay, and the batch's forward pass mixes what one layer makes of them.

        A method that does so declares `mixes_hidden`.

        Args:
            layer: name of a module of the network, as `network.named_modules()` has it, called once in a pass.
            mix: that module's output, M x ..., -> the same of the mixed rows, differentiable.
            sources, shares: as for `mix`.

        Raises:
            ValueError: rows are to be mixed inside the network already.
        """
        self.mix(self.images, sources, shares)
        self.hidden = HiddenMix(layer, mix, len(self))

    def take(self, images: Tensor) -> None:
        """Keep some of the images, in place: their rows in every view. All processes must keep equally many.

        Where none are kept, the loop goes on without an optimiser step.

        Args:
            images: their numbers in [0, N), int64, in the order to keep.

        Raises:
            ValueError: rows are to be mixed inside the network, and those that are left out would be missed there.
        """
        self._refuse_hidden("take")
        n = len(self) // self.views
        rows = torch.cat([images + view * n for view in range(self.views)])
        for f in dataclasses.fields(self):
            if f.name not in _PLAIN:
                setattr(self, f.name, getattr(self, f.name)[rows])

    def check_rows(self) -> None:
        """Raises: ValueError where the fields do not have equally many rows."""
        rows = {f.name: len(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in _PLAIN}
        if len(set(rows.values())) > 1:
            told = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise ValueError(f"the batch's fields have other numbers of rows: {told}. Leave rows out by batch.take.")

    def _refuse_hidden(self, call: str) -> None:
        if self.hidden is not None:
            raise ValueError(
                f"batch.{call} after batch.mix_hidden: the rows of layer `{self.hidden.layer}` would be others than "
                "were meant. The method that mixes inside the network comes last."
            )

    def soft_targets(self, num_classes: int) -> Tensor:
        """M x C float32 label distributions, without weights and smoothing, for methods that need them dense."""
        targets = torch.zeros(len(self), num_classes, device=self.device)
        return targets.scatter_add_(1, self.labels, self.shares)


_PLAIN = ("views", "pipelines", "hidden")


@dataclass
class ModelOutput:
    """What the network made of a batch.

    Attributes:
        features: M x A, the input of the classifier.
        logits: M x C.
        class_logits: M x K x C, logits conditional on the k-th label of each row, or None; a method sets them.
        row_losses: M losses of the rows that the loss holds, before `row_weights`: the criterion's, until a method
            replaces them; None until the criterion was asked.
    """

    features: Tensor
    logits: Tensor
    class_logits: Tensor | None = None
    row_losses: Tensor | None = None

    def replace_rows(self, loss: Tensor, rows: Tensor, batch: Batch) -> Tensor:
        """Return the loss with M other losses of the rows in the place of those that it holds, which are noted; what
        other methods have added to it stays."""
        assert self.row_losses is not None, "the criterion was asked"
        loss = loss + (batch.row_weights * (rows - self.row_losses)).mean()
        self.row_losses = rows
        return loss

    def float(self) -> ModelOutput:
        """The same in float32 at least, which losses are computed in."""
        given = self.class_logits
        return ModelOutput(_float(self.features), _float(self.logits), None if given is None else _float(given))


def _float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
