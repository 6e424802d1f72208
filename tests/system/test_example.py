"""The example of a method in a package of its own: what it stands on, and that it works where nothing else is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.system.fresh import PROGRAM, build_wheel, fresh_environment
from tests.system.test_layers import private_uses
from torch import nn

import augury
from augury.registry import Register
from augury_train.recipes import find_recipe

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "manifold_mixup"
NAME, MODULE, TARGET = "manifold_mixup", "augury_manifold_mixup", "augury_manifold_mixup:ManifoldMixup"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(EXAMPLE, tmp_path_factory.mktemp("wheels"))


def test_it_stands_on_core_and_its_public_names_alone() -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    assert [re.split(r"[^\w-]", needed)[0] for needed in project["dependencies"]] == ["augury-core"]
    assert project["entry-points"]["augury.methods"] == {NAME: TARGET}
    files = sorted(EXAMPLE.glob("src/**/*.py"))
    assert files
    for path in files:
        code = path.read_text()
        assert not list(private_uses(code, frozenset(augury.__all__))), path
        imported = set(re.findall(r"^\s*(?:from|import) (augury\w*)", code, re.M))
        assert imported <= {"augury", MODULE}, path


def test_its_card_tells_every_option() -> None:
    sys.path.insert(0, str(EXAMPLE / "src"))
    try:
        from augury_manifold_mixup import ManifoldMixup
    finally:
        sys.path.remove(str(EXAMPLE / "src"))
        for module in [m for m in sys.modules if m.startswith(MODULE)]:
            del sys.modules[module]
    card = (EXAMPLE / "README.md").read_text()
    for name, field in ManifoldMixup.Options.model_fields.items():
        default = "unset" if field.default is None else field.default
        assert re.search(rf"^\| `{name}` \| {default} \|", card, re.M), name


def test_its_wheel_holds_it_whole_and_works_once_it_is_trusted(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    package = EXAMPLE / "src" / MODULE
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(package).as_posix() for path in files} >= {"py.typed", "recipes/digits.toml"}
    for path in files:
        assert (tmp_path / "site" / MODULE / path.relative_to(package)).read_bytes() == path.read_bytes()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert next(found for found in Register.load().methods() if found.name == NAME).status == "not trusted"
    Register.load().trust(NAME)
    register = Register.load()
    assert find_recipe(f"{NAME}/digits", register).read_text() == (package / "recipes/digits.toml").read_text()

    network = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(12, 8), nn.ReLU()), nn.Linear(8, 4))
    methods = augury.compose([(NAME, {"layers": ["1"]})], num_classes=4, network=network, register=register)
    assert sys.modules[MODULE].__file__ == str(tmp_path / "site" / MODULE / "__init__.py")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    images, labels = torch.randn(6, 3, 2, 2), torch.arange(6) % 4
    losses = []
    for _ in range(20):
        batch = methods.batch(images, labels)
        methods.augment_batch(batch)
        loss = methods.compute_loss(batch, augury.forward(network, batch, network[2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        methods.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    for module in [m for m in sys.modules if m.startswith(MODULE)]:
        del sys.modules[module]


# Where nothing else is


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of an environment that has core, the command line and the example, and no other method."""
    folder = tmp_path_factory.mktemp("fresh")
    wheels = [build_wheel(ROOT / part, folder) for part in PROGRAM]
    python = fresh_environment(folder / "venv", [*wheels, wheel])
    config = {"AUGURY_CONFIG": str(folder / "config"), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python.with_name(words[0])), *words[1:]],
            cwd=folder,
            env=kept | config,
            capture_output=True,
            text=True,
            timeout=600,
        )

    return command


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_installed_from_a_wheel_it_is_listed_trusted_trained_and_tested(
    run: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    listed = {method["name"]: method for method in json.loads(run("augury", "plugins", "list", "--json").stdout)}
    assert {name for name, method in listed.items() if method["status"] != "not installed"} == {NAME}
    assert listed[NAME]["status"] == "not trusted"

    short = ("--set", "optim.epochs=2", "--set", "data.images_per_class=20", "--set", "optim.batch_size=40")
    order = ("augury", "run", "--recipe", f"{NAME}/digits", *short, "--output", str(tmp_path / "run"))
    refused = run(*order)
    assert refused.returncode == 2
    assert f"augury plugins trust {NAME}" in refused.stderr
    assert not (tmp_path / "run").exists()

    trusted = run("augury", "plugins", "trust", "-y", NAME)
    assert trusted.returncode == 0, trusted.stderr
    assert "augury-manifold-mixup 0.1.0 (augury_manifold_mixup:ManifoldMixup)" in trusted.stdout
    unknown = run(*order, "--set", 'methods.manifold_mixup.layers=["input", "layer9"]')
    assert unknown.returncode == 2
    assert "has no module `layer9`" in unknown.stderr
    trained = run(*order)
    assert trained.returncode == 0, trained.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]

    checked = run("augury", "plugins", "check", NAME, "--json")
    (method,) = json.loads(checked.stdout)["methods"]
    assert checked.returncode == 0, (method["faults"], method["suite"])
    assert method["suite"]["passed"] > 10
    assert method["hooks"] == ["augment_batch"]

    # Its own tests, away from the checkout.
    own = tmp_path / "own"
    shutil.copytree(EXAMPLE / "tests", own / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(EXAMPLE / "pyproject.toml", own)
    tested = run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(own))
    assert tested.returncode == 0, tested.stdout

    assert run("augury", "plugins", "untrust", NAME).returncode == 0
    assert run(*order[:-1], str(tmp_path / "again")).returncode == 2
