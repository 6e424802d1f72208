"""Data sets by the names of timm's readers: Hugging Face's, TensorFlow's, shards of a WebDataset, tars of images."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from augury.errors import AuguryError, UsageError
from augury_train.data.content import ContentSource, check_labels, collect, numbered
from augury_train.data.decoding import to_rgb
from augury_train.data.index import Integers
from augury_train.data.root import refuse_disk_root
from augury_train.data.source import ArraySource, Collection, Labels, Source
from augury_train.data.split_names import SPLIT_NAMES, parts_of
from augury_train.data.tars import open_shards, open_tar

PREFIXES = ("hfds/", "hfids/", "tfds/", "wds/")
"""What the names of readers begin with."""
PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets"}
"""What each needs installed besides."""
VERSION = re.compile(r"[\d*]+(\.[\d*]+)*")
"""What may stand behind a colon in a name of TensorFlow's; anything else makes what is before it a catalogue."""


@dataclass
class ReaderSource(ContentSource):
    """Images of one of timm's readers that can be read in any order.

    Attributes:
        reader: gives (open file, label) by number, and can be sent to another process.
        rows: N int64, numbers of the images there.
        title: what messages call them, with their number behind.
    """

    reader: Any
    rows: Integers
    title: str

    def content(self, index: int) -> BinaryIO:
        """The encoded bytes of image `index`."""
        file: BinaryIO = self.reader[int(self.rows[index])][0]
        return file

    def name(self, index: int) -> str:
        """The title and the number."""
        return f"{self.title} {self.rows[index]}"

    def take(self, rows: Integers) -> ReaderSource:
        """The images of those numbers."""
        return ReaderSource(self.labels[rows], self.reader, self.rows[rows], self.title)


@dataclass
class DecodedSource:
    """Images of various sizes in memory, one behind the other.

    Attributes:
        pixels: of all images, uint8, each height x width x 3.
        starts: N int64, the first byte of each.
        shapes: N x 2 int64, height and width.
        labels: N int64.
        title: what messages call the images, with their number behind.
    """

    pixels: NDArray[np.uint8]
    starts: Integers
    shapes: Integers
    labels: Labels
    title: str
    channels: int = 3
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Image `index`, mode RGB."""
        height, width = self.shapes[index].tolist()
        start = int(self.starts[index])
        return Image.fromarray(self.pixels[start : start + height * width * 3].reshape(height, width, 3))

    def name(self, index: int) -> str:
        """The title and the number."""
        return f"{self.title} {index}"


def open_reader(name: str, *, skip_bad: bool) -> Collection:
    """Open a data set by a name that timm knows, or a tar of images.

    Args:
        name: `hfds/NAME` (a data set of Hugging Face's hub, or a folder in its forms), `hfids/NAME` (the same as a
            stream) and `tfds/NAME` (TensorFlow's): both can only be read from end to end, and are kept decoded in
            memory; `wds/FOLDER` or `wds/PATTERN` (shards of a WebDataset on disk); the path of a `.tar` of images, or
            of a folder of tars.
        skip_bad: leave out images that cannot be decoded; each is decoded once to know. Streams do without.

    Returns:
        the splits that the data set brings as train, val (validation) and test, else `all`. Splits without labels are
        left out.

    Raises:
        UsageError: a package that is not installed, a data set that cannot be opened.
    """
    prefix, _, rest = name.partition("/")
    prefix = prefix.lower()
    if prefix == "wds":
        return open_shards(rest, skip_bad=skip_bad)
    if prefix not in PACKAGES:
        return _open_tar(Path(name), skip_bad)
    package = PACKAGES[prefix]
    if not rest:
        raise UsageError(f"{name}: the data set's name is missing. Example: {prefix}/cifar10.")
    if prefix != "tfds":
        refuse_disk_root(Path(rest), name)
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{name}: the package `{package}` is needed. Install it: pip install {package}.")
    if prefix == "tfds" and (colon := rest.partition(":"))[1] and not VERSION.fullmatch(colon[2]):
        raise UsageError(
            f"{name}: {colon[0][:80]} would be a catalogue whose data sets bring code, and none of that is run. "
            "Name one of tensorflow_datasets itself."
        )
    try:
        # What these packages print is no part of the program's own output.
        with contextlib.redirect_stdout(sys.stderr):
            return _hfds(name, rest, skip_bad) if prefix == "hfds" else _streamed(name, prefix, rest)
    except AuguryError:
        raise
    except Exception as error:  # Downloads, formats and scripts of other people: nearly anything can come.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UsageError(f"{name}: cannot be opened ({reason}). Check the name and the connection.") from None


def holds_tars(path: Path) -> bool:
    """Whether a folder holds tar files and no folders."""
    if not path.is_dir():
        return False
    seen = [p for p in path.iterdir() if not p.name.startswith(".")]
    return any(p.suffix.lower() == ".tar" for p in seen) and not any(p.is_dir() for p in seen)


def _open_tar(path: Path, skip_bad: bool) -> Collection:
    if path.is_file() and path.suffix.lower() != ".tar":
        raise UsageError(f"{path}: a file, but no .tar of images. Give a folder of images, or a .tar of one.")
    return open_tar(path, skip_bad=skip_bad)


def _hfds(name: str, rest: str, skip_bad: bool) -> Collection:
    from timm.data.readers import create_reader

    datasets = _without_code()
    keys = _keys(datasets, rest)
    found: dict[str, tuple[Sequence[Any], list[tuple[Any, int]]]] = {}
    classes: list[str] = []
    ours, notes = _ours(name, datasets.get_dataset_split_names(rest))
    for split, theirs in ours.items():
        reader = create_reader(name, split=theirs, **keys)
        names = reader.class_to_idx
        classes = sorted(names, key=names.__getitem__)
        labels = list(reader.dataset[reader.label_key][:])
        if _labelled(name, split, labels):
            found[split] = labels, [(reader, row) for row in range(len(labels))]
        else:
            notes.append(_no_labels(name, split))

    def source(items: list[tuple[Any, int]], labels: Labels) -> ReaderSource:
        reader = items[0][0]
        rows = np.array([row for _, row in items], dtype=np.int64)
        return ReaderSource(labels, reader, rows, f"{name} {reader.split} image")

    return collect(name, found, source, _natural, skip_bad, classes, notes)


def _streamed(name: str, prefix: str, rest: str) -> Collection:
    """Read a data set from end to end."""
    from timm.data.readers import create_reader

    options: dict[str, Any]
    if prefix == "hfids":
        datasets = _without_code()
        theirs = datasets.get_dataset_split_names(rest)
        # The number of samples only matters where timm's own loop asks for it.
        options = {**_keys(datasets, rest), "num_samples": 1, "input_img_mode": ""}
    else:
        builder = importlib.import_module("tensorflow_datasets").builder(rest)
        builder.download_and_prepare()
        theirs, options = list(builder.info.splits), {}
    loaded = {}
    classes: list[str] = []
    ours, notes = _ours(name, theirs)
    for split, given in ours.items():
        reader = create_reader(name, split=given, **options)
        # timm would give each process of a run a part; every one of ours picks its own from the whole.
        reader.dist_rank, reader.dist_num_replicas = 0, 1
        classes = sorted(reader.class_to_idx, key=reader.class_to_idx.__getitem__)
        images, kinds = _whole(reader)
        if _labelled(name, split, kinds):
            loaded[split] = images, kinds
        else:
            notes.append(_no_labels(name, split))
    labels, names = numbered(name, {split: kinds for split, (_, kinds) in loaded.items()}, _natural, classes)
    splits: dict[str, Source] = {
        split: _decoded(images, labels[split], f"{name} {split} image") for split, (images, _) in loaded.items()
    }
    return Collection(splits, names, notes=[*notes, *check_labels(name, names, labels)])


def _without_code() -> Any:
    """The package `datasets`, which runs no script that a data set brings; from version 4 on it has no way to."""
    datasets = importlib.import_module("datasets")
    major, minor = map(int, re.findall(r"\d+", getattr(datasets, "__version__", "4.0"))[:2])
    if (major, minor) < (2, 16):
        raise UsageError(
            f"the package `datasets` {datasets.__version__} runs data sets' scripts. Install 2.16 or newer."
        )
    if major < 4:
        datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False
    return datasets


def _keys(datasets: Any, rest: str) -> dict[str, str]:
    """The columns of the image and its class, timm's `image` and `label` where the features do not tell."""
    keys = {}
    features = datasets.load_dataset_builder(rest).info.features or {}
    for argument, kind in (("input_key", datasets.Image), ("target_key", datasets.ClassLabel)):
        columns = [column for column, feature in features.items() if isinstance(feature, kind)]
        if columns:
            keys[argument] = columns[0]
    return keys


def _ours(name: str, theirs: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return their splits by our names, and a line for what may not be expected of that."""
    listed = list(theirs)
    splits: dict[str, str] = {}
    for split in listed:
        ours = SPLIT_NAMES.get(split.lower())
        if ours in splits:
            raise UsageError(f"{name}: both {splits[ours]} and {split} are its {ours} split. Choose another data set.")
        if ours is not None:
            splits[ours] = split
    if "train" in splits:
        unused = [split for split in listed if split not in splits.values()]
        told = f"{name}: not used: {', '.join(unused)}; splits are called train, val (validation) and test."
        return {split: splits[split] for split in ("train", "val", "test") if split in splits}, [told] if unused else []
    if len(listed) == 1:
        (only,) = listed
        other = parts_of(only).splits - {"train"}
        return {"all": only}, [f"{name}: has no split but {only}, and trains on a part of that."] if other else []
    raise UsageError(f"{name}: has no split called train, but {', '.join(listed)}. Choose another data set.")


def _no_labels(name: str, split: str) -> str:
    return f"{name}: the images of its {split} split have no labels, so it is left out."


def _labelled(name: str, split: str, labels: Sequence[Any]) -> bool:
    """Whether the images of a split have classes; published test splits often have -1."""
    unlabelled = sum(label is None or label == -1 for label in labels)
    if not unlabelled:
        return True
    if split in ("train", "all") or unlabelled < len(labels):
        raise UsageError(f"{name}: {unlabelled} of the {len(labels)} {split} images have no class. Remove them first.")
    return False


def _whole(reader: Iterable[tuple[Any, Any]]) -> tuple[list[NDArray[np.uint8]], list[Any]]:
    """Every image, height x width x 3, and its class."""
    images, labels = [], []
    for image, label in reader:
        images.append(np.array(to_rgb(image)))
        labels.append(label if isinstance(label, str) else int(label))
    return images, labels


def _decoded(images: list[NDArray[np.uint8]], labels: Labels, title: str) -> Source:
    if len({image.shape for image in images}) == 1:
        return ArraySource(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), labels, title)
    shapes = np.array([image.shape[:2] for image in images], dtype=np.int64)
    ends = np.cumsum([image.size for image in images], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
    return DecodedSource(np.concatenate([image.ravel() for image in images]), starts, shapes, labels, title)


def _natural(kind: Any) -> tuple[int, Any]:
    """Numbers by value, then texts by alphabet."""
    return (1, kind) if isinstance(kind, str) else (0, kind)
