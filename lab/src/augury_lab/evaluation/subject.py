"""What is evaluated: a run's network and the images that it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from augury.errors import UsageError
from augury.outside import given_path
from augury_train.backbones.trained import trained_network
from augury_train.config import RunConfig, load_config
from augury_train.data.datasets import open_dataset
from augury_train.data.geometry import centre_start
from augury_train.data.source import Collection
from augury_train.data.splits import Split, Splits, split
from augury_train.data.stream import StreamFeed
from augury_train.data.subset import DECIDING, own_subset
from augury_train.data.view import DataSet, ImageFormat, decode
from augury_train.files import refuse_ways_out
from augury_train.inference.classifier import Weights, choose_device, run_weights
from augury_train.training.facts import Begun, begun, check_same_data

SplitName = Literal["test", "val", "train"]
BATCH = 256
"""Images in a forward pass of an evaluation, unless told otherwise."""
ALIKE = ("dataset", *DECIDING, "skip_bad_images")
"""Settings that the same images were had with."""


@dataclass
class Subject:
    """A trained network with the images of one split of its run's data.

    Attributes:
        name: the run's, among those evaluated together.
        folder: the run's.
        network: in evaluation mode, on `device`, in float32; its parameters ask for no gradient.
        classes: names by label.
        channels, side: of the images that it takes.
        mean, std: of each channel on the scale of [0, 1], as it was trained.
        device: where all of it happens.
        split: the images.
        split_name: `test`, `val` or `train`.
        config: the run's settings.
        data: all splits, shown as evaluation shows them.
        loader: `memory` or `stream`, as the run used.
        notes: what the user may not expect, a line each.
        batch_size: most images in a forward pass.
    """

    name: str
    folder: Path
    network: nn.Module
    classes: list[str]
    channels: int
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    split: Split
    split_name: str
    config: RunConfig
    data: DataSet
    loader: str
    notes: list[str] = dataclasses.field(default_factory=list)
    batch_size: int = BATCH

    def __post_init__(self) -> None:
        # Once: were they sent to a GPU at every step of an attack, the host would wait each time.
        self._mean, self._std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.mean, self.std))

    def __len__(self) -> int:
        """Images in the split."""
        return len(self.split)

    @property
    def attacked_at_once(self) -> int:
        """Most images in a pass that keeps the activations: no more than the training took on this network."""
        optim = self.config.optim
        return min(self.batch_size, optim.batch_size // optim.accumulation)

    def batches(self, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The split once, in order.

        Args:
            batch_size: most images at once; the subject's own when None.

        Yields:
            images N x channels x side x side float32 in [0, 1], cropped as evaluation crops, and labels N int64, on
            `device`.
        """
        batch_size = batch_size or self.batch_size
        if self.loader == "stream":
            feed = StreamFeed(self.data, self.device, self.config.data.workers)
            for pixels, labels in feed.held_out(self.split, batch_size):
                yield self._shown(pixels), labels
            return
        kept, all_labels = self.data.pixels(self.split), self.split.labels
        for rows in torch.arange(len(self.split)).split(batch_size):
            yield self._shown(kept[rows]), all_labels[rows].to(self.device)

    def images(self, rows: Tensor) -> Tensor:
        """Some images of the split, by their place in it: n int64 -> n x channels x side x side float32 in [0, 1]."""
        return self._shown(decode(self.split.take(rows.cpu()), self.data.format))

    def logits(self, images: Tensor) -> Tensor:
        """What the network says; differentiable.

        Args:
            images: N x channels x H x W float32 in [0, 1].

        Returns:
            N x C float32.
        """
        return cast(Tensor, self.network(self.normalise(images))).float()

    def normalise(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network was trained on them."""
        return (images - self._mean) / self._std

    def on(self, name: SplitName) -> Subject | None:
        """The same network with another split of its run's data; None where there is no such split."""
        other = getattr(self.data.splits, name)
        return None if other is None else dataclasses.replace(self, split=other, split_name=name)

    def show(self, images: Split) -> Tensor:
        """Other images as this network gets its own: N x channels x side x side float32 in [0, 1]."""
        return self._shown(decode(images, self.data.format))

    def _shown(self, pixels: Tensor) -> Tensor:
        """The centre of N x channels x kept x kept uint8, as the training's own evaluation takes it."""
        top, left = (centre_start(size, self.side) for size in pixels.shape[-2:])
        centre = pixels[:, :, top : top + self.side, left : left + self.side]
        return centre.to(self.device, non_blocking=True).float() / 255


def load_subject(
    folder: Path | str, weights: Weights = "best", split: SplitName = "test", device: str = "auto"
) -> Subject:
    """A run's network, with its images open; none of its methods is needed.

    Args:
        folder: the run's.
        weights: of the best epoch, or of the last.
        split: the images that it is to be shown.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: no such run, weights or split, data that are gone or no longer what they were.
    """
    return load_subjects([folder], weights, split, device)[0]


def load_subjects(
    folders: Sequence[Path | str], weights: Weights = "best", split: SplitName = "test", device: str = "auto"
) -> list[Subject]:
    """Several runs' networks with the same images, which are opened and decoded once.

    Args:
        folders, weights, split, device: as for `load_subject`.

    Raises:
        UsageError: what `load_subject` refuses; runs of other data, classes or splits than the first one's.
    """
    if not folders:
        raise UsageError("no run to evaluate. Give the folder that `augury run` wrote.")
    for what, given, allowed in (("weights", weights, get_args(Weights)), ("split", split, get_args(SplitName))):
        if given not in allowed:
            raise UsageError(f"{what} must be one of {', '.join(allowed)}, got `{given}`.")
    there = choose_device(device)
    opened: dict[Any, DataSet] = {}
    paths = [given_path(folder, "RUN") for folder in folders]
    if double := [path for path, at in zip(paths, map(Path.resolve, paths), strict=True) if _count(at, paths) > 1]:
        raise UsageError(f"{double[0]} is named twice. Name each run once.")
    subjects: list[Subject] = []
    for path, name in zip(paths, short_names(paths), strict=True):
        subject = _load(path, name, weights, split, there, opened)
        if subjects:
            _refuse_other(subjects[0], subject)
        subjects.append(subject)
    return subjects


def _count(at: Path, paths: Sequence[Path]) -> int:
    return sum(path.resolve() == at for path in paths)


def short_names(paths: Sequence[Path]) -> list[str]:
    """What tells folders apart: the last parts of their paths, as few as will do and the same number for all."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(found[-length:]) for found in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _load(
    folder: Path, name: str, weights: Weights, wanted: SplitName, device: torch.device, opened: dict[Any, DataSet]
) -> Subject:
    refuse_ways_out(folder)
    config = own_subset(load_config(folder / "config.json"), folder)
    before = begun(folder)
    file, finished = run_weights(folder, weights)
    data = _open(folder, config, before, opened)
    chosen: Split | None = getattr(data.splits, wanted)
    if chosen is None:
        has = " and ".join(key for key in get_args(SplitName) if getattr(data.splits, key) is not None)
        raise UsageError(f"{folder}: its data have no {wanted} split. Set it with --split; there are {has}.")
    form = data.format
    normalisation = {"mean": form.mean, "std": form.std}
    # Built for the images of its training: what is fixed in size allows no other for testing.
    network = trained_network(config.model, before.format.size, before.classes, str(file), normalisation)
    network.to(device).eval().requires_grad_(False)
    return Subject(
        name=name,
        folder=folder,
        network=network,
        classes=before.classes,
        channels=form.channels,
        side=form.side,
        mean=form.mean,
        std=form.std,
        device=device,
        split=chosen,
        split_name=wanted,
        config=config,
        data=data,
        loader=before.loader,
        notes=[] if finished else [f"{folder} is not finished: what is evaluated are its best weights so far."],
    )


def _open(folder: Path, config: RunConfig, before: Begun, opened: dict[Any, DataSet]) -> DataSet:
    """The run's images, in the format that evaluation shows all of them in."""
    key = config.data.model_dump_json(), before.format
    if key not in opened:
        form = before.format.test or before.format
        try:
            collection = open_dataset(config.data)
            splits = split(collection, config.data)
        except UsageError as error:
            raise UsageError(f"{folder}: its images cannot be had: {error}") from None
        opened[key] = _data_set(splits, collection, form)
    check_same_data(folder, before, opened[key])
    return opened[key]


def _data_set(splits: Splits, collection: Collection, form: ImageFormat) -> DataSet:
    return DataSet(splits, collection.classes, form, [], tuple(collection.skipped), tuple(collection.notes))


def _refuse_other(first: Subject, subject: Subject) -> None:
    """What is set side by side must have been asked the same questions."""
    told = f"{subject.folder} cannot be set beside {first.folder}:"
    if subject.classes != first.classes:
        raise UsageError(f"{told} its classes are {_short(subject.classes)}, not {_short(first.classes)}.")
    same = len(subject.split) == len(first.split) and torch.equal(subject.split.labels, first.split.labels)
    ours, theirs = (_naming(s) for s in (first, subject))
    if same and ours["dataset"] == theirs["dataset"] and torch.equal(subject.split.rows, first.split.rows):
        return
    differ = [f"data.{key} is {theirs[key]}, not {ours[key]}" for key in ALIKE if theirs[key] != ours[key]]
    why = "; ".join(differ) or "its images are others"
    raise UsageError(f"{told} the {first.split_name} splits are not the same ({why}). Evaluate them one by one.")


def _naming(subject: Subject) -> Mapping[str, Any]:
    return {key: getattr(subject.config.data, key) for key in ALIKE}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."
