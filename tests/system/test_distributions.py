"""Each distribution as a user installs it: from wheels, with what it declares and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.fresh import PROGRAM, ROOT, build_wheel, fresh_environment, needed_parts

METHODS = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))
PARTS = [*PROGRAM, *(f"plugins/{name}" for name in METHODS)]

Install = Callable[..., Path]


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Make an environment with the wheels of some distributions, and of third parties what those declare."""
    wheels: dict[str, Path] = {}

    def environment(*parts: str) -> Path:
        folder = tmp_path_factory.mktemp("env")
        for part in parts:
            wheels.setdefault(part, build_wheel(ROOT / part, tmp_path_factory.mktemp("wheels")))
        return fresh_environment(folder / "env", [wheels[part] for part in parts], declared_only=True)

    return environment


def run(python: Path, program: str, folder: Path) -> str:
    """Run a program in a folder without any source; warnings are errors."""
    # torch says so itself where numpy is not installed.
    quiet = ["-W", "error", "-W", "ignore:Failed to initialize NumPy:UserWarning"]
    command = [str(python), *quiet, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_core_and_a_method_train_in_a_loop_by_hand(install: Install, tmp_path: Path) -> None:
    program = """
import importlib.util
import sys

import torch

import augury

torch.manual_seed(0)
network = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)
)
methods = augury.compose([("isda", {"lambda_0": 0.5})], num_classes=3, classifier=network[-1], total_steps=8)
optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
images = torch.randn(12, 1, 8, 8)
labels = torch.arange(12) % 3
losses = []
for step in range(8):
    batch = methods.batch(images, labels)
    methods.augment_batch(batch)
    loss = methods.compute_loss(batch, augury.forward(network, batch, network[-1]))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    methods.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
assert any(float(buffer.abs().sum()) > 0 for buffer in methods.buffers())

heavy = "timm torchvision plotly tensorboard accelerate PIL sklearn scipy matplotlib typer rich pytest".split()
parts = "augury_train augury_lab augury_authoring augury_cli".split()
print([name for name in heavy + parts if importlib.util.find_spec(name) or name in sys.modules])
"""
    python = install("core", "plugins/isda")
    assert run(python, program, tmp_path) == "[]\n"


MISSING = """
import augury

def said(call):
    try:
        call()
    except ModuleNotFoundError as error:
        print(error)

def door():
    from augury import {name}

said(lambda: augury.{name})
said(door)
{more}
print("{name}" in dir(augury), "Method" in dir(augury))
"""


def needs(what: str, distribution: str) -> str:
    return f"{what} needs {distribution}, which is not installed. Install it from where you got augury."


@pytest.mark.slow
def test_what_core_does_not_have_is_named_with_its_distribution(install: Install, tmp_path: Path) -> None:
    more = """
from pathlib import Path
import importlib
said(lambda: importlib.import_module("augury.backbones"))
said(lambda: importlib.import_module("augury.testing").MethodContract)
said(lambda: importlib.import_module("augury.testing.outcome"))
said(lambda: importlib.import_module("augury.testing.suite"))
said(lambda: augury.Register.load(user_file=Path("registry.toml"), trust=["isda"]).untrust("isda"))
"""
    python = install("core", "plugins/isda")
    told = run(python, MISSING.format(name="train", more=more), tmp_path).splitlines()
    assert told == [
        needs("augury.train", "augury-train"),
        needs("augury.train", "augury-train"),
        needs("augury.backbones", "augury-train"),
        needs("augury.testing", "augury-authoring"),
        needs("augury.testing", "augury-authoring"),
        needs("augury.testing", "augury-authoring"),
        needs("augury.Register.untrust", "augury-cli"),
        "False True",
    ]


@pytest.mark.slow
def test_training_needs_no_lab(install: Install, tmp_path: Path) -> None:
    more = """
result = augury.train(["dcutmix"], dataset="digits", folder="run", settings={
    "device": "cpu", "model.name": "resnet20_cifar", "optim.epochs": 1, "optim.batch_size": 50,
    "data.images_per_class": 10,
})
print(result.epochs)
from importlib.util import find_spec
print([name for name in ("augury_lab", "augury_cli", "augury_authoring", "plotly", "pytest") if find_spec(name)])
"""
    python = install("core", "train", "plugins/dcutmix")
    told = run(python, MISSING.format(name="compare", more=more), tmp_path).splitlines()
    assert told == [needs("augury.compare", "augury-lab")] * 2 + ["1", "[]", "False True"]
    assert (tmp_path / "run" / "metrics.jsonl").is_file()


@pytest.mark.slow
def test_a_method_is_tested_without_the_command_line(install: Install, tmp_path: Path) -> None:
    python = install("core", "train", "authoring", "plugins/isda")
    (tmp_path / "test_contract.py").write_text(
        "from augury.testing import MethodContract\n\n\nclass TestIsda(MethodContract):\n    method = 'isda'\n"
    )
    for what in (["test_contract.py"], ["--pyargs", "augury.testing.suite", "--augury-method", "isda"]):
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "hooks or options", *what]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_module_imports_with_what_is_declared(part: str, install: Install, tmp_path: Path) -> None:
    program = f"""
import importlib
import pkgutil
from importlib.metadata import distributions

name = {next((ROOT / part / "src").iterdir()).name!r}
package = importlib.import_module(name)
for module in pkgutil.walk_packages(package.__path__, f"{{name}}.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        # The forwarding modules of core, which say which distribution they need.
        assert "which is not installed. Install it from where" in str(error), error
print(sorted(d.name for d in distributions() if d.name.startswith("augury")))
"""
    parts = needed_parts(part)
    told = run(install(*parts), program, tmp_path)
    assert told == f"{sorted('augury-' + name.removeprefix('plugins/') for name in parts)}\n"
