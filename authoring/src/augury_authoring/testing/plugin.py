"""pytest's plugin: what `MethodContract` needs of a run of pytest.

Every run of pytest in the environment loads it, so it imports nothing but pytest: no torch, no pydantic.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from augury_authoring.testing.bench import Bench
    from augury_authoring.testing.contract import MethodContract
    from augury_authoring.testing.workers import Workers

PROCESSES_TEST = "test_two_processes_agree"
LONG_TESTS = (PROCESSES_TEST, "test_composes")
"""Tests that --augury-quick leaves out: together they take longer than all others."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the ready suite."""
    group = parser.getgroup("augury", "the contract suite for methods of augury")
    group.addoption("--augury-method", metavar="NAME", help="what `--pyargs augury.testing.suite` tests")
    group.addoption("--augury-options", metavar="JSON", default="{}", help="options to test it with, as a JSON object")
    group.addoption(
        "--augury-quick", action="store_true", help="leave out what takes longest: two processes, and other methods"
    )
    group.addoption("--augury-results", metavar="FILE", help="write each check's outcome there, a JSON object a line")


def pytest_configure(config: pytest.Config) -> None:
    """Read the options."""
    text = config.getoption("augury_options")
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise pytest.UsageError(f"--augury-options must be a JSON object such as '{{\"alpha\": 0.5}}', got {text!r}.")
    config.stash[_OPTIONS] = options
    rows = config.getoption("augury_results")
    # Of several processes of xdist, the first one hears of all outcomes.
    if rows and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Results(Path(rows)), "augury-results")


_OPTIONS = pytest.StashKey[Mapping[str, Any]]()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> pytest.Collector | None:
    """Refuse a class whose method cannot be had, in one line and at once."""
    module: Any = sys.modules.get("augury_authoring.testing.contract")
    if module is None or not isinstance(obj, type) or not issubclass(obj, module.MethodContract):
        return None
    contract: type[MethodContract] = obj
    if not isinstance(collector, pytest.Module) or not collector.istestclass(obj, name):
        return None
    if contract.method is None:
        contract.method = collector.config.getoption("augury_method")
        contract.options = collector.config.stash[_OPTIONS]
    if contract.method is None:
        return _Refused.of(collector, name, "name a method: --augury-method NAME, or `method` in the test's class.")
    from augury.errors import UsageError
    from augury_authoring.testing.candidate import find

    try:
        find(contract.method, contract.options)
    except UsageError as error:
        return _Refused.of(collector, name, str(error))
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests where a quick suite is asked for."""
    module: Any = sys.modules.get("augury_authoring.testing.contract")
    if module is None or not config.getoption("augury_quick"):
        return
    left_out = [
        item
        for item in items
        if isinstance(item, pytest.Function)
        and item.originalname in LONG_TESTS
        and item.cls is not None
        and issubclass(item.cls, module.MethodContract)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


class _Refused(pytest.Collector):
    """A test class whose method cannot be had."""

    problem = ""

    @classmethod
    def of(cls, collector: pytest.Collector, name: str, problem: str) -> _Refused:
        made: _Refused = cls.from_parent(collector, name=name)
        made.problem = problem
        return made

    def collect(self) -> list[pytest.Item | pytest.Collector]:
        raise self.CollectError(self.problem)


@pytest.fixture(scope="class")
def augury_bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The method of a test class, ready to be checked, on one thread."""
    import torch

    from augury_authoring.testing.bench import Bench
    from augury_authoring.testing.candidate import find

    if any(item.name == PROCESSES_TEST for item in request.session.items):
        # They take seconds to start, in which the other checks go on.
        request.getfixturevalue("augury_workers").start()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(find(request.cls.method, request.cls.options))
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def augury_workers() -> Iterator[Workers]:
    """Two processes that train together, for all classes of a run."""
    from augury_authoring.testing.workers import Workers

    workers = Workers()
    yield workers
    workers.stop()


class _Results:
    """Writes what each check found, as it is found."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, check: str, outcome: str, reason: str = "") -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"check": check, "outcome": outcome, "reason": reason}) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A class or a file that could not be collected."""
        if report.failed:
            self._write("collection", "failed", report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test, when it is over, or what failed around it."""
        if report.when == "call" or not report.passed:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            self._write(report.nodeid.rpartition("::")[2], report.outcome, reason)
