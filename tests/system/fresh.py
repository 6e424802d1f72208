"""An environment that has the dependencies of this one, and of augury only what a test installs into it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROGRAM = ("core", "train", "lab", "authoring", "cli")
"""The distributions, by their folders, that make the command `augury`."""


def build_wheel(part: Path, folder: Path) -> Path:
    """Build the wheel of a distribution with the hatchling of this environment; nothing is fetched.

    Args:
        part: the folder of its pyproject.toml.
        folder: where the wheel goes, in a folder of its own.
    """
    out = folder / part.name
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    _run(command, cwd=part)
    (wheel,) = out.glob("*.whl")
    return wheel


def needed_parts(part: str) -> list[str]:
    """Return the folders of a distribution and of all of augury's that it declares, directly or not."""
    found = [part]
    for one in found:
        declared = tomllib.loads((ROOT / one / "pyproject.toml").read_text())["project"]["dependencies"]
        names = [re.split(r"[^\w-]", requirement)[0] for requirement in declared]
        found += [name.removeprefix("augury-") for name in names if name.startswith("augury-")]
        found = list(dict.fromkeys(found))
    return found


def fresh_environment(
    folder: Path, wheels: Sequence[Path], editable: Sequence[Path] = (), *, declared_only: bool = False
) -> Path:
    """Make a virtual environment that finds this one's dependencies by links, and nothing of augury but what is named.

    Args:
        folder: where it goes; it must not exist.
        wheels: files to install.
        editable: folders to install editable.
        declared_only: of the dependencies, only those that the wheels declare, and what those need in turn.

    Returns:
        its python; the commands of what is installed (`augury`) lie beside it.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    every = {path.name for path in Path(sysconfig.get_path("purelib")).iterdir()}
    for name in _declared(wheels) & every if declared_only else every:
        if not name.startswith(("augury", "_augury", "__")) and not name.endswith(".pth"):
            (site / name).symlink_to(Path(sysconfig.get_path("purelib"), name))
    install(python, *map(str, wheels), *(word for part in editable for word in ("-e", str(part))))
    return python


def _declared(wheels: Iterable[Path]) -> set[str]:
    """Return the entries of site-packages that belong to what wheels declare, directly or not."""
    waiting = [requirement for wheel in wheels for requirement in _requirements(wheel)]
    found: dict[str, importlib.metadata.Distribution] = {}
    while waiting:
        requirement = Requirement(waiting.pop())
        if (
            requirement.name.startswith("augury")
            or requirement.marker
            and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        key = requirement.name.lower().replace("_", "-")
        if key not in found:
            found[key] = importlib.metadata.distribution(requirement.name)
            waiting += found[key].requires or []
    return {file.parts[0] for distribution in found.values() for file in distribution.files or ()}


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(path).decode().partition("\n\n")[0].splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def install(python: Path, *what: str) -> None:
    """Install wheels, or folders after an `-e`, into the environment of `python`; nothing is fetched."""
    if what:
        uv = Path(sys.executable).with_name("uv")
        options = ["--quiet", "--offline", "--no-cache", "--no-deps", "--no-build-isolation"]
        _run([str(uv), "pip", "install", "--python", str(python), *options, *what], cwd=ROOT)


def _run(command: Sequence[str], cwd: Path) -> None:
    # Of an active environment uv would say that it is another one.
    kept = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, env={**kept, "NO_COLOR": "1"})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
