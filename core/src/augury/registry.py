"""The register: which methods exist, which of them may be imported, and under which names.

Installed packages are found by their metadata, entry-point group `augury.methods`; a method's module is imported when
a run names it and a register lists it. Two registers list methods: the built-in one and the user's. A project's
`./registry.toml` may add aliases and defaults for what those list, and nothing else, so that a cloned folder cannot
make anything run.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.resources
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from augury.discovery import GROUP, Claim, discover, range_from, unusable
from augury.errors import UsageError, unknown
from augury.lazy_import import import_for
from augury.listing import Found, judge
from augury.outside import given_path
from augury.register_file import FILE_NAME, Alias, Entry, RegisterFile, one_line
from augury.register_file import parse as parse_file
from augury.register_file import read as read_file

if TYPE_CHECKING:
    from augury.method import Method


UNTYPED = "model-field-missing-annotation"
"""What pydantic calls an option without a type."""


class Register:
    """What is installed, held against what is listed."""

    def __init__(
        self,
        entries: Mapping[str, Sequence[Entry]],
        claims: Mapping[str, Sequence[Claim]],
        user_file: Path,
        trust: Iterable[str] = (),
    ) -> None:
        """Hold claims against entries; most callers use `Register.load`.

        Args:
            entries: the entries of each name; an installed package must answer to one of them.
            claims: the claims to each name.
            user_file: where `trust` writes.
            trust: names that are usable though no entry lists them.
        """
        self.notes: list[str] = []
        self.aliases: dict[str, Alias] = {}
        self.defaults: dict[str, dict[str, Any]] = {}
        self.user_file = user_file
        self._given: dict[str, type[Method]] = {}
        self._claims = claims
        self._entries = entries
        trust = set(trust)
        for name in sorted(trust - claims.keys() - entries.keys()):
            raise UsageError(unknown("method", name, claims, label="Installed"))
        self._found = {
            name: judge(name, entries.get(name, ()), claims.get(name, ()), name in trust)
            for name in sorted({*entries, *claims})
        }
        self._nameable = entries.keys() | trust

    @classmethod
    def load(cls, *, project: Path | None = None, user_file: Path | None = None, trust: Iterable[str] = ()) -> Register:
        """Read the three layers and the metadata of what is installed.

        Args:
            project: folder whose `registry.toml` is the project's; the current one when None.
            user_file: the user's register; `default_user_file()` when None.
            trust: names that this register lets be imported though no layer lists them.

        Raises:
            UsageError: a name in `trust` is neither installed nor listed. What is wrong in a file or in an installed
                package is a line in `notes` instead.
        """
        user_file = user_file or default_user_file()
        built_in = _built_in()
        user = read_file(user_file, "user")
        label = f"./{FILE_NAME}" if project is None else ""
        local = read_file((project or Path()) / FILE_NAME, "project", label)
        claims, notes = discover()
        entries: dict[str, list[Entry]] = {}
        for entry in [*user.methods.values(), *built_in.methods.values()]:
            entries.setdefault(entry.name, []).append(entry)
        register = cls(entries, claims, user_file, trust)
        register._add(user)
        _refuse_methods(local, entries)
        register._add(local)
        register.notes = [*notes, *user.notes, *local.notes]
        return register

    def _add(self, file: RegisterFile) -> None:
        """Take over a file's aliases and defaults, as far as they are for methods that the registers list."""
        for alias in file.aliases.values():
            if alias.name in self._found:
                file.note(f"[aliases.{alias.name}] is ignored: a method has that name. Choose another.")
            elif alias.method not in self._nameable:
                problem = unknown("method", alias.method, self._nameable, label="Listed")
                file.note(f"[aliases.{alias.name}] is ignored: {problem}")
            else:
                self.aliases[alias.name] = alias
        for name, options in file.defaults.items():
            if name not in self._nameable:
                problem = unknown("method", name, self._nameable, label="Listed")
                file.note(f"[defaults.{name}] is ignored: {problem}")
            else:
                self.defaults[name] = {**self.defaults.get(name, {}), **options}

    def methods(self) -> list[Found]:
        """Every method that is listed or installed, by name."""
        return list(self._found.values())

    def resolve(self, name: str) -> tuple[Found, dict[str, Any]]:
        """Find the method that a name or an alias means, and the options that the registers give it.

        Returns:
            the method, and its options: the defaults, and over them the alias's own.

        Raises:
            UsageError: the name is unknown, or its method is not ready.
        """
        alias = self.aliases.get(name)
        found = self._found.get(alias.method if alias else name)
        if found is None:
            ready = [f.name for f in self._found.values() if f.status == "ready"]
            known = [*ready, *(a.name for a in self.aliases.values() if a.method in ready)]
            raise UsageError(unknown("method", name, known, label="Installed and listed"))
        if found.status != "ready":
            raise UsageError(found.problem)
        return found, {**self.defaults.get(found.name, {}), **(alias.options if alias else {})}

    def offering(self, name: str, method: type[Method]) -> Register:
        """A register that knows one class more, which needs no package: it is given, not found. It goes before what is
        installed under its name, whose aliases and defaults do not apply."""
        other = copy.copy(self)
        module = getattr(method, "__module__", "")
        target = f"{module}:{getattr(method, '__qualname__', method)}"
        other._found = {**self._found, name: Found(name, "", "", target, None, "ready")}
        other._given = {**self._given, name: method}
        other.aliases = {key: alias for key, alias in self.aliases.items() if key != name}
        other.defaults = {key: options for key, options in self.defaults.items() if key != name}
        return other

    def load_class(self, name: str) -> type[Method]:
        """Import one method's class, and nothing of any other.

        Raises:
            UsageError: the method cannot be resolved, its import fails in any way, or what it names is no method whose
                hooks can be called as meant. Each line names the distribution.
        """
        found, _ = self.resolve(name)
        if found.name in self._given:
            from augury.method import check_method  # imports torch

            return check_method(self._given[found.name], found.name)
        source = f"{found.distribution} {found.version}"
        try:
            loaded = importlib.metadata.EntryPoint(found.name, found.entry_point, GROUP).load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a module may even call sys.exit
            if getattr(error, "code", None) == UNTYPED:
                option, _, value = str(error).partition("`")[2].partition("`")[0].partition(" = ")
                raise UsageError(
                    f"{found.name}: {source}: its option `{option}` has no type. "
                    f"Write `{option}: float = {value}`, say."
                ) from error
            reason = one_line(f"{type(error).__name__}: {error}").rstrip(".: ")
            raise UsageError(
                f"{found.name}: importing {found.entry_point} of {source} failed: {reason}. "
                "Repair or uninstall that distribution; other methods are not affected."
            ) from error

        from augury.method import check_method  # imports torch

        try:
            return check_method(loaded, found.name, unsaid="1.0")
        except UsageError as error:
            raise UsageError("\n".join(f"{source}: {line}" for line in str(error).splitlines())) from error

    def needs_linear(self, name: str) -> bool:
        """Whether the method that a name or an alias means needs a classifier that is one `nn.Linear`; its class is
        imported only where its entry does not say.

        Raises:
            UsageError: as `load_class`.
        """
        found, _ = self.resolve(name)
        told = None if found.entry is None else found.entry.linear_classifier
        return self.load_class(found.name).linear_classifier if told is None else told

    def candidate(self, name: str) -> Entry:
        """The entry that `trust` would write for an installed method.

        Returns:
            the present entry where the method is ready with one of the built-in register. One of the user's keeps the
            versions that it accepts, and loses what goes stale while its package is worked on: title, hooks, summary
            and whether it needs a linear classifier.

        Raises:
            UsageError: nothing installed offers the name, or what does cannot be listed: two distributions claim it, or
                its metadata is not usable.
        """
        found, claims = self._found.get(name), self._claims.get(name, ())
        if found is None:
            raise UsageError(unknown("method", name, self._claims, label="Installed"))
        listed = found.entry if found.status == "ready" else None
        if listed is not None and listed.layer != "user":
            return listed
        if not claims or unusable(name, claims):
            raise UsageError(found.problem)
        claim = claims[0]
        if listed is not None:
            return replace(
                listed, folder=listed.folder or claim.folder, title="", hooks=(), linear_classifier=None, summary=""
            )
        return Entry(name, claim.distribution, claim.entry_point, range_from(claim), claim.folder)

    def trust(self, name: str, user_file: Path | None = None) -> Entry:
        """List an installed method in the user's register; nothing is written when it is listed so already.

        Raises:
            UsageError: as `candidate`, or the user's file is not one that can be edited.
            AuguryError: the user's file cannot be written.
            ModuleNotFoundError: augury-cli, which writes the file, is not installed.
        """
        entry, found = self.candidate(name), self._found[name]
        if found.status != "ready" or entry != found.entry:
            _writing("trust").add_entry(user_file or self.user_file, entry)
            summary = self._claims[name][0].summary
            self._found[name] = replace(found, entry=entry, status="ready", problem="", summary=summary)
            self._nameable |= {name}
        return entry

    def untrust(self, name: str) -> Found | None:
        """Take a method off the user's register; aliases and defaults for it stay in the file and count for nothing.

        Returns:
            what the name is from now on: still ready where the built-in register lists it too; None where nothing
            installed has it.

        Raises:
            UsageError: the user's register does not list it, or is not one that can be edited.
            AuguryError: the user's file cannot be written.
            ModuleNotFoundError: augury-cli, which writes the file, is not installed.
        """
        if not _writing("untrust").remove_entry(self.user_file, name):
            raise UsageError(self._not_the_users(name))
        left = [entry for entry in self._entries.get(name, ()) if entry.layer != "user"]
        self._entries = {**self._entries, name: left}
        self._found.pop(name, None)
        if left or name in self._claims:
            self._found[name] = judge(name, left, self._claims.get(name, ()), False)
        if not left:
            self._nameable -= {name}
            self.aliases = {alias.name: alias for alias in self.aliases.values() if alias.method != name}
            self.defaults.pop(name, None)
        return self._found.get(name)

    def _not_the_users(self, name: str) -> str:
        entries = self._entries.get(name, ())
        if entries:
            return (
                f"{name} is listed by the built-in register, which nobody edits. "
                f"To be rid of it: pip uninstall {entries[0].distribution}."
            )
        if name in self.aliases:
            return f"`{name}` is an alias of {self.aliases[name].method}. Name the method itself."
        if name in self._found:
            return f"{name} is not listed, so there is nothing to take back: a run imports it only with --trust {name}."
        known = [entry.name for listed in self._entries.values() for entry in listed if entry.layer == "user"]
        return unknown("method", name, known, label=f"Listed in {self.user_file}")


def default_user_file() -> Path:
    """The user's register: `registry.toml` in the folder AUGURY_CONFIG, else in the platform's configuration folder."""
    folder = os.environ.get("AUGURY_CONFIG")
    if folder:
        return given_path(folder, "AUGURY_CONFIG") / FILE_NAME
    import platformdirs

    return platformdirs.user_config_path("augury", appauthor=False) / FILE_NAME


def _writing(asked: str) -> ModuleType:
    return import_for(f"augury.Register.{asked}", "augury_cli.register_writing")


def _refuse_methods(local: RegisterFile, entries: Mapping[str, Sequence[Entry]]) -> None:
    """Say in one line that a project's file lists methods otherwise than the user trusts them."""
    others = [
        name
        for name, entry in local.methods.items()
        if replace(entry, layer="user") not in [replace(listed, layer="user") for listed in entries.get(name, ())]
    ]
    if others:
        names = ", ".join(f"`{name}`" for name in sorted(others))
        local.note(
            f"its entry for {names} is ignored: a project's register can neither trust a method nor point a listed one "
            "elsewhere. To trust an installed package: `augury plugins trust NAME`."
        )


def _built_in() -> RegisterFile:
    text = importlib.resources.files("augury").joinpath(FILE_NAME).read_text(encoding="utf-8")
    file = parse_file(text, "built-in", "built-in register")
    assert not file.notes, file.notes
    return file
