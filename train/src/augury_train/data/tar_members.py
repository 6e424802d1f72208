"""The files inside a tar and inside the tars in it, found by one pass over the headers; what is odd is refused.

Nothing is extracted, so a member's name decides its class and no place on the disk.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augury.errors import AuguryError, UsageError, shown
from augury_train.data.folder import is_hidden

DEEPEST = 8
"""Tars inside each other."""
LARGEST_HEADER = 2**15
"""Bytes of a member's long name or extended attributes. tarfile takes the square of their number."""

_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link to",
    tarfile.LNKTYPE: "a hard link to",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
}


@dataclass(frozen=True)
class Member:
    """A regular file inside a tar.

    Attributes:
        name: as the tar has it that holds the file.
        folders: the folders on the way to it, a tar inside a tar among them by its name without `.tar`.
        start: its first byte in the outermost tar.
        size: in bytes.
    """

    name: str
    folders: tuple[str, ...]
    start: int
    size: int


class _Header(tarfile.TarInfo):
    """A header that neither asks for much memory nor leads backwards, as tarfile itself allows in older Pythons."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type in _HEADERS and self.size > LARGEST_HEADER):
            raise tarfile.ReadError(f"a header of {self.size} bytes at byte {self.offset}")
        found = super()._proc_member(archive)  # type: ignore[misc]
        # A pax header can give another size than the block that it belongs to.
        if archive.offset <= self.offset or not 0 <= found.size < 2**63:
            raise tarfile.ReadError(f"a member of an impossible size at byte {self.offset}")
        return found


def members(path: Path, *, nested: bool) -> Iterator[Member]:
    """Yield the regular files of a tar in its order; folders and hidden files are passed over.

    Args:
        path: an uncompressed tar.
        nested: look into the tars inside it instead of yielding them.

    Raises:
        UsageError: it is no tar, is damaged or cut off, or holds a member that is a link, a named pipe, a device, a
            sparse file, or whose name has `..` in it; or tars inside each other more than `DEEPEST` deep.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise tarfile.ReadError("no regular file")
        with path.open("rb") as file:
            yield from _members(file, str(path), (), 0, 1 if nested else 0)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}. Check the file.") from None
    except tarfile.TarError as error:
        raise _damaged(str(path), error) from None


def _members(file: Any, title: str, above: tuple[str, ...], base: int, depth: int) -> Iterator[Member]:
    """Yield the members of an open tar that begins at byte `base` of the outermost one.

    Args:
        depth: tars inside each other up to this one, 0 where those inside are not looked into.
    """
    for member, archive in _checked(file, title):
        *folders, name = (part for part in member.name.split("/") if part not in ("", "."))
        start = base + member.offset_data
        stem, suffix = os.path.splitext(name)
        if not depth or suffix.lower() != ".tar":
            yield Member(member.name, (*above, *folders), start, member.size)
            continue
        inside = f"{title}:{member.name}"
        if depth == DEEPEST:
            raise UsageError(f"{inside}: more than {DEEPEST} tars inside each other. Unpack the inner ones.")
        yield from _members(archive.extractfile(member), inside, (*above, *folders, stem), start, depth + 1)


def _checked(file: Any, title: str) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield the members of an open tar that are files, and refuse it for any that is neither file nor folder."""
    try:
        with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
            for member in archive:
                parts = member.name.split("/")
                if ".." in parts:
                    raise UsageError(f"{title}: {shown(member.name)} has `..` in its name. Pack the tar anew without.")
                if member.isdir() or any(is_hidden(part) for part in parts if part != "."):
                    continue
                if not member.isreg() or member.sparse is not None:
                    raise UsageError(
                        f"{title}: {member.name[:200]} is {_kind(member)}; only files and folders are read. "
                        "Pack the tar anew with `tar -h --hard-dereference`, without sparse files."
                    )
                yield member, archive
            # tarfile takes a damaged header for the end.
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"damaged or cut off at byte {archive.offset}")
    except AuguryError:
        raise
    except Exception as error:  # Damaged headers make tarfile raise nearly anything.
        raise _damaged(title, error) from None


def _kind(member: tarfile.TarInfo) -> str:
    if member.sparse is not None:
        return "a sparse file"
    kind = _KINDS.get(member.type, f"of an unknown type, {member.type!r}")
    return f"{kind} {member.linkname[:200]}" if member.linkname and kind.endswith(" to") else kind


def _damaged(title: str, error: Exception) -> UsageError:
    reason = shown(str(error)) if str(error) else type(error).__name__
    return UsageError(
        f"{title}: not a readable tar file ({reason}). Unpack a compressed one; fetch a damaged one again."
    )
