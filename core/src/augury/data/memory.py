"""The loader that keeps all images on the training device and makes whole batches there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from augury.batch import Batch
from augury.data.datasets import ImageSet
from augury.data.transforms import Pipeline
from augury.distributed import Ranks
from augury.errors import UsageError
from augury.randomness import generator


class MemoryLoader:
    """Training batches in counted randomness: what a row is depends on (seed, epoch, view, image), not on what was
    loaded before.

    Every process holds all images and takes its slice of each batch.
    """

    def __init__(
        self,
        images: ImageSet,
        pipelines: Mapping[str, Pipeline],
        *,
        shares: Mapping[str, float],
        views: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        """Put the images on the device.

        Args:
            images: the training split.
            pipelines: by name, in the order that `Batch.pipeline` counts.
            shares: share of the rows that each pipeline makes.
            views: versions of each image in a batch.
            batch_size: images of a step, over all processes.
            seed: the run's seed.
            device: where batches are made.
            ranks: the processes that share a batch.

        Raises:
            UsageError: a batch that the processes cannot share evenly.
        """
        assert batch_size <= len(images), "the plan refuses larger ones"
        if batch_size % ranks.size:
            raise UsageError(f"optim.batch_size={batch_size} must be a multiple of the {ranks.size} processes.")
        self._images, self._labels = images.images.to(device), images.labels.to(device)
        self._pipelines, self._shares = dict(pipelines), dict(shares)
        self._views, self._batch_size, self._seed = views, batch_size, seed
        self._device, self._ranks = device, ranks
        self._columns = max(1, *(p.draws for p in pipelines.values()))

    @property
    def steps(self) -> int:
        """Batches in an epoch; images that fill no batch wait for another epoch's order."""
        return len(self._labels) // self._batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, from batch `start` on."""
        order = torch.randperm(len(self._labels), generator=generator(self._seed, "order", number)).to(self._device)
        uniforms = torch.stack([self._uniforms(number, view) for view in range(self._views)])
        here = self._batch_size // self._ranks.size
        for step in range(start, self.steps):
            first = step * self._batch_size + self._ranks.rank * here
            indices = order[first : first + here]
            made_by = self._assign(here * self._views, number, step)
            yield self._batch(indices, uniforms[:, indices].flatten(0, 1), made_by)

    def one_pass(self, pipeline: str) -> Iterator[Batch]:
        """Every image once, in the data set's order, one view, made by one pipeline."""
        uniforms = self._uniforms("pass", pipeline)
        per_rank = len(self._labels) // self._ranks.size
        number = list(self._pipelines).index(pipeline)
        mine = torch.arange(per_rank, device=self._device) + self._ranks.rank * per_rank
        for indices in mine.split(self._batch_size):
            made = self._pipelines[pipeline](self._images[indices], uniforms[indices])
            yield Batch.of(
                made,
                self._labels[indices],
                pipeline=torch.full_like(indices, number),
                indices=indices,
                pipelines=tuple(self._pipelines),
            )

    def _uniforms(self, *keys: int | str) -> Tensor:
        """Uniforms for every image of the data set: made on the host, so that all devices draw the same."""
        return torch.rand(len(self._labels), self._columns, generator=generator(self._seed, "transforms", *keys)).to(
            self._device
        )

    def _assign(self, rows: int, epoch: int, step: int) -> dict[str, Tensor]:
        """Which rows each pipeline makes: round(share * rows) of them, the last one what is left over."""
        names = [name for name, share in self._shares.items() if share > 0]
        if len(names) == 1:
            return {names[0]: torch.arange(rows, device=self._device)}
        order = torch.randperm(rows, generator=generator(self._seed, "pipelines", epoch, step, self._ranks.rank))
        counts = [round(self._shares[name] * rows) for name in names[:-1]]
        parts = order.to(self._device, non_blocking=True).split([*counts, rows - sum(counts)])
        return dict(zip(names, parts, strict=True))

    def _batch(self, indices: Tensor, uniforms: Tensor, made_by: Mapping[str, Tensor]) -> Batch:
        rows = indices.repeat(self._views)
        names = list(self._pipelines)
        if len(made_by) == 1:
            (name,) = made_by
            images = self._pipelines[name](self._images[rows], uniforms)
            pipeline = torch.full_like(rows, names.index(name))
        else:
            images = torch.empty(len(rows), *self._images.shape[1:], device=self._device)
            pipeline = torch.empty_like(rows)
            for name, chosen in made_by.items():
                images[chosen] = self._pipelines[name](self._images[rows[chosen]], uniforms[chosen])
                pipeline[chosen] = names.index(name)
        return Batch.of(
            images,
            self._labels[rows],
            views=self._views,
            pipeline=pipeline,
            indices=rows,
            pipelines=tuple(self._pipelines),
        )
