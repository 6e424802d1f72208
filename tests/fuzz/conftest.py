"""How many cases there were, and the run folders that are damaged."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fuzz import hostile

from augury_train.config import read_config
from augury_train.training.trainer import train


@pytest.fixture(autouse=True)
def _count(request: pytest.FixtureRequest) -> Iterator[None]:
    before = hostile.counted
    yield
    request.node.user_properties.append(("cases", hostile.counted - before))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the sum; from the processes of pytest-xdist the numbers come with the reports."""
    # Those of the tests' ends, where the count is known, have no word of their own.
    found = {report.nodeid: dict(report.user_properties).get("cases", 0) for report in terminalreporter.getreports("")}
    if found := {name: number for name, number in found.items() if number}:
        terminalreporter.write_line(f"fuzzing: {sum(found.values()):,} cases in {len(found)} tests")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a method and a row of metrics."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    values = copy.deepcopy(hostile.TINY)
    train(read_config({**values, "device": "cpu", "methods": [{"name": "isda"}]}), folder)
    return folder


@pytest.fixture(scope="session")
def unfinished(finished: Path) -> Path:
    """The same before its end: it is to be resumed."""
    folder = finished.with_name("unfinished")
    shutil.copytree(finished, folder)
    for name in ("result.json", "last.safetensors"):
        (folder / name).unlink()
    return folder
