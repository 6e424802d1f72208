"""Writes docs/hooks.md from the hooks' specifications and the docstrings of what they are given, and docs/python.md
from those of what Python users call.

`python docs/reference.py`, or `make docs`. tests/system/test_reference.py compares the files with what this makes of
them, so they cannot drift.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import augury
from augury import hookspecs
from augury_lab.experiment.table import Comparison, Row
from augury_train.inference.export import Export
from augury_train.inference.predict import Prediction
from augury_train.measures import Measures
from augury_train.training.rehearsal import Rehearsal
from augury_train.training.result import Costs

DOCS = Path(__file__).parent
HOOKS = f"""# The hooks

Written from the specifications in `augury/hookspecs.py` and the docstrings of what they name, by `make docs`; a test
keeps it so. Do not edit it by hand. This is contract {augury.CONTRACT_VERSION} (`augury.CONTRACT_VERSION`).

A method is a subclass of [`augury.Method`](#method) that implements at least one of five hooks, each marked with
`@augury.hookimpl`. It names the parameters it needs, any of the hook's, without defaults. Hooks are called in the order
in which the user names the methods. [authors.md](authors.md) starts from what a paper needs,
[composition.md](composition.md) tells what several methods do together, [own-loop.md](own-loop.md) how a loop calls
them.

Letters in shapes: N images, M = views · N rows (view-major: all of view 0, then all of view 1), C classes, K labels
that a row is mixed from, A features, ch × H × W pixels.
"""
PARTS = {
    augury.Batch: "batch",
    augury.ModelOutput: "output",
    augury.Run: "run",
    augury.Ranks: "run.ranks",
    augury.Method: "self",
    augury.Options: "self.options",
    augury.Spec: "self.spec",
    augury.Frozen: "self.freeze(network)",
}
"""What the hooks are given and what a method is, with the expression by which a hook has it."""
PYTHON = """# In Python

Written from docstrings by `make docs`; a test keeps it so. Do not edit it by hand. `import augury` costs nothing: each
of these is imported on first use.

Runs, comparisons, evaluations, predictions and exports are the commands of the same names, with typed results. A
composition is what a loop of one's own works with: [own-loop.md](own-loop.md), [lightning.md](lightning.md). What a
method's hooks are given is in [hooks.md](hooks.md). Settings are those of [settings.md](settings.md).
"""
CALLS = {
    "Runs": (augury.train, augury.resume, augury.rehearse, augury.Result, Costs, Measures, Rehearsal),
    "Comparisons and evaluations": (augury.compare, Comparison, Row, augury.evaluate),
    "A trained network": (augury.load_classifier, augury.Classifier, augury.predict, Prediction, augury.export, Export),
    "A loop of one's own": (augury.compose, augury.Composition, augury.forward, augury.Host),
    "Which methods may run": (augury.Register,),
    "Errors": (augury.AuguryError, augury.UsageError, augury.MethodError, augury.Interrupted),
}
SECTION = re.compile(r"(Args|Returns|Raises|Attributes|Class attributes):\n")
ITEM = re.compile(r"^([\w, ]+): (.*)$", re.DOTALL)


class _Bare(str):
    """An annotation that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def pages() -> dict[str, str]:
    """The text of each file, Markdown, by its name."""
    return {"hooks.md": _hooks(), "python.md": _python()}


def _python() -> str:
    parts = [PYTHON]
    for title, things in CALLS.items():
        parts.append(f"## {title}\n")
        for thing in things:
            told = _class(thing) if isinstance(thing, type) else f"```python\n{_long(thing)}\n```\n\n{_text(thing)}"
            parts.append(f"### {thing.__name__}\n\n{told}\n")
    return "\n".join(parts)


def _long(function: Callable[..., Any]) -> str:
    """A signature with a parameter a line."""
    name, _, rest = signature(function).partition("(")
    inside, _, returned = rest.rpartition(") -> ")
    parameters = re.split(r", (?=\*|\w+:)", inside)
    return f"{name}(\n    " + ",\n    ".join(parameters) + f",\n) -> {returned}"


def _hooks() -> str:
    parts = [HOOKS, _overview()]
    for name in hookspecs.HOOKS:
        parts.append(f"## {name}\n\n{_hook(name)}\n")
    parts += [f"## {cls.__name__}\n\n`{place}`: {_class(cls)}\n" for cls, place in PARTS.items()]
    return "\n".join(parts)


def signature(function: Callable[..., Any]) -> str:
    """A function's name and parameters, `self` left out, as its source has them."""
    found = inspect.signature(function)
    kept = [
        parameter.replace(annotation=_Bare(parameter.annotation))
        for name, parameter in found.parameters.items()
        if name not in ("self", "cls")
    ]
    return function.__name__ + str(found.replace(parameters=kept, return_annotation=_Bare(found.return_annotation)))


def _overview() -> str:
    rows = []
    for name in hookspecs.HOOKS:
        spec = getattr(hookspecs, name)
        first = getattr(spec, f"{hookspecs.PROJECT}_spec")["firstresult"]
        form = "the first result; others wrap it" if first else "every method, in order"
        what = _doc(spec).partition("\n\n")[0]
        rows.append(f"| [{name}](#{name}) | {form} | {_cell(what)} |")
    return "\n".join(["| hook | calls | what it does |", "|---|---|---|", *rows, ""])


def _doc(thing: Any) -> str:
    """Its own docstring, none that it inherits."""
    return inspect.cleandoc(thing.__doc__ or "")


def _hook(name: str) -> str:
    spec = getattr(hookspecs, name)
    return f"```python\n{signature(spec)}\n```\n\n{_text(spec)}"


def _class(cls: type) -> str:
    parts = [_text(cls)]
    members = list(_members(cls))
    facts = [(name, member) for name, member in members if isinstance(member, property)]
    if facts:
        rows = [f"| `{name}` | {_cell(_doc(member)) or _type(member)} |" for name, member in facts]
        parts.append("\n".join(["| property | meaning |", "|---|---|", *rows]))
    for _, member in members:
        if not isinstance(member, property):
            parts.append(f"**`{signature(member)}`**\n\n{_text(member)}".rstrip())
    return "\n\n".join(parts)


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Its own public properties and functions."""
    for name, member in vars(cls).items():
        member = getattr(member, "__func__", member)
        if not name.startswith("_") and (isinstance(member, property) or inspect.isfunction(member)):
            yield name, member


def _type(member: property) -> str:
    return f"`{inspect.signature(member.fget).return_annotation}`"


def _text(thing: Any) -> str:
    """A docstring as Markdown: paragraphs on one line, code fenced, sections as tables and sentences."""
    blocks = re.split(r"\n\n+", _doc(thing))
    return "\n\n".join(_block(block) for block in blocks)


def _block(block: str) -> str:
    section = SECTION.match(block)
    if section:
        return _section(section[1], textwrap.dedent(block[section.end() :]))
    if block.startswith("    "):
        return f"```python\n{textwrap.dedent(block)}\n```"
    return _joined(block)


def _section(title: str, text: str) -> str:
    if title == "Returns":
        return f"Returns {_joined(text)}"
    items = [_joined(item) for item in re.split(r"\n(?!\s)", text)]
    if title == "Raises":
        return "\n\n".join("Raises " + re.sub(r"^(\w+)", r"`\1`", item) for item in items)
    what = {"Args": "argument", "Attributes": "attribute", "Class attributes": "class attribute"}[title]
    rows = [
        f"| `{found[1].replace(', ', '`, `')}` | {_cell(found[2])} |" for item in items if (found := ITEM.match(item))
    ]
    assert len(rows) == len(items), f"not `name: meaning`: {items}"
    return "\n".join([f"| {what} | meaning |", "|---|---|", *rows])


def _joined(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _joined(text).replace("|", "\\|")


if __name__ == "__main__":
    for file, text in pages().items():
        (DOCS / file).write_text(text, encoding="utf-8")
