"""Images inside tar files, read where they lie: plain tars of class folders, and WebDataset's shards."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from augury.errors import UsageError, brief
from augury.outside import RECORDED, WRITTEN, given_path, parse_json, read_text, with_home
from augury_train.data.content import ContentSource, collect
from augury_train.data.decoding import SUFFIXES
from augury_train.data.index import Integers, Names
from augury_train.data.patterns import expand
from augury_train.data.source import Collection, Labels
from augury_train.data.split_names import SPLIT_NAMES, check_below, parts_of
from augury_train.data.tar_members import Member, members

INFO_FILES = ("_info.json", "info.json")
"""Where timm's WebDatasets list their splits."""
LARGEST_IMAGE = 2**31
"""Bytes of an image, which is read into memory whole."""


@dataclass
class TarSource(ContentSource):
    """Images in tar files, which are opened for each image, so that threads and processes do not share a position.

    Attributes:
        tars: paths of the tar files.
        members: names of the images in them.
        places: N x 3 int64, number of the tar file, first byte and number of bytes.
    """

    tars: list[str]
    members: Names
    places: Integers

    def content(self, index: int) -> io.BytesIO:
        """The bytes of image `index`."""
        number, start, size = self.places[index].tolist()
        with open(self.tars[number], "rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))

    def name(self, index: int) -> str:
        """Path of the tar file and name in it."""
        return f"{self.tars[self.places[index, 0]]}:{self.members[index]}"

    def take(self, rows: Integers) -> TarSource:
        """The images of those numbers."""
        members = Names(self.members[row] for row in rows.tolist())
        return TarSource(self.labels[rows], self.tars, members, self.places[rows])


@dataclass(frozen=True)
class _Entry:
    """An image in a tar: where it is and what it belongs to."""

    split: str
    kind: str
    name: str
    place: tuple[int, int, int]


def open_tar(path: Path, *, skip_bad: bool) -> Collection:
    """Open a tar of images, or a folder of tars.

    As for timm, an image's class is the folder it lies in, and a tar inside a folder or another tar counts as a folder
    of its name. A folder further up called train, val or test, in any spelling that folders of images have, is a split;
    timm's own reader would train on the images of all of them.

    Args:
        path: a `.tar`, or a folder of such.
        skip_bad: leave out images that cannot be decoded; each is decoded once to know.

    Raises:
        UsageError: no images, fewer than 2 classes, a class or a folder named like a split, a class that training does
            not have, a tar that cannot be read, or has other members than files and folders.
    """
    tars = [path] if path.is_file() else sorted(path.glob("*.tar"))
    entries = []
    ways: set[tuple[str, ...]] = set()
    for number, tar in enumerate(tars):
        above = () if path.is_file() else (tar.stem,)
        for member in members(tar, nested=True):
            if os.path.splitext(member.name)[1].lower() not in SUFFIXES:
                continue
            folders = (*above, *member.folders)
            if not folders:
                raise UsageError(
                    f"{tar}: {member.name} lies in no folder, so its class is unknown. "
                    f"Put each class in a folder; for shards of WebDataset give wds/{path}."
                )
            ways.add(folders[:-1])
            splits = {SPLIT_NAMES[folder.lower()] for folder in folders[:-1] if folder.lower() in SPLIT_NAMES}
            if len(splits) > 1:
                raise UsageError(f"{tar}: {member.name} lies below folders of two splits. Leave one above its class.")
            place = (number, *_place(member, tar))
            entries.append(_Entry(next(iter(splits), ""), folders[-1], member.name, place))
    # Folders above classes that are splits by our own names are told apart already.
    others = [[folder for folder in way if folder.lower() not in SPLIT_NAMES] for way in sorted(ways)]
    check_below(str(path), others, "Name the folders above the classes train, val and test: train/cat/0001.jpg.")
    return _collection(path, tars, entries, str, skip_bad)


def open_shards(text: str, *, skip_bad: bool) -> Collection:
    """Open shards of a WebDataset on disk. They are indexed, one pass over the tars' headers, so that images can be
    read in any order and nothing is kept in memory; the package `webdataset` is not needed.

    Each sample is an image and its class in `.cls`, a whole number; or in the `.json` under the key that the info file
    calls `alt_label`. Splits are those of timm's info file (`_info.json`), else what the shards' names say: `train`,
    `val`, `test`, or another word for one of them (`augury_train.data.split_names`).

    Args:
        text: a folder of shards, or their paths with `*` or braces: `shards/train-{000..012}.tar`.
        skip_bad: leave out images that cannot be decoded; each is decoded once to know.

    Raises:
        UsageError: no shards or too many, a sample without a class, a shard that cannot be read, or has other members
            than files and folders.
    """
    if "://" in text or text.startswith("pipe:"):
        raise UsageError(f"{brief(f'wds/{text}')}: shards are read from disk. Download them first.")
    shards = _shards(text)
    if not shards:
        raise UsageError(
            f"{brief(f'wds/{text}')}: no .tar files there. Give their folder, or a pattern as train-{{000..012}}.tar."
        )
    info = _info(shards[0].parent)
    entries = []
    for number, shard in enumerate(shards):
        split, label_key = _split_of(shard, info)
        for name, label, start, size in _samples(shard, label_key):
            entries.append(_Entry(split, str(label), name, (number, start, size)))
    return _collection(Path(text), shards, entries, int, skip_bad)


def _collection(
    path: Path, tars: list[Path], entries: list[_Entry], order: Callable[[str], Any], skip_bad: bool
) -> Collection:
    def source(chosen: list[_Entry], labels: Labels) -> TarSource:
        places = np.array([entry.place for entry in chosen], dtype=np.int64)
        return TarSource(labels, [str(tar.absolute()) for tar in tars], Names(e.name for e in chosen), places)

    if not entries:
        raise UsageError(f"{path}: no images in it ({', '.join(sorted(SUFFIXES))}).")
    notes: list[str] = []
    if not any(entry.split == "train" for entry in entries):
        found = {entry.split for entry in entries}
        if len(found) > 1:
            told = " and ".join(sorted(found - {""}))
            raise UsageError(
                f"{path}: has no split called train, but {told}. Name the one of the training images train."
            )
        if found != {""}:
            notes.append(f"{path}: has no split but {found.pop()}, and trains on a part of that.")
        groups = {"all": entries}
    else:
        stray = next((entry for entry in entries if not entry.split), None)
        if stray is not None:
            raise UsageError(
                f"{tars[stray.place[0]]}: {stray.name} belongs to no split, while others are in train. "
                "Move it below train, val or test."
            )
        groups = {s: [e for e in entries if e.split == s] for s in ("train", "val", "test")}
    return collect(
        str(path),
        {split: ([entry.kind for entry in chosen], chosen) for split, chosen in groups.items() if chosen},
        source,
        order,
        skip_bad,
        notes=notes,
    )


def _shards(text: str) -> list[Path]:
    place, subject = with_home(text), brief(f"wds/{text}")
    if os.path.isdir(place):
        return sorted(given_path(place, subject).glob("*.tar"))
    found: dict[str, None] = {}
    for shard in expand(place, subject):
        if shard in found:
            raise UsageError(f"{subject}: {shard} is named twice. Name each shard once.")
        found[shard] = None
    return [Path(shard) for shard in found]


def _info(folder: Path) -> dict[str, Any]:
    """The splits of the info file by name, empty where there is none."""
    for name in INFO_FILES:
        path = folder / name
        if path.is_file():
            try:
                splits: dict[str, Any] = parse_json(read_text(path, RECORDED))["splits"]
                return {
                    key: {"filenames": set(split["filenames"]), "alt_label": split.get("alt_label", "")}
                    for key, split in splits.items()
                }
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UsageError(f"{path}: not a list of splits as timm writes it ({error!r}). Remove it.") from None
    return {}


def _split_of(shard: Path, info: dict[str, Any]) -> tuple[str, str]:
    """The split a shard belongs to, empty for none, and the key of its label in the json, empty where it is in .cls."""
    for name, split in info.items():
        if shard.name in split["filenames"]:
            return _split_named(name, shard), split["alt_label"]
    return _split_named(shard.stem, shard), ""


def _split_named(name: str, shard: Path) -> str:
    """The split that a name has a word of, empty for none."""
    splits = parts_of(name).splits - {"unlabelled"}
    if len(splits) > 1:
        raise UsageError(f"{shard}: `{name}` names two splits, {' and '.join(sorted(splits))}. Leave one in the name.")
    return next(iter(splits), "")


def _samples(shard: Path, label_key: str) -> Iterator[tuple[str, int, int, int]]:
    """(name, label, first byte, bytes) of the images in a shard."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    for member in members(shard, nested=False):
        _, _, suffix = member.name.rpartition("/")[2].partition(".")
        key = member.name[: len(member.name) - len(suffix)]
        last = suffix.rpartition(".")[2].lower()
        if f".{last}" in SUFFIXES:
            images.setdefault(key, (member.name, *_place(member, shard)))
        elif last == ("json" if label_key else "cls"):
            labels[key] = _label(shard, member, label_key)
    for key, (name, start, size) in images.items():
        if key not in labels:
            wanted = f"{key}json with `{label_key}`" if label_key else f"{key}cls"
            raise UsageError(f"{shard}: {name} has no class: {wanted} is missing in the same shard.")
        # Negative means unlabelled.
        if labels[key] >= 0:
            yield name, labels[key], start, size


def _place(member: Member, tar: Path) -> tuple[int, int]:
    """The first byte and the number of bytes of an image."""
    if member.size > LARGEST_IMAGE:
        raise UsageError(
            f"{tar}: {member.name} has {member.size:,} bytes; an image may have {LARGEST_IMAGE:,}. Pack the tar anew "
            "without it."
        )
    return member.start, member.size


def _label(shard: Path, member: Member, label_key: str) -> int:
    """The class that the `.cls` or `.json` file of a sample says."""
    content = b""
    try:
        if member.size > WRITTEN:
            raise ValueError
        with shard.open("rb") as file:
            file.seek(member.start)
            content = file.read(member.size)
        return int(parse_json(content.decode())[label_key] if label_key else content)
    except (ValueError, KeyError, TypeError, OverflowError):
        what = f"no whole number under `{label_key}`" if label_key else f"{content[:40]!r} is no whole number"
        raise UsageError(f"{shard}: {member.name}: {what}, the class of the sample.") from None
