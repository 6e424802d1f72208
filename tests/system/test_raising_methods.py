"""A method that raises, through the command: named with its hook, and the run goes on once it is mended."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from tests.cli.in_process import augury as augury_command

import augury
from augury.registry import Register

CHANGES = "data.images_per_class=10", "optim.batch_size=25", "optim.epochs=1", "device=cpu", "train.trackers=[]"
SETTINGS = [word for change in CHANGES for word in ("--set", change)]


class Raising(augury.Method):
    """Raises in the hook that its options name."""

    class Options(augury.Options):
        at: str = Field("", description="the hook")
        kind: str = Field("ZeroDivisionError", description="what is raised")

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.fail("__init__")

    def fail(self, place: str) -> None:
        if self.options.at == place:
            raise getattr(builtins, self.options.kind)(0)

    @augury.hookimpl
    def pre_train_stage(self) -> None:
        self.fail("pre_train_stage")

    @augury.hookimpl
    def augment_batch(self) -> None:
        self.fail("augment_batch")

    @augury.hookimpl(wrapper=True)
    def compute_loss(self) -> Iterator[None]:
        loss = yield
        self.fail("compute_loss")
        return loss

    @augury.hookimpl
    def post_epoch(self) -> None:
        self.fail("post_epoch")


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process, with that method on its register."""
    register = Register.load().offering("raising", Raising)
    monkeypatch.setattr("augury_cli.run.open_register", lambda names, trust: register)

    def command(at: str, kind: str, folder: Path) -> tuple[int, str, str]:
        options = *SETTINGS, "--with", f"raising:at={at},kind={kind}"
        return augury_command(capsys, "run", *options, "--output", str(folder))

    return command


@pytest.mark.parametrize(
    "at", ["pre_train_stage", "augment_batch", "compute_loss", pytest.param("post_epoch", marks=pytest.mark.slow)]
)
def test_a_method_that_raises_is_named_with_its_hook(at: str, raising: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, _, error = raising(at, "ZeroDivisionError", folder)
    first, second = error.splitlines()[-2:]
    assert code == 1
    assert re.fullmatch(rf"raising: `{at}` raised ZeroDivisionError: 0 \(test_raising_methods.py:\d+\)", first)
    assert second == f"Once that is mended, go on with: augury.resume({str(folder)!r}, methods=[Raising])"


def test_a_method_that_cannot_be_made_is_named_before_a_folder_is_made(raising: Any, tmp_path: Path) -> None:
    code, _, error = raising("__init__", "ZeroDivisionError", tmp_path / "run")
    assert (code, (tmp_path / "run").exists()) == (1, False)
    assert re.search(
        r"^raising: `__init__` raised ZeroDivisionError: 0 \(test_raising_methods.py:\d+\)$", error, re.MULTILINE
    )


def test_a_method_cannot_end_the_program_as_if_all_were_well(raising: Any, tmp_path: Path) -> None:
    code, _, error = raising("augment_batch", "SystemExit", tmp_path / "run")
    assert code == 1
    assert "raising: `augment_batch` raised SystemExit: 0 (test_raising_methods.py:" in error
    code, _, error = raising("augment_batch", "KeyboardInterrupt", tmp_path / "other")
    assert code == 130
    assert "interrupted" in error
