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
    name: str, hooks: Sequence[str] = DEFAULT_HOOKS, *, path: Path | None = None, register: Register | None = None
) -> Package:
    """Write a complete package with a method that works.

    Args:
        name: of the method.
        hooks: what it implements, at least one.
        path: the folder; it must be empty or not exist. `augury-NAME` in the current one when None.
        register: what names are taken; this machine's when None.

    Raises:
        UsageError: the name is no such name or taken, a hook does not exist or is named twice, or the folder is none or
            holds files; all of that in one message.
        AuguryError: the folder cannot be written; nothing is left of it then.
    """
    register = register or Register.load()
    problems, names = _hook_faults(hooks), None
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
    hooks = tuple(hook for hook in HOOKS if hook in hooks)
    files = render(names, hooks)
    write(folder, files)
    return Package(folder, tuple(files), hooks, _entry(names, folder))


def render(names: Names, hooks: Sequence[str]) -> dict[str, str]:
    """The text of each file by its path in the package.

    Args:
        names: of the package's parts.
        hooks: of the method, in the contract's order.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    known = _known(names, hooks)
    return {
        file.format(module=names.module): environment.get_template(template).render(known)
        for file, template in FILES.items()
    }


def _known(names: Names, hooks: Sequence[str]) -> dict[str, object]:
    """What the templates use."""
    examples = [EXAMPLES[hook] for hook in hooks]
    return {
        "name": names.method,
        "distribution": names.distribution,
        "module": names.module,
        "cls": names.cls,
        "title": names.title,
        "version": VERSION,
        "core": _compatible(__version__),
        "contract": CONTRACT_VERSION,
        "summary": _summary(names, hooks),
        "stage": "pre_train_stage" in hooks,
        "augment": "augment_batch" in hooks,
        "loss": "compute_loss" in hooks,
        "epoch": "post_epoch" in hooks,
        "functions": sorted(example.function for example in examples),
        "option": examples[-1].option,
        "shown": [f"`{names.method}/{example.log}`, {example.told}" for example in examples if example.log],
    }


def _summary(names: Names, hooks: Sequence[str]) -> str:
    *first, last = [EXAMPLES[hook].does for hook in hooks]
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


def _hook_faults(hooks: Sequence[str]) -> list[str]:
    if not hooks:
        return [f"a method implements at least one hook. Name one of {', '.join(HOOKS)}."]
    return [
        unknown("hook", hook, HOOKS, label="Hooks") if hook not in HOOKS else f"hook `{hook}` is named twice."
        for hook, times in Counter(hooks).items()
        if hook not in HOOKS or times > 1
    ]
