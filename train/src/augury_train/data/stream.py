"""The loader that reads images in worker processes, a few batches ahead of the training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from augury.batch import Batch
from augury.distributed import Ranks
from augury.errors import AuguryError
from augury.randomness import derive
from augury_train.data.geometry import centre_square
from augury_train.data.loader import IGNORED, Loader, Order, share_of_split
from augury_train.data.pipeline import Chain, Pipeline
from augury_train.data.splits import Split
from augury_train.data.transforms import Uniforms
from augury_train.data.view import DataSet, ImageFormat, decode, pixels_of
from augury_train.data.workers import TOO_MANY, Readers, begin, shared, usual_workers


class StreamFeed:
    """Reads from the source whenever an image is wanted; nothing is kept."""

    def __init__(self, data: DataSet, device: torch.device, workers: int | None) -> None:
        """Read in `workers` processes, in this one where they are 0, in `usual_workers()` where they are None."""
        self._data, self._device = data, device
        self._workers = usual_workers() if workers is None else workers

    def training(self, order: Order, pipelines: Mapping[str, Pipeline]) -> Loader:
        """Batches of the training split."""
        return StreamLoader(self._data.splits.train, self._data.format, order, pipelines, self._device, self._workers)

    def originals(self, rows: Tensor) -> Tensor:
        """The training images of those numbers without any transform."""
        few = self._data.splits.train.take(rows.cpu())
        return _there(decode(few, self._data.format), self._device)

    def held_out(
        self, split: Split, batch_size: int = 512, ranks: Ranks | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of a split once, in order, or a share of them."""
        numbers, counts = share_of_split(len(split), ranks)
        # Fewer at a time than in memory, since a batch of photographs is on its way for each worker.
        at_once = min(batch_size, 128)
        keys = [[_Key(n) for n in batch.tolist()] for batch in numbers.split(at_once)]
        readers = _readers(_Images(split, self._data.format_of(split)), keys, self._workers, self._device)
        labels = split.labels[numbers].where(counts, IGNORED)
        for images, theirs in zip(_checked(readers), labels.split(at_once), strict=True):
            yield _there(images, self._device), _there(theirs, self._device)


@dataclass(frozen=True)
class _Key:
    """What a worker is to make: an image of the split, once for each (draw key, pipeline number).

    No draw key: the kept square as it is.
    """

    number: int
    versions: tuple[tuple[tuple[int | str, ...], int], ...] = ()


class _Images(Dataset[Any]):
    """The images of a split as uint8 tensors V x ch x H x W, by `_Key`."""

    def __init__(self, split: Split, form: ImageFormat, singles: Sequence[Chain] = (), seed: int = 0) -> None:
        self._source, self._rows = split.source, split.rows
        self._form, self._singles, self._seed = form, list(singles), seed

    def __getitem__(self, key: _Key) -> Tensor | AuguryError:
        # An exception that leaves a worker arrives with a traceback for its message; a returned one does not.
        try:
            # Where there are no workers this is the process that trains, and dropout draws from the same generator.
            with torch.random.fork_rng(devices=[], enabled=get_worker_info() is None):
                return self._make(key)
        except AuguryError as error:
            return error

    def _make(self, key: _Key) -> Tensor:
        image = self._source.read(int(self._rows[key.number]))
        square = None
        if not key.versions:
            return torch.from_numpy(pixels_of(self._square(image)).copy())[None]
        made = []
        for draw, pipeline in key.versions:
            single = self._singles[pipeline]
            if single.whole:
                wanted = image
            else:
                square = wanted = self._square(image) if square is None else square
            # The host's generator alone: `torch.manual_seed` would reseed those of all devices, too.
            torch.default_generator.manual_seed(derive(self._seed, "transforms", *draw, key.number))
            made.append(single(wanted))
        return torch.stack(made)

    def _square(self, image: Any) -> Any:
        return centre_square(image, self._form.kept, self._form.interpolation)


def _collate(items: list[Tensor | AuguryError]) -> tuple[Tensor, AuguryError | None]:
    """V x N x ch x H x W, or the first error."""
    for item in items:
        if isinstance(item, AuguryError):
            return torch.empty(0), item
    try:
        return shared(torch.stack(items, dim=1)), None  # type: ignore[arg-type]
    except AuguryError as error:
        return torch.empty(0), error


def _readers(images: _Images, batches: Any, workers: int, device: torch.device, persistent: bool = False) -> Readers:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", TOO_MANY, UserWarning)
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=persistent and workers > 0,
            worker_init_fn=begin,
            # It draws a seed for its workers, which nothing uses; torch's own generator must not notice.
            generator=torch.Generator(),
        )
    return Readers(loader)


def _checked(readers: Readers) -> Iterator[Tensor]:
    """Its batches as V * N x ch x H x W."""
    batches = readers.batches()
    error = None
    for made, error in batches:
        if error is not None:
            break
        yield made.flatten(0, 1)
    if error is not None:
        # The error's traceback holds this frame: see `Readers`.
        del batches, readers
        try:
            raise error
        finally:
            del error


def _there(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


class StreamLoader:
    """A `Loader` whose images are read and transformed, up to the normalisation, in worker processes; the rest is done
    on the device."""

    def __init__(
        self,
        split: Split,
        form: ImageFormat,
        order: Order,
        pipelines: Mapping[str, Pipeline],
        device: torch.device,
        workers: int,
    ) -> None:
        """Load the images of `split` in `workers` processes."""
        self._order, self._pipelines, self._device = order, dict(pipelines), device
        self._labels, self._workers = split.labels, workers
        self._columns = max(p.last_draws for p in pipelines.values())
        self._images = _Images(split, form, [p.single() for p in pipelines.values()], order.seed)
        self._plan = _Plan(order)
        self._training: Readers | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return self._order.steps

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from step `start` on."""
        views = range(self._order.views)
        uniforms = torch.stack([self._order.uniforms(self._columns, number, view) for view in views])
        self._plan.epoch, self._plan.start = number, start
        if self._training is None:
            # One for all epochs, so that workers are started once; it asks the plan anew for each.
            self._training = _readers(self._images, self._plan, self._workers, self._device, persistent=True)
        planned = self._order.batches(number, start)
        for images, (indices, pipeline) in zip(_checked(self._training), planned, strict=True):
            yield self._batch(images, indices, uniforms.index_select(1, indices).flatten(0, 1), pipeline)

    def one_pass(self, pipeline: str, images: Tensor | None = None) -> Iterator[Batch]:
        """Every image once, in order, or some, made by one pipeline."""
        number = list(self._pipelines).index(pipeline)
        uniforms = self._order.uniforms(self._columns, "pass", pipeline)
        planned = list(self._order.one_pass(images))
        draw = ("pass", pipeline)
        keys = [[_Key(n, ((draw, number),)) for n in batch.tolist()] for batch in planned]
        readers = _readers(self._images, keys, self._workers, self._device)
        for loaded, indices in zip(_checked(readers), planned, strict=True):
            yield self._batch(loaded, indices, uniforms[indices], torch.full_like(indices, number))

    def close(self) -> None:
        """End the worker processes. Were that left to the garbage collector, each would take it 5 s to give up on."""
        if self._training is not None:
            self._training.close()
        self._training = None

    def _batch(self, images: Tensor, indices: Tensor, drawn: Tensor, pipeline: Tensor) -> Batch:
        """Args: images M x ch x H x W uint8, indices N, drawn M x D, pipeline M, on the host."""
        device, views = self._device, len(images) // len(indices)
        images, there = _there(images, device), _there(drawn, device)
        uniforms, used = Uniforms(drawn, there), pipeline.unique().tolist()
        made = list(self._pipelines.values())
        if len(used) == 1:
            out = made[used[0]].finish(images, uniforms)
        else:
            out = torch.empty(images.shape, device=device)
            for number in used:
                place = (pipeline == number).nonzero().flatten()
                rows = _there(place, device)
                out[rows] = made[number].finish(images[rows], uniforms.rows(place))
        rows = indices.repeat(views)
        return Batch.of(
            out,
            _there(self._labels[rows], device),
            views=views,
            pipeline=_there(pipeline, device),
            indices=_there(rows, device),
            pipelines=tuple(self._pipelines),
        )


class _Plan:
    """The batches of the epoch at hand, from a step on, as a batch sampler; made as they are asked for."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.epoch, self.start = 0, 0

    def __iter__(self) -> Iterator[list[_Key]]:
        for indices, pipeline in self._order.batches(self.epoch, self.start):
            yield _keys(indices, pipeline, self.epoch)

    def __len__(self) -> int:
        return (self._order.steps - self.start) * self._order.parts


def _keys(indices: Tensor, pipeline: Tensor, epoch: int) -> list[_Key]:
    """A batch's keys: each image with the pipeline of each of its views."""
    by_view = pipeline.view(-1, len(indices)).T.tolist()
    return [
        _Key(number, tuple(((epoch, view), made_by) for view, made_by in enumerate(made)))
        for number, made in zip(indices.tolist(), by_view, strict=True)
    ]
