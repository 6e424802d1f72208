"""One file of the register: its tables checked and read, and one table written.

    [methods.NAME]     distribution, entry_point, versions, and optionally folder, title, paper, hooks,
                       linear_classifier, summary
    [aliases.NAME]     method, and optionally options: another name for a method with options of its own
    [defaults.METHOD]  option = value: what the method's options are where a run does not say

What is wrong in a file makes a line in its notes and counts for nothing; the rest of the file holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from augury.errors import shown, unknown
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
