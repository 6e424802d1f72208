"""What the two loaders share: their interface, and the counted order of images, pipelines and draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from augury.batch import Batch
from augury.distributed import Ranks
from augury.errors import UsageError
from augury.randomness import generator
from augury_train.data.pipeline import Pipeline
from augury_train.data.splits import Split


class Loader(Protocol):
    """Training batches in counted randomness: what a row is depends on (seed, epoch, view, image), not on what was
    loaded before, nor on who loads it."""

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number` from step `start` on, `parts` of them to a step."""

    def one_pass(self, pipeline: str, images: Tensor | None = None) -> Iterator[Batch]:
        """Every image once, in the data set's order, one view, made by one pipeline; or those of the numbers `images`
        (n int64 on the host), in every process, as the whole pass makes them."""

    def close(self) -> None:
        """Let go of worker processes; another epoch starts new ones."""


class Feed(Protocol):
    """Makes loaders: the images of a run, wherever they are kept."""

    def training(self, order: Order, pipelines: Mapping[str, Pipeline]) -> Loader:
        """Batches of the training split."""

    def originals(self, rows: Tensor) -> Tensor:
        """The training images of those numbers without any transform: N x ch x H x W uint8, on the device."""

    def held_out(
        self, split: Split, batch_size: int = 512, ranks: Ranks | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split once, in order, as N x ch x H x W uint8 with their labels N int64, on the device.

        With `ranks`, this process's share of them: see `share_of_split`.
        """


IGNORED = -100
"""The label of an image that fills up a share, and counts for nothing: the one that torch's losses ignore."""


def share_of_split(images: int, ranks: Ranks | None) -> tuple[Tensor, Tensor]:
    """Which of so many images are this process's.

    All shares are equally long, so that all processes take as many steps; together they are all images in order, and,
    where those do not divide, the last image again.

    Returns:
        their numbers and whether each counts, n int64 and n bool, on the host.
    """
    if ranks is None or ranks.size == 1:
        return torch.arange(images), torch.ones(images, dtype=torch.bool)
    each = -(-images // ranks.size)
    numbers = torch.arange(each) + ranks.rank * each
    return numbers.clamp(max=images - 1), numbers < images


@dataclass(frozen=True)
class Order:
    """Which images make up which batch, and which pipeline makes which row.

    Attributes:
        images: of the training split.
        batch_size: images of an optimiser step, over all processes.
        parts: batches that a step is made of, for accumulation.
        view_pipelines: the pipeline that makes each view, by name; empty where `shares` decide.
        views: versions of each image in a batch.
        shares: share of the rows that each pipeline makes, by name, in the order that `Batch.pipeline` counts.
        seed: the run's seed.
        ranks: the processes that share a batch.
    """

    images: int
    batch_size: int
    views: int
    shares: Mapping[str, float]
    seed: int
    ranks: Ranks
    parts: int = 1
    view_pipelines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.batch_size <= self.images, "the plan refuses larger ones"
        if self.batch_size % (self.ranks.size * self.parts):
            raise UsageError(
                f"optim.batch_size={self.batch_size} must be a multiple of {self.ranks.size} processes times "
                f"optim.accumulation={self.parts}."
            )

    @property
    def steps(self) -> int:
        """Steps in an epoch; images that fill no batch wait for another epoch's order."""
        return self.images // self.batch_size

    @property
    def here(self) -> int:
        """Images of one batch in this process."""
        return self.batch_size // self.ranks.size // self.parts

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of an epoch, from step `start` on: the images' numbers, N int64, and the number of the
        pipeline of each row, M int64, both on the host."""
        order = torch.randperm(self.images, generator=generator(self.seed, "order", epoch))
        for part in range(start * self.parts, self.steps * self.parts):
            first = part * self.here * self.ranks.size + self.ranks.rank * self.here
            yield order[first : first + self.here], self._pipelines(epoch, part)

    def _pipelines(self, epoch: int, part: int) -> Tensor:
        """Whole views, or exactly round(share * rows) rows for each pipeline, the last one what is left over."""
        if self.view_pipelines:
            names = list(self.shares)
            return torch.tensor([names.index(name) for name in self.view_pipelines]).repeat_interleave(self.here)
        rows = self.here * self.views
        used = [number for number, share in enumerate(self.shares.values()) if share > 0]
        if len(used) == 1:
            return torch.full((rows,), used[0])
        shares = list(self.shares.values())
        counts = [round(shares[number] * rows) for number in used[:-1]]
        counts.append(rows - sum(counts))
        made = torch.repeat_interleave(torch.tensor(used), torch.tensor(counts))
        drawn = generator(self.seed, "pipelines", epoch, part, self.ranks.rank)
        return made[torch.randperm(rows, generator=drawn)]

    def one_pass(self, images: Tensor | None = None) -> Iterator[Tensor]:
        """The numbers of this process's images, in the data set's order, or of those given, in batches."""
        mine = share_of_split(self.images, self.ranks)[0] if images is None else images
        yield from mine.split(self.batch_size)

    def uniforms(self, columns: int, *keys: int | str) -> Tensor:
        """A row of uniforms for every image, on the host, so that all devices draw the same: N x max(columns, 1)."""
        drawn = generator(self.seed, "transforms", *keys)
        return torch.rand(self.images, max(columns, 1), generator=drawn)
