"""What is known of the files of an image folder, kept from one start to the next."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from augury_train.data.decoding import UnreadableError, decode_rgb, upright_size
from augury_train.data.root import data_root

CHUNK = 256
"""Files that a thread inspects at a time."""

Integers = NDArray[np.int64]


class Names:
    """Many paths in two arrays. A list of as many Python objects would be copied, page by page, into every forked
    worker that counts references to them."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


@dataclass(frozen=True)
class Files:
    """Files found in a folder.

    Attributes:
        paths: below the folder.
        stamps: N x 2 int64, size in bytes and time of the last change in nanoseconds.
    """

    paths: list[str]
    stamps: Integers


@dataclass(frozen=True)
class Known:
    """What inspecting `Files` told.

    Attributes:
        sizes: N x 2 int64, width and height as seen; 0 where unreadable.
        bad: the reasons by number, of the files that cannot be read.
    """

    sizes: Integers
    bad: dict[int, str]


def inspect(root: Path, files: Files, *, decode: bool) -> Known:
    """Read the headers of the files that are new or have changed since they were inspected last.

    What was learned is kept in the data root, by file: its size in bytes and its time of change must agree. Unreadable
    files are not kept but tried at every start, so that a repaired disk is noticed. A cache that is damaged or cannot
    be written makes a start slower, nothing else.

    Args:
        root: the folder.
        files: what is there now.
        decode: decode each image whole, once, where else the header is enough.
    """
    cache = data_root() / "index" / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.npz"
    sizes, decoded = _recall(cache, files)
    wanted = np.flatnonzero((sizes[:, 0] == 0) | (decode & ~decoded))
    if not len(wanted):
        return Known(sizes, {})
    look = _decoded_size if decode else upright_size
    bad = {}
    for number, found in zip(wanted.tolist(), _all(look, root, files, wanted), strict=True):
        if isinstance(found, str):
            bad[number] = found
            sizes[number], decoded[number] = 0, False
        else:
            sizes[number], decoded[number] = found, decode
    if len(bad) < len(wanted):
        _keep(cache, files, sizes, decoded)
    return Known(sizes, bad)


def _decoded_size(path: Path) -> tuple[int, int]:
    return decode_rgb(path).size


def _all(
    look: Callable[[Path], tuple[int, int]], root: Path, files: Files, wanted: Integers
) -> Iterable[tuple[int, int] | str]:
    """The (width, height) of each wanted file, or why it cannot be read."""

    def some(numbers: Integers) -> list[tuple[int, int] | str]:
        found: list[tuple[int, int] | str] = []
        for number in numbers.tolist():
            try:
                found.append(look(root / files.paths[number]))
            except UnreadableError as error:
                found.append(str(error))
        return found

    chunks = [wanted[start : start + CHUNK] for start in range(0, len(wanted), CHUNK)]
    with ThreadPoolExecutor() as pool:
        for found in pool.map(some, chunks):
            yield from found


def _recall(cache: Path, files: Files) -> tuple[Integers, NDArray[np.bool_]]:
    """What the cache knows of files that have not changed: sizes N x 2, 0 where nothing; and whether they were decoded
    whole, N."""
    sizes, decoded = np.zeros((len(files.paths), 2), dtype=np.int64), np.zeros(len(files.paths), dtype=np.bool_)
    try:
        with open(cache, "rb") as file, np.load(file, allow_pickle=False) as kept:
            paths = kept["paths"].tobytes().split(b"\0")
            stamps, kept_sizes, kept_decoded = kept["stamps"], kept["sizes"], kept["decoded"]
        if not len(paths) == len(stamps) == len(kept_sizes) == len(kept_decoded):
            return sizes, decoded
        places = {path: place for place, path in enumerate(paths)}
        rows = np.array([places.get(os.fsencode(path), -1) for path in files.paths], dtype=np.int64)
        same = (rows >= 0) & (stamps[rows] == files.stamps).all(axis=1)
        sizes[same], decoded[same] = kept_sizes[rows[same]], kept_decoded[rows[same]]
    except Exception:  # A zip file that is damaged raises nearly anything; all it costs is to look again.
        sizes[:], decoded[:] = 0, False
    return sizes, decoded


def _keep(cache: Path, files: Files, sizes: Integers, decoded: NDArray[np.bool_]) -> None:
    good = np.flatnonzero(sizes[:, 0])
    paths = b"\0".join(os.fsencode(files.paths[number]) for number in good.tolist())
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=cache.parent, prefix=f".{cache.stem}", suffix=".npz")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(
                    file,
                    paths=np.frombuffer(paths, dtype=np.uint8),
                    stamps=files.stamps[good],
                    sizes=sizes[good],
                    decoded=decoded[good],
                )
            os.replace(temporary, cache)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        # A data root that cannot be written to only makes the next start slower.
        return
