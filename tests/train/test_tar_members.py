"""Tars from anybody: files and folders are read, everything else is refused by its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from augury.errors import UsageError
from augury_train.data import tars
from augury_train.data.readers import open_reader
from augury_train.data.tar_members import DEEPEST, LARGEST_HEADER, members


def packed(*entries: tuple[str, bytes | str, bytes]) -> bytes:
    """A tar of (name, content or what a link leads to, type)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, kind in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file.getvalue()


REG, DIR = tarfile.REGTYPE, tarfile.DIRTYPE
WHOLE = [("a", b"", DIR), ("a/0.png", b"first", REG), ("b/1.png", b"second", REG), ("b/1.cls", b"1", REG)]
LINKS = {
    "to itself": ("a/x.png", "a/x.png", tarfile.SYMTYPE, "a symbolic link to a/x.png"),
    "hard, to itself": ("a/x.png", "a/x.png", tarfile.LNKTYPE, "a hard link to a/x.png"),
    "dangling": ("a/x.png", "nowhere", tarfile.SYMTYPE, "a symbolic link to nowhere"),
    "to a file": ("a/x.png", "0.png", tarfile.SYMTYPE, "a symbolic link to 0.png"),
    "a tar that is its own": ("a/x.tar", "x.tar", tarfile.SYMTYPE, "a symbolic link to x.tar"),
    "a tar, hard": ("a/x.tar", "a/x.tar", tarfile.LNKTYPE, "a hard link to a/x.tar"),
    "a label": ("b/1.cls", "b/2.cls", tarfile.LNKTYPE, "a hard link to b/2.cls"),
    "a folder": ("c", "a", tarfile.SYMTYPE, "a symbolic link to a"),
    "named pipe": ("a/x.png", b"", tarfile.FIFOTYPE, "a named pipe"),
    "named pipe, tar": ("x.tar", b"", tarfile.FIFOTYPE, "a named pipe"),
    "device": ("a/x.png", b"", tarfile.CHRTYPE, "a device"),
    "disk": ("x.tar", b"", tarfile.BLKTYPE, "a device"),
    "unknown": ("a/x.png", b"", b"Z", "of an unknown type, b'Z'"),
}


def refused(path: Path, content: bytes, match: str) -> None:
    """Check that a tar is refused as images and as a shard, and as a tar inside one."""
    path.write_bytes(content)
    for name in (str(path), f"wds/{path}"):
        with pytest.raises(UsageError, match=match):
            open_reader(name, skip_bad=False)
    path.write_bytes(packed(("deep/in.tar", content, REG)))
    with pytest.raises(UsageError, match=match.replace(r"x\.tar", r"x\.tar:deep/in\.tar")):
        open_reader(str(path), skip_bad=False)


def test_members_are_found_where_they_lie(tmp_path: Path) -> None:
    inner = packed(*WHOLE)
    path = tmp_path / "x.tar"
    path.write_bytes(packed(("/c/in.tar", inner, REG), ("./d/2.png", b"third", REG), ("d/.hidden.png", b"", REG)))
    content = path.read_bytes()
    found = {m.name: (m.folders, content[m.start : m.start + m.size]) for m in members(path, nested=True)}
    assert found == {
        "a/0.png": (("c", "in", "a"), b"first"),
        "b/1.png": (("c", "in", "b"), b"second"),
        "b/1.cls": (("c", "in", "b"), b"1"),
        "./d/2.png": (("d",), b"third"),
    }
    assert [m.name for m in members(path, nested=False)] == ["/c/in.tar", "./d/2.png"]


@pytest.mark.parametrize("kind", LINKS)
def test_links_pipes_and_devices_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    name, content, of, told = LINKS[kind]
    refused(
        tmp_path / "x.tar",
        packed(*WHOLE, (name, content, of)),
        rf"x\.tar: {name} is {told}; only files.*`tar -h --hard-dereference`",
    )


def test_a_link_to_another_tar_does_not_lend_its_images(tmp_path: Path) -> None:
    sibling = packed(("0.png", b"other", REG))
    content = packed(("cat.tar", sibling, REG), ("dog.tar", "cat.tar", tarfile.SYMTYPE))
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.tar: dog\.tar is a symbolic link to cat\.tar"):
        open_reader(str(tmp_path / "x.tar"), skip_bad=False)


def test_a_name_that_leads_up_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "x.tar", packed(*WHOLE, ("a/../../0.png", b"", REG)), r"x\.tar: 'a/../../0\.png' has `\.\.`")


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a/0.png")
        info.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4096"}
        info.size = 4
        tar.addfile(info, io.BytesIO(b"1234"))
    refused(tmp_path / "x.tar", file.getvalue(), r"x\.tar: a/0\.png is a sparse file; only files")


def nested(depth: int) -> bytes:
    """Tars inside each other: the headers, the innermost tar, and the ends."""
    content = packed(("a/0.png", b"", REG))
    sizes = [len(content) + 1536 * place for place in reversed(range(depth - 1))]
    return b"".join(header(b"t.tar", REG, b"%011o" % size) for size in sizes) + content + END * (depth - 1)


@pytest.mark.parametrize("depth", [DEEPEST + 1, 1200])
def test_tars_too_deep_inside_each_other_are_refused(tmp_path: Path, depth: int) -> None:
    (tmp_path / "x.tar").write_bytes(nested(DEEPEST))
    assert [m.name for m in members(tmp_path / "x.tar", nested=True)] == ["a/0.png"]
    (tmp_path / "x.tar").write_bytes(nested(depth))
    with pytest.raises(UsageError, match=rf"x\.tar(:t\.tar){{{DEEPEST}}}: more than 8 tars inside each other") as error:
        open_reader(str(tmp_path / "x.tar"), skip_bad=False)
    assert len(str(error.value)) < 300


def header(name: bytes, kind: bytes, size: bytes) -> bytes:
    """One block of a tar, with a right checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136], block[156:157], block[257:265] = size.ljust(12, b"\0"), kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(record: bytes) -> bytes:
    length = len(record) + 4
    return header(b"x", tarfile.XHDTYPE, b"%011o" % length) + (b"%03d %s" % (length, record)).ljust(512, b"\0")


END = b"\0" * 1024
ODD: dict[str, Callable[[], bytes]] = {
    "no tar": lambda: b"no tar" * 200,
    "empty": lambda: b"",
    "cut in a member": lambda: packed(*WHOLE)[:1300],
    "cut behind a header": lambda: packed(*WHOLE)[:1024],
    "cut in a header": lambda: packed(*WHOLE)[:1800],
    "no end": lambda: packed(("a/0.png", b"", REG))[:512],
    "damaged in the middle": lambda: packed(*WHOLE)[:1536] + b"\xff" * 512 + packed(*WHOLE)[2048:],
    "gzip": lambda: gzip.compress(packed(*WHOLE)),
    "bzip2": lambda: bz2.compress(packed(*WHOLE)),
    "xz": lambda: lzma.compress(packed(*WHOLE)),
    "gzip, cut": lambda: gzip.compress(packed(*WHOLE))[:60],
    "zip": lambda: b"PK\x03\x04" + b"\0" * 600,
    "negative size": lambda: header(b"a/0.png", REG, b"\xff" * 11 + b"\0") + END,
    "negative size, pax": lambda: pax(b"size=-512\n") + header(b"a/0.png", REG, b"%011o" % 0) + END,
    "size of no number, pax": lambda: pax(b"size=" + b"9" * 400 + b"\n") + header(b"a/0.png", REG, b"0") + END,
    "endless name": lambda: header(b"x", tarfile.GNUTYPE_LONGNAME, b"%011o" % (LARGEST_HEADER + 1)) + END,
    "name of 8 GiB": lambda: header(b"x", tarfile.GNUTYPE_LONGNAME, b"7" * 11) + END,
    "attributes of 8 GiB": lambda: header(b"x", tarfile.XGLTYPE, b"7" * 11) + END,
    "attributes of attributes": lambda: pax(b"mtime=1\n") * 3000 + END,
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.timeout(120)
def test_damaged_tars_are_refused(tmp_path: Path, kind: str) -> None:
    refused(tmp_path / "x.tar", ODD[kind](), r"x\.tar: not a readable tar file \(.*fetch a damaged one again")


@pytest.mark.timeout(120)
def test_a_named_pipe_in_the_place_of_a_tar_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    for name in (f"wds/{tmp_path}", f"wds/{tmp_path}/*.tar", str(tmp_path)):
        with pytest.raises(UsageError, match=r"x\.tar: not a readable tar file \('no regular file'\)"):
            open_reader(name, skip_bad=False)


def test_images_and_labels_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars, "LARGEST_IMAGE", 4)
    (tmp_path / "x.tar").write_bytes(packed(("a/0.png", b"12345", REG)))
    for name in (f"{tmp_path}/x.tar", f"wds/{tmp_path}/x.tar"):
        with pytest.raises(UsageError, match=r"x\.tar: a/0\.png has 5 bytes; an image may have 4"):
            open_reader(name, skip_bad=False)
    (tmp_path / "x.tar").write_bytes(packed(("0.cls", b"1" * 2**21, REG)))
    with pytest.raises(UsageError, match=r"0\.cls: b'' is no whole number"):
        open_reader(f"wds/{tmp_path}/x.tar", skip_bad=False)
