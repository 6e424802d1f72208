"""What a new package's name makes of its parts, and whether they are free."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import keyword
import re
import unicodedata
from dataclasses import dataclass

from augury.errors import UsageError
from augury.listing import Found
from augury.registry import Register

NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
LONGEST = 32
RULE = f"lower-case letters and digits in words joined by _ or -, a letter first, at most {LONGEST} characters"
BASELINE = "baseline"
"""A comparison's composition of nothing."""
# What `method.py` imports.
_IMPORTED = ("Any", "Field", "Generator", "Tensor")


@dataclass(frozen=True)
class Names:
    """One name, in the spellings that the parts of a package need.

    Attributes:
        method: what a run calls it.
        distribution: the installable package.
        module: what is imported.
        cls: the method's class.
        title: what a reader sees.
    """

    method: str
    distribution: str
    module: str
    cls: str
    title: str


def spell(name: str) -> Names:
    """Spell a method's name for each part of its package.

    Raises:
        UsageError: it is not such a name.
    """
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
        near = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", plain).lower()).strip("_")
        hint = f" Try `{near}`." if NAME.fullmatch(near) and len(near) <= LONGEST else ""
        raise UsageError(f"`{name}` cannot be the name of a new method. Allowed: {RULE}.{hint}")
    words = re.split("[_-]", name)
    cls = "".join(word.capitalize() for word in words)
    if keyword.iskeyword(cls) or cls in _IMPORTED:
        cls += "Method"
    return Names(name, f"augury-{'-'.join(words)}", f"augury_{'_'.join(words)}", cls, " ".join(words).capitalize())


def check_free(names: Names, register: Register) -> None:
    """Refuse a name that something on this machine has already.

    Raises:
        UsageError: what has it, and what to do.
    """
    name = names.method
    if name == BASELINE or _taken(name):
        raise UsageError(
            f"`{name}` cannot be the name of a method: torch's modules, or augury, use it themselves. "
            "Choose another name."
        )
    for found in register.methods():
        if _normal(found.name) == _normal(name):
            raise UsageError(f"`{name}` is taken: {_holder(found)}")
    for alias in register.aliases.values():
        if _normal(alias.name) == _normal(name):
            raise UsageError(f"`{name}` is taken: it is an alias of {alias.method}. Choose another name.")
    try:
        version = importlib.metadata.version(names.distribution)
    except importlib.metadata.PackageNotFoundError:
        pass
    else:
        raise UsageError(f"`{name}` is taken: {names.distribution} {version} is installed. Choose another name.")
    if spec := importlib.util.find_spec(names.module):
        where = spec.origin or ", ".join(spec.submodule_search_locations or ())
        raise UsageError(f"`{name}` is taken: Python imports {names.module} from {where}. Choose another name.")


def _holder(found: Found) -> str:
    """Who has the name, and what to do."""
    listed = found.entry
    if found.status == "not installed" and listed is not None and listed.layer == "user":
        return (
            f"your register lists {found.name} of {found.distribution}, which is not installed. Choose another name, "
            f"or take it off with `augury plugins untrust {found.name}`."
        )
    of = f"{found.distribution} {found.version}" if found.version else f"{found.distribution}, which augury lists,"
    return f"{of} has the method {found.name}. Choose another name."


def _normal(name: str) -> str:
    return name.lower().replace("-", "_")


def _taken(name: str) -> bool:
    from augury.method import taken_name  # imports torch

    return taken_name(name)
