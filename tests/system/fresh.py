"""An environment that has the dependencies of this one, and of augury only what a test installs into it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


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


def fresh_environment(folder: Path, wheels: Sequence[Path], editable: Sequence[Path] = ()) -> Path:
    """Make a virtual environment that finds this one's dependencies by links, and nothing of augury but what is named.

    Args:
        folder: where it goes; it must not exist.
        wheels: files to install.
        editable: folders to install editable.

    Returns:
        its python; the commands of what is installed (`augury`) lie beside it.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(("augury", "_augury", "__")) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    install(python, *map(str, wheels), *(word for part in editable for word in ("-e", str(part))))
    return python


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
