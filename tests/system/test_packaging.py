"""The distributions: their metadata agree with each other and the register, their wheels hold all they need."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.fresh import PROGRAM, ROOT

import augury

PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
PARTS = [*(ROOT / part for part in PROGRAM), *PLUGINS]
# What is installed under another name than it is imported by.
DISTRIBUTION = {"PIL": "pillow", "sklearn": "scikit-learn", "augury": "augury-core", "onnx_ir": "onnx-ir"}
DISTRIBUTION |= {f"augury_{part}": f"augury-{part}" for part in PROGRAM}


def read(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def project(part: Path) -> dict[str, Any]:
    return read(part / "pyproject.toml")["project"]


def package(part: Path) -> Path:
    """The one package of a distribution."""
    (found,) = part.glob("src/*/__init__.py")
    return found.parent


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level names of what a module imports, at its top or later."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def test_the_register_in_core_is_a_copy_of_the_canonical_one() -> None:
    assert (ROOT / "registry.toml").read_bytes() == (ROOT / "core/src/augury/registry.toml").read_bytes()


def test_the_register_lists_each_plugin_as_its_metadata_do() -> None:
    methods = read(ROOT / "registry.toml")["methods"]
    listed = {name: (entry["distribution"], entry["entry_point"]) for name, entry in methods.items()}
    built = {
        name: (project(plugin)["name"], target)
        for plugin in PLUGINS
        for name, target in project(plugin)["entry-points"]["augury.methods"].items()
    }
    assert set(built) == {plugin.name for plugin in PLUGINS}
    assert listed == built


def test_all_distributions_have_one_version() -> None:
    assert {project(part)["version"] for part in [*PARTS, ROOT]} == {augury.__version__}


def test_the_umbrella_brings_every_part() -> None:
    assert names(project(ROOT)["dependencies"]) == {project(part)["name"] for part in PARTS}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_is_imported_is_declared(part: Path) -> None:
    """So that each distribution installs alone. What core declares, its dependents may rely on."""
    files = list(package(part).rglob("*.py"))
    used = {name for path in files for name in imported(path)} - set(sys.stdlib_module_names) - {package(part).name}
    if part.name == "core":
        # The one door: their types for mypy, and their names in an error where they are missing.
        used -= {"augury_train", "augury_lab", "augury_authoring"}
    extras = [r for requirements in project(part).get("optional-dependencies", {}).values() for r in requirements]
    declared = names([*project(part)["dependencies"], *extras]) | names(project(ROOT / "core")["dependencies"])
    assert files
    assert {DISTRIBUTION.get(name, name) for name in used} <= declared


def test_constraints_pin_exactly_and_name_no_index() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[a-z0-9._-]+==[\w.]+", line)] == []
    tools = project(ROOT)["optional-dependencies"]["dev"]
    needed = names([r for part in [*PARTS, ROOT] for r in project(part)["dependencies"]] + tools)
    assert {name for name in needed if not name.startswith("augury")} <= {line.partition("==")[0] for line in pins}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], zipfile.ZipFile]:
    """Build a wheel from its folder with the hatchling of this environment; nothing is fetched."""

    def wheel(part: Path) -> zipfile.ZipFile:
        folder = tmp_path_factory.mktemp(part.name)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        done = subprocess.run(command, cwd=part, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
        assert done.returncode == 0, done.stderr
        (path,) = folder.glob("*.whl")
        return zipfile.ZipFile(path)

    return wheel


def entry_points(wheel: zipfile.ZipFile) -> dict[str, dict[str, str]]:
    (path,) = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(wheel.read(path).decode())
    return {section: dict(parser[section]) for section in parser.sections()}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_wheel_holds_the_whole_package(part: Path, build: Callable[[Path], zipfile.ZipFile]) -> None:
    source = package(part)
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(source.parent).as_posix(): path.read_bytes() for path in files}
    with build(part) as wheel:
        inside = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
        info = {name.partition("/")[2]: wheel.read(name) for name in wheel.namelist() if ".dist-info/" in name}
    assert inside == expected
    assert f"{source.name}/py.typed" in inside
    assert info["licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    if part.name == "core":
        assert "augury/registry.toml" in inside


def test_wheels_carry_their_entry_points(build: Callable[[Path], zipfile.ZipFile]) -> None:
    with build(ROOT / "cli") as wheel:
        assert entry_points(wheel) == {"console_scripts": {"augury": "augury_cli.__main__:start"}}
    methods = read(ROOT / "registry.toml")["methods"]
    for plugin in PLUGINS:
        with build(plugin) as wheel:
            assert entry_points(wheel) == {"augury.methods": {plugin.name: methods[plugin.name]["entry_point"]}}


def test_the_umbrella_wheel_has_no_code(build: Callable[[Path], zipfile.ZipFile]) -> None:
    with build(ROOT) as wheel:
        assert [name for name in wheel.namelist() if ".dist-info/" not in name] == []
