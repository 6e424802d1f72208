"""The method under test: found, with options to test it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

from pydantic import ValidationError

from augury.choice import Chosen
from augury.discovery import GROUP
from augury.errors import UsageError
from augury.method import Method
from augury.registry import Register
from augury.validation import explain


@dataclass(frozen=True)
class Candidate:
    """One method under test.

    Attributes:
        name: what a composition calls it.
        cls: its class, which `check_method` may yet refuse.
        options: made of what the test gives.
        installed: whether a package offers it under that name.
    """

    name: str
    cls: type[Method]
    options: Any
    installed: bool = False

    @property
    def chosen(self) -> Chosen:
        """As compositions take it."""
        return Chosen(self.name, self.cls, self.options)


def find(method: object, options: Mapping[str, Any]) -> Candidate:
    """The method that a test names: a name of an installed method, which a register need not list, or a class.

    Raises:
        UsageError: a name that is not installed or that the register refuses, a class that is no method, or options
            that it refuses.
    """
    if isinstance(method, str) and method:
        name, cls = method, _load(method)
    elif isinstance(method, type):
        name, cls = method.__name__.lower(), method
    else:
        raise UsageError(f"`method` must be the name of an installed method or a class, got {method!r}.")
    if not issubclass(cls, Method):
        raise UsageError(f"{name}: {cls!r} is no method: it must be a subclass of augury.Method.")
    try:
        return Candidate(name, cls, cls.Options(**options), isinstance(method, str))
    except ValidationError as error:
        lines = explain(error, cls.Options, name, "option", "options = {{{path!r}: {value!r}}}")
        raise UsageError("\n".join(lines)) from None


def _load(name: str) -> type:
    """A class by its name. To name a method in a test is to trust it: in this process, and nowhere else."""
    register = Register.load(trust=[name])
    try:
        return register.load_class(name)
    except UsageError as error:
        if not isinstance(error.__cause__, UsageError):
            raise
        # It was imported, and `check_method` refuses it: that is for a check of the suite to tell.
        found, _ = register.resolve(name)
        loaded = EntryPoint(found.name, found.entry_point, GROUP).load()
        if not isinstance(loaded, type):
            raise
        return loaded


def installed_others(name: object) -> list[str]:
    """The names of all other methods that a run could use here."""
    return [found.name for found in Register.load().methods() if found.status == "ready" and found.name != name]
