"""A new method's package: rendered and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from augury import __version__
from augury.discovery import Claim, range_from
from augury.errors import UsageError, refuse_all, unknown
from augury.hookspecs import CONTRACT_VERSION, HOOKS
from augury.register_file import Entry
from augury.registry import Register
from augury_authoring.scaffold.folder import faults, write
from augury_authoring.scaffold.forms import FORMS, Form
from augury_authoring.scaffold.names import Names, check_free, spell

DEFAULT_HOOKS = ("augment_batch",)
VERSION = "0.1.0"
TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "pyproject.toml": "pyproject.toml.j2",
    "README.md": "README.md.j2",
    ".gitignore": "gitignore.j2",
    "src/{module}/__init__.py": "init.py.j2",
    "src/{module}/method.py": "method.py.j2",
    "src/{module}/functional.py": "functional.py.j2",
    "src/{module}/py.typed": "py.typed.j2",
    "src/{module}/recipes/digits.toml": "recipe.toml.j2",
    "tests/test_contract.py": "test_contract.py.j2",
    "tests/test_functional.py": "test_functional.py.j2",
}
OF_A_FORM = ("method.py.j2", "functional.py.j2", "test_functional.py.j2")
"""Templates that a form has itself."""
LINE = 120
"""Characters of the longest line in a new package."""


@dataclass(frozen=True)
class Example:
    """What stands in for one hook until its author writes the real thing.

    Attributes:
        does: in few words.
        function: its mathematics.
        option: an option of it, with a value for the command line.
        log: the name under which it logs a number, "" where it logs none.
        told: what that number is.
    """

    does: str
    function: str
    option: str
    log: str = ""
    told: str = ""


EXAMPLES = {
    "pre_train_stage": Example(
        does="a number measured on the images before training",
        function="pixel_sums",
        option="scale=1.0",
        log="scale",
        told="in the first epoch's row, what was measured",
    ),
    "augment_batch": Example(does="noise on the images", function="add_noise", option="noise=0.1"),
    "compute_loss": Example(
        does="a penalty on the logits",
        function="logit_penalty",
        option="penalty=0.001",
        log="penalty",
        told="in each epoch's row, its mean without the factor",
    ),
    "post_step": Example(does="a bound on the weights", function="bounded", option="bound=10.0"),
    "post_epoch": Example(
        does="a running gap of the losses",
        function="running_mean",
        option="momentum=0.5",
        log="gap",
        told="in each epoch's row, the running gap",
    ),
}


@dataclass(frozen=True)
class Package:
    """A package that was written.

    Attributes:
        folder: where.
        files: their paths in it.
        hooks: that its method implements, in the contract's order.
        entry: with which a register trusts it.
    """

    folder: Path
    files: tuple[str, ...]
    hooks: tuple[str, ...]
    entry: Entry


def new_package(
    name: str,
    hooks: Sequence[str] = (),
    *,
    form: str | None = None,
    path: Path | None = None,
    register: Register | None = None,
) -> Package:
    """Write a complete package with a method that works.

    Args:
        name: of the method.
        hooks: what it implements; `DEFAULT_HOOKS` when empty, unless a form says it.
        form: the name of a form that it starts from, in `FORMS`; an example of each hook when None.
        path: the folder; it must be empty or not exist. `augury-NAME` in the current one when None.
        register: what names are taken; this machine's when None.

    Raises:
        UsageError: the name is no such name or taken, a hook or the form does not exist, a hook is named twice or
            beside a form, or the folder is none or holds files; all of that in one message.
        AuguryError: the folder cannot be written; nothing is left of it then.
    """
    register = register or Register.load()
    problems, names = _form_faults(form, hooks), None
    if form is None:
        hooks = hooks or DEFAULT_HOOKS
        problems += _hook_faults(hooks)
    try:
        names = spell(name)
        check_free(names, register)
    except UsageError as error:
        problems.append(str(error))
    folder = path or (Path(names.distribution) if names else None)
    if folder is not None:
        problems += faults(folder)
    refuse_all(problems)
    assert names is not None, "a name that cannot be spelt is a problem"
    assert folder is not None, "a name that can be spelt names a folder"
    start = None if form is None else FORMS[form]
    hooks = tuple(hook for hook in HOOKS if hook in hooks) if start is None else start.hooks
    files = render(names, hooks, start)
    write(folder, files)
    return Package(folder, tuple(files), hooks, _entry(names, folder))


def render(names: Names, hooks: Sequence[str], form: Form | None = None) -> dict[str, str]:
    """The text of each file by its path in the package.

    Args:
        names: of the package's parts.
        hooks: of the method, in the contract's order.
        form: that it starts from.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # One whose code is that of the hooks is told as they are.
    form = form if form is not None and form.templates else None
    known = _known(names, hooks, form)
    own = {} if form is None else {name: f"{form.templates}/{name}" for name in OF_A_FORM}
    return {
        file.format(module=names.module): environment.get_template(own.get(template, template)).render(known)
        for file, template in FILES.items()
    }


def _known(names: Names, hooks: Sequence[str], form: Form | None) -> dict[str, object]:
    """What the templates use."""
    examples = [] if form is not None else [EXAMPLES[hook] for hook in hooks]
    does = [form.does] if form is not None else [example.does for example in examples]
    return {
        "name": names.method,
        "distribution": names.distribution,
        "module": names.module,
        "cls": names.cls,
        "title": names.title,
        "version": VERSION,
        "core": _compatible(__version__),
        "contract": CONTRACT_VERSION,
        "summary": _summary(names, does),
        "form": form,
        "stage": form is None and "pre_train_stage" in hooks,
        "augment": form is None and "augment_batch" in hooks,
        "loss": form is None and "compute_loss" in hooks,
        "step": form is None and "post_step" in hooks,
        "epoch": form is None and "post_epoch" in hooks,
        "imported": _import(names.module, sorted(example.function for example in examples)),
        "option": examples[-1].option if form is None else "=".join(map(str, form.option)),
        "shown": [f"`{names.method}/{example.log}`, {example.told}" for example in examples if example.log],
    }


def _import(module: str, functions: Sequence[str]) -> str:
    """The line that imports the functions of the mathematics, or several where it would be too long for one."""
    line = f"from {module}.functional import {', '.join(functions)}"
    if len(line) <= LINE:
        return line
    return "\n".join([f"from {module}.functional import (", *(f"    {name}," for name in functions), ")"])


def _summary(names: Names, parts: Sequence[str]) -> str:
    *first, last = parts
    does = f"{', '.join(first)} and {last}" if first else last
    return f"{names.title}, an example to start from: {does}"


def _compatible(version: str) -> str:
    """The range of versions that what was made for `version` may be used with."""
    from packaging.version import Version

    v = Version(version)
    least = v.public if v.is_prerelease else f"{v.major}.{v.minor}"
    return f">={least},<0.{v.minor + 1}" if v.major == 0 else f">={least},<{v.major + 1}"


def _entry(names: Names, folder: Path) -> Entry:
    """What is trusted: that project, and not whatever else has the name of its distribution. Hooks and summary are left
    to the package, whose author is about to change them."""
    point = f"{names.module}:{names.cls}"
    versions = range_from(Claim(names.method, names.distribution, VERSION, point))
    return Entry(names.method, names.distribution, point, versions, str(folder.resolve()))


def _form_faults(form: str | None, hooks: Sequence[str]) -> list[str]:
    if form is None:
        return []
    if form not in FORMS:
        return [unknown("form", form, FORMS, label="Forms")]
    return [f"the form `{form}` has its own hooks. Leave out --hook, or --from."] if hooks else []


def _hook_faults(hooks: Sequence[str]) -> list[str]:
    return [
        unknown("hook", hook, HOOKS, label="Hooks") if hook not in HOOKS else f"hook `{hook}` is named twice."
        for hook, times in Counter(hooks).items()
        if hook not in HOOKS or times > 1
    ]
