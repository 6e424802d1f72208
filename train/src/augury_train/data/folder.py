"""Image folders: one subfolder a class, alone or below train/, val/ and test/."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from augury.errors import UsageError, counted
from augury_train.data.decoding import SUFFIXES, UnreadableError, decode_rgb, unreadable
from augury_train.data.index import Files, Integers, Known, Names, inspect
from augury_train.data.source import Collection, Labels, Source
from augury_train.data.split_names import SPLIT_NAMES, check_below, check_classes, parts_of

LISTED = 5
"""Unreadable files that an error names."""
JUNK = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN")
"""Folders that systems put beside a user's own: thumbnails, deleted files, halves of archives."""
TABLES = (".csv", ".tsv", ".xlsx", ".parquet", ".json", ".txt")
"""Endings of files that may hold labels, which are not read."""


@dataclass
class FolderSource:
    """Image files, opened when they are read.

    Attributes:
        root: folder that the paths are below.
        paths: of the images.
        labels: N int64.
        size: (height, width) where all images share one, else None.
        stamp: stands for these files as they are: their paths, sizes in bytes and times of change.
    """

    root: str
    paths: Names
    labels: Labels
    size: tuple[int, int] | None
    stamp: str
    channels: int = field(default=3, init=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Image `index`, upright, mode RGB."""
        path = Path(self.root, self.paths[index])
        try:
            return decode_rgb(path)
        except UnreadableError as error:
            raise unreadable(str(path), error) from None

    def name(self, index: int) -> str:
        """Its path."""
        return os.path.join(self.root, self.paths[index])


def open_folder(root: Path, *, skip_bad: bool) -> Collection:
    """List the images of a folder, and inspect those that are new or have changed since the last start.

    Args:
        root: holds `<class>/*.jpg`, or `train/`, and perhaps `val/` and `test/`, of such; also called `training`,
            `valid`, `validation` and `testing`. Files deeper below a class's folder belong to the class, hidden ones
            do not.
        skip_bad: leave out images that cannot be decoded; each is decoded once to know. Otherwise only headers and
            ends are read, and damage in between is found when the image is wanted.

    Returns:
        the splits found, or `all` for a folder without splits; class names in alphabetical order.

    Raises:
        UsageError: no classes, a class named like a split, an empty class, a class that training does not have, images
            that cannot be read.
    """
    root = Path(root).expanduser().absolute()
    try:
        folders, classes, found, notes = _listed(root)
    except OSError as error:
        place = error.filename or root
        raise UsageError(f"{place}: cannot be listed ({error.strerror}). Check its permissions.") from None
    everything = Files(
        [path for files, _ in found.values() for path in files.paths],
        np.concatenate([files.stamps for files, _ in found.values()]),
    )
    known = inspect(root, everything, decode=skip_bad)
    if known.bad and not skip_bad:
        raise _unreadable(root, everything, known)
    splits: dict[str, Source] = {}
    start = 0
    for split, (files, labels) in found.items():
        sizes = known.sizes[start : start + len(labels)]
        splits[split] = _source(root / folders[split], root, files, labels, sizes, classes)
        start += len(labels)
    skipped = [f"{root / everything.paths[number]}: {reason}" for number, reason in known.bad.items()]
    return Collection(splits, classes, skipped=skipped, notes=[*_unused(root, folders), *notes])


def images_below(folder: Path) -> list[Path]:
    """The files of a folder, at any depth, that are called as images are; hidden ones left out; in the order of their
    names.

    Raises:
        OSError: it cannot be listed.
    """
    return [folder / path for path in sorted(os.path.normpath(path) for path, _, _ in _walk(folder, "."))]


def _listed(root: Path) -> tuple[dict[str, str], list[str], dict[str, tuple[Files, Labels]], list[str]]:
    """Return the folder of each split, the classes, the images of each split with their labels, and notes."""
    folders = _splits(root)
    place = root / folders.get("train", "")
    classes = _subfolders(place)
    notes = _check_names(place, classes, folders)
    if len(classes) < 2:
        raise UsageError(
            f"{place}: found {len(classes)} class folder(s), at least 2 are needed. "
            f"Put the images of each class in a folder of its own{_deeper(place, classes)}."
        )
    found = {split: _files(root, folder, classes) for split, folder in folders.items()}
    for folder, (files, _) in zip(folders.values(), found.values(), strict=True):
        notes += _loose(root / folder)
        _refuse_splits_below(root / folder, len(folder) + 1 if folder else 0, files.paths)
    return folders, classes, found, notes


def _check_names(place: Path, classes: Sequence[str], folders: dict[str, str]) -> list[str]:
    """Refuse class folders named like splits; returns notes on those that are taken for classes."""
    inside = {name: _subfolders(place / name) for name in classes if parts_of(name).splits}

    def told(name: str) -> str:
        below = inside[name]
        if not below:
            return counted(len(_walk(place, name)), "image")
        return f"{counted(len(below), 'folder')}: {', '.join(below[:3])}{' ...' if len(below) > 3 else ''}"

    tables = [name for name in _names(place, files=True) if os.path.splitext(name)[1].lower() in TABLES]
    return check_classes(
        str(place), classes, told, inside=inside, tables=tables if inside else [], above=folders.get("train", "")
    )


def _deeper(place: Path, classes: Sequence[str]) -> str:
    """Name the folder below that may be meant, where a single folder leads to it."""
    if not classes:
        return ""
    below = place / classes[0]
    while len(names := _subfolders(below)) == 1:
        below /= names[0]
    return f"; or did you mean {below}?" if names else ""


def _loose(folder: Path) -> list[str]:
    """A line where images lie beside the class folders."""
    count = sum(os.path.splitext(name)[1].lower() in SUFFIXES for name in _names(folder, files=True))
    return [f"{folder}: {counted(count, 'image')} in no class folder, left out."] if count else []


def _refuse_splits_below(place: Path, start: int, paths: Sequence[str]) -> None:
    """Refuse splits inside class folders; `start` is where the class begins in the paths."""
    ways = {path[start:].rpartition(os.sep)[0] for path in paths}
    below: dict[str, list[list[str]]] = {}
    for way in sorted(ways):
        name, *deeper = way.split(os.sep)
        below.setdefault(name, []).append(deeper)
    for name, folders in below.items():
        check_below(
            str(place / name),
            folders,
            f"Every image below `{name}` would count as the same split. Put splits above classes (train/{name}/, "
            f"test/{name}/), or rename the folder.",
        )


def _splits(root: Path) -> dict[str, str]:
    """The folder of each split by its name; `all` without splits."""
    folders: dict[str, str] = {}
    for name in _subfolders(root):
        split = SPLIT_NAMES.get(name.lower())
        # A folder of images is a class, whatever its name: `train` among `bus` and `tram`.
        if split is None or (split == "train" and not _subfolders(root / name)):
            continue
        if split in folders:
            raise UsageError(f"{root}: both {folders[split]}/ and {name}/ are its {split} split. Keep one of them.")
        folders[split] = name
    if "train" not in folders:
        return {"all": ""}
    return {split: folders[split] for split in ("train", "val", "test") if split in folders}


def _unused(root: Path, folders: dict[str, str]) -> list[str]:
    """A line for each folder beside the splits that is none."""
    if "all" in folders:
        return []
    lines = []
    for name in sorted(set(_subfolders(root)) - set(folders.values())):
        near = difflib.get_close_matches(name.lower(), ("train", "val", "test"), n=1)
        near = sorted(parts_of(name).splits - {"unlabelled"}) or near
        hint = f" Did you mean `{near[0]}`?" if near else ""
        lines.append(f"{root / name}: not used; splits are called train, val and test.{hint}")
    return lines


def _subfolders(root: Path) -> list[str]:
    return _names(root, files=False)


def _names(root: Path, *, files: bool) -> list[str]:
    """The names of the folders in a folder, or of all else; hidden ones left out."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if _is_folder(e) != files and not is_hidden(e.name))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is passed over for its name: no image of the user's is in it."""
    return name.startswith(".") or name in JUNK


def _files(root: Path, folder: str, classes: Sequence[str]) -> tuple[Files, Labels]:
    """The images of one split, by class, with their labels."""
    there = _subfolders(root / folder)
    if not there:
        raise UsageError(
            f"{root / folder}: holds no class folders, so its images have no labels. "
            f"Sort them into {_some(classes)}, or move it out of the data set."
        )
    strange = sorted(set(there) - set(classes))
    if strange:
        raise UsageError(
            f"{root / folder / strange[0]}: a class that training does not have. Classes: {_some(classes)}. "
            "Rename or remove it."
        )
    paths: list[str] = []
    stamps: list[tuple[int, int]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_walk(root, os.path.join(folder, name))) if name in there else []
        if not found:
            raise UsageError(
                f"{root / folder / name}: no images of this class. "
                f"Add some ({', '.join(sorted(SUFFIXES))}) or remove the class from every split."
            )
        paths += [path for path, _, _ in found]
        stamps += [(size, changed) for _, size, changed in found]
        labels += [label] * len(found)
    return Files(paths, np.array(stamps, dtype=np.int64)), np.array(labels, dtype=np.int64)


def _walk(root: Path, folder: str) -> list[tuple[str, int, int]]:
    """Return (path, bytes, time of change) of the images at any depth below a folder."""
    found: list[tuple[str, int, int]] = []
    # With the folders on the way to each, so that a link to one of them is not followed for ever.
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(folder, ())]
    while waiting:
        folder, above = waiting.pop()
        status = os.stat(root / folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                path = f"{folder}{os.sep}{entry.name}"
                if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not _is_folder(entry):
                    found.append((path, *_stamp(entry)))
                elif _is_folder(entry):
                    waiting.append((path, (*above, here)))
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link in a circle; opening it will say so.
        return False


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        # A link to nothing; opening it will say so.
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _source(
    place: Path, root: Path, files: Files, labels: Labels, sizes: Integers, classes: Sequence[str]
) -> FolderSource:
    """A split's readable images."""
    good = np.flatnonzero(sizes[:, 0])
    left = np.bincount(labels[good], minlength=len(classes))
    if not left.all():
        empty = place if not left.any() else place / classes[int(np.argmin(left > 0))]
        raise UsageError(f"{empty}: none of its images can be read. Replace them, or remove the folder.")
    sizes = sizes[good]
    shared = (int(sizes[0, 1]), int(sizes[0, 0])) if (sizes == sizes[0]).all() else None
    paths = [files.paths[number] for number in good.tolist()]
    stamp = hashlib.sha256("\0".join([str(root), *paths]).encode(errors="surrogateescape"))
    stamp.update(files.stamps[good].tobytes())
    return FolderSource(str(root), Names(paths), labels[good], shared, stamp.hexdigest())


def _unreadable(root: Path, files: Files, known: Known) -> UsageError:
    lines = [str(unreadable(str(root / files.paths[number]), why)) for number, why in list(known.bad.items())[:LISTED]]
    if len(known.bad) > LISTED:
        lines.append(f"{root}: {len(known.bad) - LISTED} more images cannot be read.")
    return UsageError("\n".join(lines))


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
