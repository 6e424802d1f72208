"""`augury plugins new` as a newcomer meets it: installed, listed, tested and trained in an environment of its own."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.fresh import PROGRAM, ROOT, build_wheel, fresh_environment, install

from augury.hookspecs import HOOKS
from augury_authoring.scaffold.names import spell
from augury_authoring.scaffold.package import render

Run = Callable[..., str]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    """A folder, and what runs a command of its environment in it: core and cli from wheels, and no method."""
    folder = tmp_path_factory.mktemp("newcomer")
    python = fresh_environment(folder / "env", [build_wheel(ROOT / part, folder) for part in PROGRAM])
    own = {"AUGURY_CONFIG": str(folder / "config"), "OMP_NUM_THREADS": "1"}

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(python.with_name(program)), *arguments],
            cwd=folder,
            env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST")} | own,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return folder, run


@pytest.mark.slow
def test_from_nothing_to_a_run_without_touching_a_file(newcomer: tuple[Path, Run]) -> None:
    folder, run = newcomer
    run("augury", "plugins", "new", "feature_noise", *(word for hook in HOOKS for word in ("--hook", hook)))
    install(folder / "env/bin/python", "-e", str(folder / "augury-feature-noise"))

    (found,) = [row for row in json.loads(run("augury", "plugins", "list", "--json")) if row["name"] == "feature_noise"]
    assert found["status"] == "ready"
    assert (found["distribution"], found["version"]) == ("augury-feature-noise", "0.1.0")
    assert (found["hooks"], found["layer"]) == ([], "user")
    assert found["summary"].startswith("Feature noise, an example to start from: ")
    info = json.loads(run("augury", "plugins", "info", "feature_noise", "--json"))
    assert (info["hooks"], info["summary"]) == (list(HOOKS), found["summary"])
    assert [option["name"] for option in info["options"]] == ["scale", "noise", "penalty", "momentum"]
    assert Path(info["card"]) == folder / "augury-feature-noise" / "README.md"

    told = run("python", "-m", "pytest", "augury-feature-noise")
    assert "failed" not in told

    run("augury", "run", "--recipe", "feature_noise/digits", "--set", "optim.epochs=1", "--output", "first")
    (row,) = map(json.loads, (folder / "first/metrics.jsonl").read_text().splitlines())
    assert {"feature_noise/scale", "feature_noise/penalty", "feature_noise/gap"} <= row.keys()


@pytest.mark.slow
def test_its_wheel_holds_recipe_and_types_and_runs_elsewhere(newcomer: tuple[Path, Run], tmp_path: Path) -> None:
    folder, run = newcomer
    run("augury", "plugins", "new", "plain")
    wheel = build_wheel(folder / "augury-plain", tmp_path)
    install(folder / "env/bin/python", str(wheel))
    # Trusted is what is installed from the folder; a wheel is somebody's, until its user says so.
    (found,) = [row for row in json.loads(run("augury", "plugins", "list", "--json")) if row["name"] == "plain"]
    assert found["status"] == "refused"
    assert "not from a folder, but listed is what was made in" in found["problem"]
    run("augury", "plugins", "trust", "plain", "--yes")
    assert "plain/digits" in run("augury", "recipes", "list")
    site = Path(run("python", "-c", "import augury_plain; print(augury_plain.__file__)").strip()).parent
    assert (site / "py.typed").is_file()
    assert "env" in site.relative_to(folder).parts


def render_all(folder: Path) -> list[str]:
    """Write a package for each subset of the hooks.

    Returns:
        where their modules are.
    """
    sources = []
    for number in range(1, 5):
        for hooks in itertools.combinations(HOOKS, number):
            name = "every_" + "".join(hook[:2] for hook in hooks)
            sources.append(str(folder / name / "src"))
            for file, text in render(spell(name), hooks).items():
                (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / name / file).write_text(text)
    return sources


# One process for all of them: each would start workers of its own.
CONTRACTS = """
import importlib, sys
from pathlib import Path
from augury_authoring.testing import MethodContract

for source in {sources}:
    sys.path.append(source)
    (package,) = Path(source).glob("augury_*")
    module = importlib.import_module(package.name)
    (name,) = module.__all__
    globals()[f"Test{{name}}"] = type(f"Test{{name}}", (MethodContract,), {{"method": getattr(module, name)}})
"""


@pytest.mark.slow
def test_every_package_passes_the_whole_contract(newcomer: tuple[Path, Run], tmp_path: Path) -> None:
    _, run = newcomer
    sources = render_all(tmp_path)
    (tmp_path / "test_all.py").write_text(CONTRACTS.format(sources=sources))
    told = run("python", "-m", "pytest", "-W", "error", "-v", str(tmp_path / "test_all.py"))
    assert told.count("::test_hooks_and_declarations PASSED") == len(sources) == 15
    assert told.count("::test_two_processes_agree PASSED") == len(sources)


@pytest.mark.slow
def test_every_package_passes_the_type_checker(tmp_path: Path) -> None:
    sources = render_all(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *sources], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"no issues found in {3 * len(sources)} source files" in done.stdout
