"""One file of the register: its tables checked and read, and one table written.

    [methods.NAME]     distribution, entry_point, versions, and optionally folder, title, paper, hooks,
                       linear_classifier, summary
    [aliases.NAME]     method, and optionally options: another name for a method with options of its own
    [defaults.METHOD]  option = value: what the method's options are where a run does not say

What is wrong in a file makes a line in its notes and counts for nothing; the rest of the file holds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from augury.errors import AuguryError, UsageError, shown, unknown
from augury.outside import oddity, parse_toml, read_text

Layer = Literal["built-in", "user", "project"]

FILE_NAME = "registry.toml"
# A method's name is typed on the command line (`name:option=value`) and is part of the keys of a checkpoint.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
MOST = 20
"""Lines about one file."""
LONGEST = 100
"""Letters of a name."""
TABLES = ("methods", "aliases", "defaults")
NAME_RULE = "a name is a letter, then letters, digits, - and _"
_HEADER = "# Methods that you trust, and your aliases and defaults. `augury plugins trust NAME` adds a method.\n"


@dataclass(frozen=True)
class Entry:
    """One method as a register lists it.

    Attributes:
        name: what a run calls it.
        distribution: the installable package that offers it.
        entry_point: `module:Class`.
        versions: PEP 440 range of the distribution's versions that are meant.
        folder: absolute path of the project that must have been installed, "" for a distribution from anywhere.
        title, paper, hooks, summary: what describes it to a reader, and decides nothing.
        linear_classifier: what its class says, for lists of networks that are made without importing it; None where the
            entry does not say. A run asks the class.
        layer: whose register lists it.
    """

    name: str
    distribution: str
    entry_point: str
    versions: str
    folder: str = ""
    title: str = ""
    paper: str = ""
    hooks: tuple[str, ...] = ()
    linear_classifier: bool | None = None
    summary: str = ""
    layer: Layer = "user"

    def table(self) -> dict[str, Any]:
        """The entry as its table in a file says it, without what is empty."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("name", "layer")}
        return {
            key: list(value) if key == "hooks" else value
            for key, value in values.items()
            if value not in ("", (), None)
        }


_ENTRY_KEYS = tuple(f.name for f in fields(Entry) if f.name not in ("name", "layer"))
_REQUIRED = ("distribution", "entry_point", "versions")


@dataclass(frozen=True)
class Alias:
    """Another name for a method, with options of its own."""

    name: str
    method: str
    options: Mapping[str, Any]


@dataclass
class RegisterFile:
    """What one file says, and a line for each thing in it that cannot be meant."""

    label: str
    methods: dict[str, Entry] = field(default_factory=dict)
    aliases: dict[str, Alias] = field(default_factory=dict)
    defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a line that begins with the file's name."""
        if len(self.notes) < MOST:
            self.notes.append(one_line(f"{self.label}: {text}"))
        elif len(self.notes) == MOST:
            self.notes.append(one_line(f"{self.label}: more of it is ignored."))


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which files, metadata and exceptions may hold."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def read(path: Path, layer: Layer, label: str = "") -> RegisterFile:
    """Read a register's file; one that does not exist says nothing, one that cannot be read says so in its notes."""
    file = RegisterFile(label or str(path))
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return file
    except (OSError, ValueError) as error:
        file.note(f"cannot be read and is ignored: {error}")
        return file
    return parse(text, layer, file.label)


def parse(text: str, layer: Layer, label: str) -> RegisterFile:
    """Read the text of a register's file."""
    file = RegisterFile(label)
    try:
        data = parse_toml(text)
    except ValueError as error:
        file.note(f"is not valid TOML and is ignored: {error}")
        return file
    for key in sorted(data.keys() - set(TABLES)):
        file.note(unknown("table", key, TABLES, label="Tables") + " It is ignored.")
    for kind in TABLES:
        tables = data.get(kind, {})
        if not isinstance(tables, dict):
            file.note(f"`{kind}` must be tables [{kind}.NAME], got {_kind(tables)}. It is ignored.")
            continue
        for name, table in tables.items():
            try:
                _read_table(file, kind, name, table, layer)
            except ValueError as error:
                file.note(f"[{kind}.{name[:LONGEST]}] {error} This table is ignored.")
    return file


def _read_table(file: RegisterFile, kind: str, name: str, table: Any, layer: Layer) -> None:
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise ValueError(f"has no name that can be used: {NAME_RULE}.")
    if not isinstance(table, dict):
        raise ValueError(f"must be a table, got {_kind(table)}.")
    if why := oddity(table):
        raise ValueError(f"{why}.")
    if kind == "methods":
        file.methods[name] = _entry(name, table, layer)
    elif kind == "aliases":
        _check_keys(table, ("method", "options"), ("method",))
        method, options = _text(table, "method"), table.get("options", {})
        if not isinstance(options, dict):
            raise ValueError(f"`options` must be a table of options, got {_kind(options)}.")
        file.aliases[name] = Alias(name, method, options)
    else:
        file.defaults[name] = table


def _entry(name: str, table: Mapping[str, Any], layer: Layer) -> Entry:
    _check_keys(table, _ENTRY_KEYS, _REQUIRED)
    texts = {key: _text(table, key) for key in table if key not in ("hooks", "linear_classifier")}
    if not TARGET.fullmatch(texts["entry_point"]):
        raise ValueError(f"`entry_point` must be module:Class, got {shown(texts['entry_point'])}.")
    if "folder" in texts and not Path(texts["folder"]).is_absolute():
        raise ValueError(f"`folder` must be an absolute path, got {shown(texts['folder'])}.")
    hooks = table.get("hooks", [])
    if not (isinstance(hooks, list) and all(isinstance(hook, str) for hook in hooks)):
        raise ValueError(f"`hooks` must be a list of names, got {shown(hooks)}.")
    linear = table.get("linear_classifier")
    if not (linear is None or isinstance(linear, bool)):
        raise ValueError(f"`linear_classifier` must be true or false, got {shown(linear)}.")
    return Entry(name, hooks=tuple(hooks), linear_classifier=linear, layer=layer, **texts)


def _check_keys(table: Mapping[str, Any], allowed: Iterable[str], required: Iterable[str]) -> None:
    for key in sorted(table.keys() - set(allowed)):
        raise ValueError(f"has an {unknown('key', key, allowed, label='Keys')}")
    for key in required:
        if key not in table:
            raise ValueError(f"lacks `{key}`.")


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table[key]
    if not isinstance(value, str):
        raise ValueError(f"`{key}` must be a text, got {_kind(value)}.")
    return value


def _kind(value: Any) -> str:
    return f"the {type(value).__name__} {shown(value)}"


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
