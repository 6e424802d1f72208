"""What import-linter cannot see: modules named in texts, names of plugins, and what the tests of a part import.

Which package imports which is import-linter's business (`make layers`, contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.system.fresh import PROGRAM, ROOT

import augury

PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
# A module of augury's packages, and every package but the one door.
INSIDE = re.compile(r"augury\.|augury_(train|lab|authoring|cli)(\.|$)")
BELOW = {
    "core": [],
    "train": ["core"],
    "lab": ["core", "train"],
    "authoring": ["core", "train"],
    "cli": ["core", "train", "lab", "authoring"],
}
# `augmix` is a word of pipelines, too, as torchvision has it.
METHOD = re.compile(
    rf"(?<![a-z])({'|'.join(plugin.name for plugin in PLUGINS if plugin.name != 'augmix')})(?![a-z])|augury_augmix",
    re.IGNORECASE,
)


def package(part: str) -> Path:
    """The folder of a distribution's package."""
    return ROOT / part / "src" / ("augury" if part == "core" else f"augury_{part}")


def allowed(part: str) -> set[str]:
    """The packages that a distribution may import."""
    return {package(name).name for name in [part, *BELOW[part]]}


def private_uses(source: str, public: frozenset[str]) -> Iterator[str]:
    """Yield, with its line, every use of augury in a module's source that goes past the public names."""
    tree = ast.parse(source)
    aliases = {"augury"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {name.asname for name in node.names if name.name == "augury" and name.asname}
            yield from (f"{node.lineno}: import {n.name}" for n in node.names if INSIDE.match(n.name))
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if INSIDE.match(node.module or ""):
                yield f"{node.lineno}: from {node.module} import"
            elif node.module == "augury":
                yield from (f"{node.lineno}: {n.name}" for n in node.names if n.name not in public)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (f"{node.lineno}: {a.value}" for a in node.args if names_augury(a))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in aliases and attribute not in public:
                yield f"{node.lineno}: {name}.{attribute}"


def names_augury(node: ast.expr) -> bool:
    """Tell whether an argument is the name of a module inside one of augury's packages."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(INSIDE.match(node.value))


@pytest.mark.parametrize("plugin", [*PLUGINS, *EXAMPLES], ids=lambda plugin: plugin.name)
def test_a_plugin_uses_only_public_names_of_augury(plugin: Path) -> None:
    public = frozenset(augury.__all__)
    files = sorted(plugin.glob("src/**/*.py"))
    found = [f"{path.relative_to(ROOT)}:{use}" for path in files for use in private_uses(path.read_text(), public)]
    assert files
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import augury.batch",
        "import augury.batch as b",
        "from augury.batch import Batch",
        "from augury import training",
        "import augury\naugury.training.train()",
        "import augury as a\na.registry",
        "from importlib import import_module\nimport_module('augury.batch')",
        "from importlib import import_module\nimport_module('augury_train.config')",
        "import augury_train",
        "from augury_lab.report import write_report",
        "if TYPE_CHECKING:\n    from augury.run import Run",
    ],
)
def test_a_private_use_is_found(source: str) -> None:
    assert list(private_uses(source, frozenset({"Batch", "Method"})))


@pytest.mark.parametrize(
    "source",
    [
        "import augury\nclass M(augury.Method): ...",
        "import augury as a\na.Batch",
        "from augury import Batch, Method as Base",
        "from .functional import loss",
        "import augury_isda.functional\nimport torch",
    ],
)
def test_a_public_use_is_not(source: str) -> None:
    assert not list(private_uses(source, frozenset({"Batch", "Method"})))


@pytest.mark.parametrize("part", [part for part in PROGRAM if part != "cli"])
def test_nothing_but_a_plugin_and_the_help_names_a_method(part: str) -> None:
    apart = {"registry.toml"}
    files = [p for p in package(part).rglob("*") if p.is_file() and p.suffix != ".pyc" and p.name not in apart]
    lines = [(path, number, line) for path in files for number, line in enumerate(path.read_text().splitlines(), 1)]
    assert PLUGINS
    assert len(lines) > 500
    assert not [f"{path.relative_to(ROOT)}:{number}: {line}" for path, number, line in lines if METHOD.search(line)]


@pytest.mark.parametrize("part", [part for part in PROGRAM if part != "cli"])
def test_no_module_is_named_that_may_not_be_imported(part: str) -> None:
    """`import_module("augury_train.data")` is an arrow, too. The exceptions are core's one door and what forwards."""
    above = re.compile(rf"({'|'.join({f'augury_{p}' for p in PROGRAM if p != 'core'} - allowed(part))})(\.\w+)*")
    doors = (
        {"__init__.py", "backbones.py", "registry.py", "outcome.py", "plugin.py", "suite.py"}
        if part == "core"
        else set()
    )
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}"
        for path in package(part).rglob("*.py")
        if path.name not in doors or path.parts[-2] not in ("augury", "experiment", "testing")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and above.fullmatch(node.value)
    ]
    assert not found


@pytest.mark.parametrize("part", PROGRAM)
def test_the_tests_of_a_part_use_what_the_part_may_use(part: str) -> None:
    """What spans more is a test of the whole, in tests/system."""
    found = []
    for path in sorted((ROOT / "tests" / part).glob("*.py")):
        text = path.read_text()
        used = set(re.findall(r"^\s*(?:from|import) (augury\w*)", text, flags=re.MULTILINE))
        used |= {
            augury._HOME[name].partition(".")[0]
            for name in re.findall(r"\baugury\.(\w+)", text)
            if name in augury._HOME
        }
        used |= {f"augury_{name}" for name in re.findall(r"^from tests\.(\w+)[. ]", text, flags=re.MULTILINE)}
        found += [f"{path.name}: {name}" for name in sorted(used - allowed(part) - {"augury_core"})]
    assert not found


def test_every_part_and_plugin_is_in_the_contracts() -> None:
    """The contracts name packages one by one: a new folder must join them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    arrows, ours, methods, apart, *floors = settings["contracts"]
    parts = {package(part).name for part in PROGRAM}
    packages = {f"augury_{plugin.name}" for plugin in PLUGINS}
    assert {path.parent.name for path in ROOT.glob("*/pyproject.toml")} == set(PROGRAM)
    assert set(settings["root_packages"]) == parts | packages
    assert arrows["layers"] == ["augury_cli", "augury_lab | augury_authoring", "augury_train", "augury"]
    assert (set(ours["source_modules"]), set(ours["forbidden_modules"])) == (parts, packages)
    assert (set(methods["source_modules"]), set(methods["forbidden_modules"])) == (packages, parts - {"augury"})
    assert set(apart["modules"]) == packages
    assert {name for floor in floors for name in floor["containers"]} == parts - {"augury_cli"}
    assert all(floor["exhaustive"] for floor in floors)


def test_core_is_small() -> None:
    lines = sum(len(path.read_text().splitlines()) for path in package("core").rglob("*.py"))
    assert lines <= 3500, "what only the trainer, the lab or authors need lives there"


def test_the_design_page_names_files_that_are_there() -> None:
    text = (ROOT / "docs/design.md").read_text()
    missing, seen = [], 0
    for part in PROGRAM:
        _, _, after = text.partition(f"In `{package(part).relative_to(ROOT).as_posix()}`")
        table = after.partition("| question | file |\n")[2].partition("\n\n")[0]
        for row in table.splitlines()[1:]:
            folder = ""
            for other, name in re.findall(r"(?:(core|train)'s )?`([\w/]+(?:/|\.py))`", row.split("|")[2]):
                seen += 1
                places = [package(other or part) / name, package(part) / folder / name]
                missing += [] if any(place.exists() for place in places) else [f"{part}: {name}"]
                folder = name.rpartition("/")[0] or folder
    assert seen > 80
    assert not missing
