"""Files that are whole or absent, whatever happens while they are written, and what is told when they cannot be."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from augury.errors import RunError, UsageError, plain

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}
"""How file systems answer that cannot bring a folder to the disk."""


class WriteError(RunError, OSError):
    """A file that cannot be written: `errno`, `strerror` and `filename` are the system's, the message is whole."""

    def __str__(self) -> str:
        return plain(self.args[0])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when the block ends well; after that not even a power cut takes
    it away.

    Raises:
        WriteError: the disk is full, say. What was written in part is removed, and what `path` held before is left.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            remove(partial)
            # safetensors makes files that their owner alone can read; others of the same group may want to.
            partial.touch()
            mode = partial.stat().st_mode
            yield partial
            partial.chmod(mode)
            _to_disk(partial)
            os.replace(partial, path)
        except BaseException:
            remove(partial)
            raise
        folder_to_disk(path.parent)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write a text file as UTF-8, with `errors` as for `str.encode`.

    Raises:
        WriteError: as `replacing`.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file that is there; it is in the file and on the disk when this returns.

    Raises:
        WriteError: the disk is full, say. The file is then as it was before.
    """
    with writing(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            before, left = os.fstat(descriptor).st_size, memoryview(f"{line}\n".encode())
            try:
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)


def folder_inside(folder: Path, *names: str) -> Path:
    """Make a folder inside one that must be there: a run's folder that was removed is not made anew by halves.

    Returns:
        `folder / names[0] / names[1]` and so on.

    Raises:
        WriteError: `folder` is gone, say.
    """
    for name in names:
        folder = folder / name
        with writing(folder):
            folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell what keeps `path` from being written in the block as a `WriteError`, however the writer tells it.

    Raises:
        WriteError: the system refused.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        found = _system_error(error)
        # One of another file is none of this one's: a source that is copied from, say.
        if found is None or (found.filename is not None and not _near(found.filename, path)):
            raise
        raise cannot_write(path, found) from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    """The error that names a path, what the system said, and what to do."""
    code = error.errno
    why = error.strerror or str(error)
    if code == errno.ENOENT:
        gone = "it" if os.path.lexists(path.parent) else path.parent
        why, remedy = f"{gone} is no longer there", "Bring it back, or start anew"
    elif code in _FULL:
        remedy = "Free some space"
    elif code == errno.EFBIG:
        remedy = "Raise the limit on the size of files (ulimit -f)"
    elif code in _FORBIDDEN:
        remedy = "Make its folder writable"
    elif code in _IN_THE_WAY:
        remedy = "Move what is in its place elsewhere"
    else:
        remedy = "See to the disk"
    told = WriteError(f"{path}: cannot be written: {why}. {remedy}.")
    told.errno, told.strerror, told.filename = code, error.strerror, str(path)
    return told


def remove(path: Path) -> None:
    """Remove a file that may not be there, or not be removable: that is not what was to be told."""
    try:
        os.unlink(path)
    except OSError:
        return


def folder_to_disk(folder: Path) -> None:
    """Bring to the disk which files a folder holds: a renamed one keeps its new name after a power cut."""
    if os.name != "posix":
        return
    try:
        _to_disk(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def refuse_ways_out(folder: Path) -> None:
    """Refuse a folder from which a link leads out of it: who writes there would write elsewhere.

    Raises:
        UsageError: there is such a link, or an entry that is neither file nor folder; it is named.
    """
    root = os.path.realpath(folder)
    for inside, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(inside, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                to = os.path.realpath(path)
                if not (to == root or to.startswith(root + os.sep)):
                    raise UsageError(
                        f"{folder}: {path.relative_to(root)} is a link to {to}, and what is written there would not "
                        "stay in the folder. Put a copy in its place, or remove it."
                    )
            elif not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise UsageError(f"{folder}: {path.relative_to(root)} is neither file nor folder. Remove it.")


def _to_disk(path: Path) -> None:
    # Windows brings to the disk only what is open for writing.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> OSError | None:
    """What the system said behind an error: torch raises another while it closes its file, safetensors passes on the
    number as text."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        if (said := re.search(r"\(os error (\d+)\)", str(error))) is not None:
            return OSError(int(said[1]), os.strerror(int(said[1])))
        error = error.__cause__ or error.__context__
    return None


def _near(filename: str | bytes | int, path: Path) -> bool:
    """Whether a file that the system named is this one, its partial one or its folder."""
    if isinstance(filename, int):
        return True
    named = os.path.abspath(os.fsdecode(filename))
    return named.startswith(os.path.abspath(path)) or named == os.path.abspath(path.parent)
