"""New packages that start from a form: each is clean, tested, and trains; what is declared fits what it does."""

from __future__ import annotations

import importlib
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.authoring.test_scaffold import add_entry, forget, install
from tests.train.small_runs import rows_of, small

import augury
from augury.choice import choose, conflicts
from augury.hookspecs import CONTRACT_VERSION
from augury.method import hook_implementations
from augury_authoring.scaffold import FORMS, new_package
from augury_authoring.scaffold.names import LONGEST, spell
from augury_authoring.scaffold.package import render
from augury_authoring.testing.outcome import run_suite
from augury_train.recipes import recipes
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer

NAMES = {f"y_{form.replace('-', '_')}": form for form in FORMS}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a package for each form, `config/registry.toml`, and all of them installed."""
    folder = tmp_path_factory.mktemp("forms")
    register = augury.Register.load(user_file=folder / "config" / "registry.toml")
    before = list(sys.path)
    sys.path.append(str(folder / "site"))
    for name, form in NAMES.items():
        package = new_package(name, form=form, path=folder / name, register=register)
        assert package.hooks == FORMS[form].hooks
        add_entry(register.user_file, package.entry)
        install(package.folder, folder / "site")
    importlib.invalidate_caches()
    yield folder
    sys.path[:] = before
    forget("augury_y_")


@pytest.fixture
def register(made: Path, monkeypatch: pytest.MonkeyPatch) -> augury.Register:
    monkeypatch.setenv("AUGURY_CONFIG", str(made / "config"))
    return augury.Register.load()


def test_every_package_is_formatted_and_clean(made: Path, tmp_path: Path) -> None:
    for form, told in FORMS.items():
        # The longest name makes the longest lines.
        for file, text in render(spell("n" * LONGEST), told.hooks, told).items():
            path = tmp_path / form / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    ruff = [str(Path(sys.executable).with_name("ruff"))]
    for command in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [*ruff, *command, "--no-cache", str(made), str(tmp_path)], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_they_bring_a_recipe_and_a_card_that_tells_their_option(made: Path, register: augury.Register) -> None:
    brought = {recipe.name: recipe for recipe in recipes(register)}
    for name, form in NAMES.items():
        cls = register.load_class(name)
        assert set(hook_implementations(cls)) == set(FORMS[form].hooks)
        assert cls.__dict__["contract"] == CONTRACT_VERSION
        recipe = brought[f"{name}/digits"]
        assert (recipe.problem, recipe.methods) == ("", (name,))
        card = (made / name / "README.md").read_text()
        rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", card, re.MULTILINE))
        defaults = {key: info.default for key, info in cls.Options.model_fields.items()}
        assert {key: float(told) for key, told in rows.items()} == defaults


@pytest.mark.slow
def test_their_tests_of_the_mathematics_pass(made: Path, register: augury.Register) -> None:
    files = [str(made / name / "tests/test_functional.py") for name in NAMES]
    path = ":".join(str(made / name / "src") for name in NAMES)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *files]
    done = subprocess.run(
        command, cwd=made, env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_each_trains_on_digits(register: augury.Register, tmp_path: Path, name: str) -> None:
    Trainer(make_plan(small(name, optim={"epochs": 1}))).run(tmp_path / "run")
    (row,) = rows_of(tmp_path / "run")
    assert math.isfinite(row["train_loss"])
    assert (row["train_top1"] is None) == (name == "y_mixing")


def test_what_they_declare_refuses_what_would_be_wrong(register: augury.Register) -> None:
    def lines(*names: str) -> list[str]:
        chosen, problems = choose(names, register)
        return problems + conflicts(chosen)

    assert lines("y_mixing", "isda", "y_regulariser") == lines("y_criterion", "isda", "y_mixing") == []
    assert lines("y_two_views", "agmax", "isda") == []
    (line,) = lines("y_two_views", "y_mixing")
    assert line.startswith("y_two_views compares the views of an image, and y_mixing mixes each view with other images")


def test_the_criterion_is_cross_entropy_without_its_term(register: augury.Register) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(12, 1, 4, 4), torch.arange(12) % 5
    losses: list[Any] = []
    for methods in ([("y_criterion", {"epsilon": 0.0}), "dcutmix"], ["dcutmix"]):
        composed = augury.compose(methods, num_classes=5, register=register)
        batch = composed.batch(images, labels)
        batch.label_weights = torch.where(batch.labels < 2, 2.0, 0.5)
        batch.smoothing = torch.full_like(batch.smoothing, 0.1)
        composed.augment_batch(batch)
        logits = torch.linspace(-1, 1, 60).view(12, 5)
        losses.append(composed.compute_loss(batch, augury.ModelOutput(logits, logits)))
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_passes_the_contract(register: augury.Register, made: Path, monkeypatch: Any, name: str) -> None:
    path = ":".join([str(made / "site"), *(str(made / other / "src") for other in NAMES)])
    monkeypatch.setenv("PYTHONPATH", path)
    result = run_suite(name)
    assert [f"{failure.check}: {failure.reason}" for failure in result.failed] == []
    assert result.passed > 20


@pytest.mark.parametrize(
    ("form", "hooks", "lines"),
    [
        (
            "mixin",
            (),
            ["unknown form `mixin`. Forms: criterion, mixing, regulariser, two-views. Did you mean `mixing`?"],
        ),
        ("mixing", ("augment_batch",), ["the form `mixing` has its own hooks. Leave out --hook, or --from."]),
        ("", (), ["unknown form ``. Forms: criterion, mixing, regulariser, two-views."]),
    ],
)
def test_forms_that_cannot_be(tmp_path: Path, form: str, hooks: tuple[str, ...], lines: list[str]) -> None:
    with pytest.raises(augury.UsageError) as refused:
        new_package("fresh", hooks, form=form, path=tmp_path / "fresh")
    assert str(refused.value).splitlines() == lines
    assert not (tmp_path / "fresh").exists()
