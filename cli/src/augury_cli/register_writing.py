"""Write a register's file: add an entry, remove one, show what a change would do."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from augury.errors import AuguryError, UsageError
from augury.outside import parse_toml, read_text
from augury.register_file import Entry, one_line

_HEADER = "# Methods that you trust, and your aliases and defaults. `augury plugins trust NAME` adds a method.\n"


def add_entry(path: Path, entry: Entry) -> None:
    """Write an entry into a register's file, in the place of one of the same name; the rest of the file stays as it is.

    Raises:
        UsageError: the file is not valid TOML, or lists the method in a form that cannot be replaced by its lines.
        AuguryError: the file cannot be written.
    """
    # A file that is a link to another place stays one.
    path = path.resolve()
    old, data = _editable(path)
    new = f"{_without_method(old, entry.name).rstrip()}\n\n{_to_toml(entry)}".lstrip()
    if not _says(new, _methods_of(data) | {entry.name: entry.table()}, data):
        raise UsageError(f"{path} is in a form that cannot be edited here. Write [methods.{entry.name}] in it by hand.")
    _replace(path, new)


def remove_entry(path: Path, name: str) -> bool:
    """Take an entry out of a register's file; the rest of the file stays as it is, comments too.

    Returns:
        whether the file listed the method.

    Raises:
        UsageError: the file is not valid TOML, or lists the method in a form that cannot be removed by its lines.
        AuguryError: the file cannot be read or written.
    """
    path = path.resolve()
    old, data = _editable(path)
    methods = _methods_of(data)
    if name not in methods:
        return False
    del methods[name]
    new = _without_method(old, name)
    if not _says(new, methods, data):
        raise UsageError(f"{path} is in a form that cannot be edited here. Remove [methods.{name}] from it by hand.")
    _replace(path, new)
    return True


def _editable(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a file that is to be changed, the header where there is no file, and what it says."""
    try:
        text = read_text(path) if path.exists() else _HEADER
        return text, parse_toml(text)
    except OSError as error:
        raise AuguryError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {one_line(str(error))}. Correct it, then try again.") from error


def _methods_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The entries as the file has them; none where `methods` is no table."""
    methods = data.get("methods", {})
    return dict(methods) if isinstance(methods, dict) else {}


def _to_toml(entry: Entry) -> str:
    return "\n".join([f"[methods.{entry.name}]", *_lines(entry), ""])


def _lines(entry: Entry) -> list[str]:
    return [f"{key} = {_quoted(value)}" for key, value in entry.table().items()]


def changes(old: Entry, new: Entry) -> list[str]:
    """The lines of a file that one entry loses, each after "- ", and gains, after "+ ", when it becomes the other."""
    before, after = _lines(old), _lines(new)
    return [
        *(f"- {line}" for line in before if line not in after),
        *(f"+ {line}" for line in after if line not in before),
    ]


def _quoted(value: str | list[str] | bool) -> str:
    # JSON's quoting is TOML's, except that TOML forbids a bare DEL and pairs of surrogates.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _without_method(text: str, name: str) -> str:
    """The text without the lines of [methods.NAME], up to the next table; comments stay."""
    header = re.compile(rf"\s*\[\s*methods\s*\.\s*(['\"]?){re.escape(name)}\1\s*\]")
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = header.match(line) is not None
        if not inside or line.lstrip().startswith("#"):
            kept.append(line)
    return "".join(kept)


def _says(text: str, methods: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether the text says these methods, and beside them what `data` says."""
    try:
        found = parse_toml(text)
    except ValueError:
        return False
    return found.pop("methods", {}) == methods and found == {key: data[key] for key in data if key != "methods"}


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text, encoding="utf-8")
            if path.exists():
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise AuguryError(f"{path} cannot be written: {error.strerror}.") from error
