"""The contract suite as others run it: in pytest, from the command line, from Python, beside other plugins."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from augury.errors import UsageError
from augury_authoring.testing import MethodContract, outcome
from augury_authoring.testing.outcome import Failure, run_suite

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"

SOUND = """
import augury

class M(augury.Method):
    @augury.hookimpl
    def post_epoch(self, run):
        pass
"""
FILE = '''
from augury_authoring.testing import MethodContract
from fake_sound import M

class TestUntrusted(MethodContract):
    method = "sound"

class TestClass(MethodContract):
    method = M

class TestHook(MethodContract):
    """Of a method that check_method refuses."""
    method = "hook"

class TestUnknown(MethodContract):
    method = "soumd"

class TestBroken(MethodContract):
    method = "broken"

class TestTwice(MethodContract):
    method = "twice"

class TestNoMethod(MethodContract):
    method = int

class TestOptions(MethodContract):
    method = "sound"
    options = {"strength": 1}

class TestNameless(MethodContract):
    pass

def test_hooks_of_the_package():
    pass
'''


def put(folder: Path, name: str, source: str, distribution: str = "") -> None:
    """A throw-away distribution that offers a method."""
    module = (distribution or f"fake-{name}").replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution or f'fake-{name}'}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[augury.methods]\n{name} = {module}:M\n")
    (folder / f"{module}.py").write_text(source)


def run_pytest(folder: Path, *arguments: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run pytest there, warnings being errors."""
    environment = dict(os.environ) | {"PYTHONPATH": str(site or folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_method_that_cannot_be_had_is_one_line_at_once_and_the_others_go_on(tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "package"
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_contract.py").write_text(FILE)
    put(site, "sound", SOUND)
    put(site, "hook", SOUND.replace("run", "images"))
    put(site, "broken", "1 / 0")
    put(site, "twice", SOUND)
    put(site, "twice", SOUND, "fake-again")
    rows = folder / "rows.jsonl"
    done = run_pytest(
        folder, "-k", "hooks", "--continue-on-collection-errors", "--augury-results", str(rows), site=site
    )
    said = done.stdout
    assert "Traceback" not in said, said
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    refused = [row["reason"] for row in found if row["check"] == "collection"]
    assert len(refused) == 6, said
    for reason, wanted in zip(
        refused,
        [
            r"unknown method `soumd`\. .* Did you mean `sound`\?",
            r"broken: importing fake_broken:M of fake-broken 1\.0 failed: ZeroDivisionError: division by zero\. .*",
            r"twice: claimed more than once, by .*",
            r"int: <class 'int'> is no method: it must be a subclass of augury\.Method\.",
            r"sound: unknown option `strength`\. Options: none\.",
            r"name a method: --augury-method NAME, or `method` in the test's class\.",
        ],
        strict=True,
    ):
        assert re.fullmatch(wanted, reason), reason
    checks = [(row["check"], row["outcome"]) for row in found if row["check"] != "collection"]
    hooks = "test_hooks_and_declarations"
    assert checks == [(hooks, "passed"), (hooks, "passed"), (hooks, "failed"), ("test_hooks_of_the_package", "passed")]
    assert "hook: hook `post_epoch` has a parameter `images`; allowed: run, metrics." in said


@pytest.mark.slow
def test_a_suite_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    told: list[str] = []
    found = run_suite("dcutmix", {"k": 0}, reporter=told.append)
    reason = "dcutmix: option `k` must be >= 1, got 0. Set it with options = {'k': 5}."
    assert (found.method, found.passed, found.failed, found.skipped) == (
        "dcutmix",
        0,
        (Failure("collection", reason),),
        0,
    )
    assert told == ["collection"]


def test_without_pytest_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    with pytest.raises(UsageError, match=r"Install it with pip install pytest\.$"):
        run_suite("dcutmix")


def test_the_plugin_brings_nothing_heavy_and_outcomes_need_no_pytest() -> None:
    heavy = "torch", "pydantic", "numpy", "augury_authoring.testing.contract"
    for module, barred in (("plugin", heavy), ("outcome", (*heavy, "pytest"))):
        code = f"import sys, augury_authoring.testing.{module}; print([m for m in {barred!r} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
        assert done.stdout.strip() == "[]"


class Slow:
    """A suite that ends a check in every fifteen minutes, nearly, and hangs after the third."""

    def __init__(self, rows: Path) -> None:
        self._rows, self._waits = rows, 0

    def wait(self, timeout: float) -> int:
        self._waits += 1
        check, rest = divmod(self._waits, int(0.9 * outcome.LIMIT / timeout))
        if not rest and check <= 3:
            with self._rows.open("a") as file:
                file.write(json.dumps({"check": f"test_{check}", "outcome": "passed", "reason": ""}) + "\n")
        raise subprocess.TimeoutExpired("pytest", timeout)


def test_a_slow_suite_is_waited_for_and_one_that_hangs_is_not(tmp_path: Path) -> None:
    process: Any = Slow(tmp_path / "rows.jsonl")
    found = list(outcome._follow(process, tmp_path / "rows.jsonl", None))
    assert [row["check"] for row in found] == ["test_1", "test_2", "test_3"]
    (failure,) = outcome._result("slow", found, -9, "", 3000).failed
    assert "could not be run to its end: no check ended for 900 s after test_3." in failure.reason


def test_options_of_the_command_line_must_be_an_object(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "--augury-options", "[1]")
    assert done.returncode == 4
    assert "--augury-options must be a JSON object" in done.stderr


def test_the_page_tells_of_every_check_in_its_order() -> None:
    told = re.findall(r"^\| `(test_\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert told == [name for name in vars(MethodContract) if name.startswith("test_")]


@pytest.mark.slow
def test_the_ready_suite_runs_whole(tmp_path: Path) -> None:
    told: list[str] = []
    found = run_suite("dcutmix", {"k": 3}, reporter=told.append)
    assert not found.failed
    assert found.passed + found.skipped == len(told) > 25
    assert found.passed >= 24
    assert found.seconds > 0


@pytest.mark.slow
def test_failures_come_back_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SOUND.replace("post_epoch(self, run)", "augment_batch(self, batch)").replace("pass", "batch.shares *= 2")
    put(tmp_path, "doubling", wrong)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (failure,) = run_suite("doubling").failed
    assert failure.check == "test_labels_stay_shares"
    assert failure.reason.startswith(
        "doubling: after augment_batch: the label shares of a row must sum to 1: row 0 has"
    )


@pytest.mark.slow
def test_it_runs_beside_xdist_with_warnings_as_errors(tmp_path: Path) -> None:
    suite = ["--pyargs", "augury_authoring.testing.suite", "--augury-method", "isda", "-q"]
    done = run_pytest(tmp_path, "-n", "2", *suite)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d\d passed, \d skipped", done.stdout)


@pytest.mark.parametrize("quick", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_quick_suite_leaves_out_what_takes_longest(quick: bool) -> None:
    command = [sys.executable, "-m", "pytest", "--pyargs", "augury.testing.suite", "--augury-method", "dcutmix", "-q"]
    command += ["--collect-only", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]
    done = subprocess.run(
        [*command, *(["--augury-quick"] if quick else [])], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    names = set(re.findall(r"::(test_\w+)", done.stdout))
    assert {"test_two_processes_agree", "test_composes"} - names == (
        {"test_two_processes_agree", "test_composes"} if quick else set()
    )
    assert {"test_trains", "test_state_survives", "test_a_loss_computed_again"} <= names
    assert ("deselected" in done.stdout) == quick
