"""`import augury`: every public name, whichever distribution has it, on first use and with its type."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import augury.backbones.resnet_cifar
import augury.backbones.weights
import pytest

import augury
import augury.experiment.suite
import augury.testing
import augury.testing.outcome
import augury.testing.suite
import augury_authoring.testing
import augury_authoring.testing.outcome
import augury_authoring.testing.suite
import augury_lab.experiment.suite
import augury_train.backbones.weights

SOURCE = Path(augury.__file__)


def typed() -> dict[str, str]:
    """The module from which mypy has each name: those of the block under TYPE_CHECKING."""
    blocks = [node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If)]
    (block,) = [node for node in blocks if ast.unparse(node.test) == "TYPE_CHECKING"]
    return {
        str(alias.asname): str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_every_name_is_typed_from_the_module_that_it_is_taken_from() -> None:
    assert typed() == augury._HOME
    assert {*augury._HOME, "__version__"} == set(augury.__all__) == set(dir(augury))


@pytest.mark.parametrize("name", augury.__all__)
def test_every_name_can_be_had(name: str) -> None:
    assert getattr(augury, name) is not None


def test_what_is_no_name_is_an_attribute_error() -> None:
    assert not hasattr(augury, "trainer")
    assert not hasattr(augury.testing, "Contract")


def test_the_old_names_of_modules_are_the_same_modules() -> None:
    assert augury.backbones is augury_train.backbones
    assert augury.backbones.resnet_cifar.__name__ == "augury_train.backbones.resnet_cifar"
    assert augury.backbones.weights.Description is augury_train.backbones.weights.Description
    assert augury.experiment.suite is augury_lab.experiment.suite
    assert augury.testing.outcome is augury_authoring.testing.outcome
    assert augury.testing.MethodContract is augury_authoring.testing.MethodContract
    assert augury.testing.suite.TestContract is augury_authoring.testing.suite.TestContract


def test_a_fault_inside_another_distribution_is_not_told_as_its_absence(tmp_path: Path) -> None:
    (tmp_path / "augury_train").mkdir()
    (tmp_path / "augury_train/__init__.py").write_text("import nowhere\n")
    program = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport augury\naugury.train\n"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'nowhere'"


@pytest.mark.slow
def test_a_type_checker_sees_what_lies_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(
        "import augury\nfrom augury.testing import MethodContract\nfrom augury.testing.outcome import run_suite\n"
        "reveal_type(augury.train)\nreveal_type(augury.compare)\nreveal_type(augury.Batch)\nreveal_type(MethodContract)\n"
        "reveal_type(run_suite)\naugury.train(learning_rate=1)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = done.stdout
    for what in (
        "augury_train.training.result.Result",
        "augury_lab.experiment.table.Comparison",
        "augury.batch.Batch",
        "augury_authoring.testing.contract.MethodContract",
        "augury_authoring.testing.outcome.SuiteResult",
        'Unexpected keyword argument "learning_rate" for "train"',
    ):
        assert what in told, told
    assert "Found 1 error" in told, told
