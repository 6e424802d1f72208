"""The loader that keeps all images on the training device and makes whole batches there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from augury.batch import Batch
from augury.distributed import Ranks
from augury_train.data.loader import IGNORED, Loader, Order, share_of_split
from augury_train.data.pipeline import Pipeline
from augury_train.data.splits import Split
from augury_train.data.transforms import Uniforms
from augury_train.data.view import DataSet, Progress


class MemoryFeed:
    """All splits decoded; the training split on the device. Every process holds all images and takes its slice of each
    batch."""

    def __init__(self, data: DataSet, device: torch.device, progress: Progress | None = None) -> None:
        """Decode, telling `progress` how many more images are done."""
        self._data, self._device = data, device
        for split in (data.splits.val, data.splits.test):
            if split is not None:
                data.pixels(split, progress)
        self._images = data.pixels(data.splits.train, progress).to(device)
        self._labels = data.splits.train.labels.to(device)

    def training(self, order: Order, pipelines: Mapping[str, Pipeline]) -> Loader:
        """Batches of the training split."""
        return MemoryLoader(self._images, self._labels, order, pipelines)

    def originals(self, rows: Tensor) -> Tensor:
        """The training images of those numbers without any transform."""
        return self._images.index_select(0, rows)

    def held_out(
        self, split: Split, batch_size: int = 512, ranks: Ranks | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split once, in order, or a share of them."""
        numbers, counts = share_of_split(len(split), ranks)
        pixels, labels = self._data.pixels(split), split.labels[numbers].where(counts, IGNORED)
        for rows, theirs in zip(numbers.split(batch_size), labels.split(batch_size), strict=True):
            yield pixels[rows].to(self._device, non_blocking=True), theirs.to(self._device, non_blocking=True)


class MemoryLoader:
    """A `Loader` over images on the device."""

    def __init__(self, images: Tensor, labels: Tensor, order: Order, pipelines: Mapping[str, Pipeline]) -> None:
        """Load from images N x ch x H x W uint8 and labels N int64, both on the device."""
        self._images, self._labels, self._order = images, labels, order
        self._pipelines = dict(pipelines)
        self._columns = max(p.draws for p in pipelines.values())

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return self._order.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on."""
        views = range(self._order.views)
        uniforms = torch.stack([self._order.uniforms(self._columns, number, view) for view in views])
        for indices, pipeline in self._order.batches(number, start):
            yield self._batch(indices, uniforms.index_select(1, indices).flatten(0, 1), pipeline)

    def one_pass(self, pipeline: str, images: Tensor | None = None) -> Iterator[Batch]:
        """Every image once, in order, or some, made by one pipeline."""
        uniforms = self._order.uniforms(self._columns, "pass", pipeline)
        number = list(self._pipelines).index(pipeline)
        for indices in self._order.one_pass(images):
            yield self._batch(indices, uniforms[indices], torch.full_like(indices, number), views=1)

    def close(self) -> None:
        """There is nothing to let go of."""

    def _batch(self, indices: Tensor, drawn: Tensor, pipeline: Tensor, views: int | None = None) -> Batch:
        """Args: indices N, drawn M x D and pipeline M on the host."""
        views = self._order.views if views is None else views
        device = self._images.device
        uniforms = Uniforms(drawn, drawn.to(device, non_blocking=True))
        rows = indices.to(device, non_blocking=True).repeat(views)
        used = pipeline.unique().tolist()
        made = list(self._pipelines.values())
        if len(used) == 1:
            images = made[used[0]](self._images.index_select(0, rows), uniforms)
        else:
            parts, places = [], []
            for number in used:
                place = (pipeline == number).nonzero().flatten()
                there = place.to(device, non_blocking=True)
                parts.append(made[number](self._images.index_select(0, rows[there]), uniforms.rows(place)))
                places.append(there)
            images = torch.empty(len(rows), *parts[0].shape[1:], device=device)
            for place, part in zip(places, parts, strict=True):
                images[place] = part
        return Batch.of(
            images,
            self._labels[rows],
            views=views,
            pipeline=pipeline.to(device, non_blocking=True),
            indices=rows,
            pipelines=tuple(self._pipelines),
        )
