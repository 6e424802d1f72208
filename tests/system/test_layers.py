"""What import-linter cannot see: plugins use public names only, and core names no method.

Which package imports which is import-linter's business (`make layers`, contracts in pyproject.toml).
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import augury

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
CORE = ROOT / "core" / "src" / "augury"
METHOD = re.compile("|".join(plugin.name for plugin in PLUGINS), re.IGNORECASE)


def private_uses(source: str, public: frozenset[str]) -> Iterator[str]:
    """Yield, with its line, every use of augury in a module's source that goes past the public names."""
    tree = ast.parse(source)
    aliases = {"augury"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {name.asname for name in node.names if name.name == "augury" and name.asname}
            yield from (f"{node.lineno}: import {n.name}" for n in node.names if n.name.startswith("augury."))
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            if (node.module or "").startswith("augury."):
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
    """Tell whether an argument is the name of a module of augury."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("augury.")


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


def test_core_names_no_method() -> None:
    files = [p for p in CORE.rglob("*") if p.is_file() and p.suffix != ".pyc" and p != CORE / "registry.toml"]
    lines = [(path, number, line) for path in files for number, line in enumerate(path.read_text().splitlines(), 1)]
    assert PLUGINS
    assert len(lines) > 500
    assert not [f"{path.relative_to(ROOT)}:{number}: {line}" for path, number, line in lines if METHOD.search(line)]


def test_every_plugin_is_kept_apart() -> None:
    """The contracts name packages one by one: a new folder under plugins/ must join them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    core, cli, methods, apart, _ = settings["contracts"]
    packages = {f"augury_{plugin.name}" for plugin in PLUGINS}
    assert set(settings["root_packages"]) == {"augury", "augury_cli"} | packages
    assert set(core["forbidden_modules"]) == {"augury_cli"} | packages
    assert set(cli["forbidden_modules"]) == packages
    assert set(methods["source_modules"]) == packages
    assert set(apart["modules"]) == packages
