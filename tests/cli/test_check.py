"""`augury plugins check`: what is printed of a report, and the exit code."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.cli.in_process import augury

from augury_authoring.checking import Checked, Report
from augury_authoring.testing.outcome import Failure, SuiteResult
from augury_train.training.hook_costs import HookCosts, ReferenceStep

HARDWARE = {"device": "cpu", "processor": "Some CPU", "threads": 2, "system": "Linux x86_64", "memory_bytes": 1}
REFERENCE = ReferenceStep("resnet20_cifar", 128, (3, 32, 32), 10, "fp32", 0.4, HARDWARE)
GOOD = Checked(
    "alpha",
    "fake-alpha",
    "1.0",
    "fake_alpha:M",
    "ready",
    layer="user",
    versions=">=1,<2",
    hooks=("augment_batch", "post_epoch"),
    contract="2.0",
    suite=SuiteResult("alpha", 31, (), 2, 14.0),
    costs=HookCosts(0.002, None, None, 2),
)
STRANGER = Checked(
    "stranger",
    "fake-stranger",
    "2.1",
    "fake_stranger:M",
    "not trusted",
    requires=">=7",
    notes=("stranger: fake-stranger 2.1 (fake_stranger:M) is installed but not listed.",),
)
ABSENT = Checked(
    "ghost", "fake-ghost", "", "g:M", "not installed", layer="user", versions="", notes=("ghost: is not installed.",)
)


def shown(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *methods: Checked,
    arguments: tuple[str, ...] = (),
) -> tuple[int, str, str]:
    """Exit code and output where a check finds these methods."""

    def check(names: Any, register: Any, *, suite: bool | None, quick: bool, watch: Any) -> Report:
        watch("alpha: importing")
        print("a method says hello")
        watch("alpha: contract suite", "shares")
        assert suite is {"--suite": True, "--no-suite": False}.get(arguments[-1] if arguments else "")
        assert quick is ("--quick" in arguments)
        assert list(names) == [a for a in arguments if not a.startswith("-")]
        return Report(methods, REFERENCE, ("contract suite not run: why",))

    monkeypatch.setattr("augury_authoring.checking.check", check)
    return augury(capsys, "plugins", "check", *arguments)


def test_a_method_s_row_and_what_the_costs_are_held_against(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = shown(monkeypatch, capsys, GOOD, STRANGER, ABSENT, arguments=("alpha", "stranger"))
    header, row, *rest = out.splitlines()
    titles = ["name", "package", "listed", "hooks", "contract", "suite", "augment_batch", "rows"]
    assert header.split() == titles, "compute_loss costs nothing in any row"
    cells = ["alpha", "fake-alpha 1.0", "user >=1,<2", "augment_batch, post_epoch", "2.0", "31 passed, 2 skipped"]
    assert [part.strip() for part in row.split("  ") if part] == [*cells, "2.00 ms (0.5%)", "2x"]
    assert rest[:4] == [
        STRANGER.notes[0],
        "  stranger: fake-stranger 2.1 requires augury-core>=7; installed is 0.1.0.",
        "ghost: is not installed.",
        "contract suite not run: why",
    ]
    assert rest[4].startswith(
        "Costs are per step, beside 400 ms for a step of no method: resnet20_cifar, 128 images 3x32x32, 10 classes, "
        "fp32, on Some CPU, 2 thread(s) (Linux x86_64)."
    )
    assert len(rest) == 5
    assert code == 0
    assert err.splitlines() == ["alpha: importing", "a method says hello"]


def test_what_failed_stands_below_in_a_line_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = SuiteResult("alpha", 30, (Failure("label_shares", "they sum to\n  0.9"),), 0, 14.0)
    failed = replace(GOOD, suite=suite, faults=("alpha: the user register lists the hooks x",))
    code, out, _ = shown(monkeypatch, capsys, failed)
    assert code == 1
    assert "1 failed, 30 passed" in out.splitlines()[1]
    assert out.splitlines()[2:4] == [
        "failed: alpha: the user register lists the hooks x",
        "failed: alpha: label_shares: they sum to 0.9",
    ]


def test_json_is_one_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = replace(STRANGER, faults=("stranger: no",), notes=())
    code, out, err = shown(monkeypatch, capsys, GOOD, failed, arguments=("--json", "--no-suite"))
    report = json.loads(out)
    assert (code, report["passed"]) == (1, False)
    assert report["reference"]["seconds"] == 0.4
    assert report["contract"] == "2.0"
    alpha, stranger = report["methods"]
    assert [alpha["passed"], stranger["passed"]] == [True, False]
    assert alpha["suite"] == {"method": "alpha", "passed": 31, "failed": [], "skipped": 2, "seconds": 14.0}
    assert alpha["costs"] == {"augment_batch": 0.002, "compute_loss": None, "post_step": None, "views": 2}
    assert stranger["faults"] == ["stranger: no"]
    assert err.splitlines() == ["alpha: importing", "a method says hello"]


def test_a_terminal_has_one_line_that_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _, _, err = shown(monkeypatch, capsys, GOOD)
    err = err.replace("a method says hello\n", "")
    assert "\n" not in err
    parts = err.split("\r\x1b[K")
    assert parts == ["", "alpha: importing", "alpha: contract suite: shares", ""]


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
def test_a_terminal_has_a_table_that_leaves_out_what_does_not_fit(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    costly = replace(GOOD, name="manifold_mixup", costs=HookCosts(0.0123, 0.0299, 0.0004, 2))
    _, out, _ = shown(monkeypatch, capsys, GOOD, costly)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.partition("contract suite")[0]).splitlines()
    assert max(map(len, lines)) <= columns
    (header,) = (line.split() for line in lines if "augment_batch" in line and "compute_loss" in line)
    assert {"name", "suite", "augment_batch", "compute_loss", "rows"} <= set(header)
    assert any("manifold_mixup" in line and "12.3 ms (3.1%)" in line and "29.9 ms (7.5%)" in line for line in lines)
    assert [title in header for title in ("package", "contract")] in (
        [[True, True]] if columns == 200 else [[False, False], [True, False]]
    )


@pytest.mark.parametrize("wish", ["--suite", "--no-suite", "--quick"])
def test_the_suite_can_be_wished_for(
    wish: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(monkeypatch, capsys, GOOD, arguments=("alpha", wish))[0] == 0


def test_a_name_that_nothing_has_is_an_error_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = augury(capsys, "plugins", "check", "isdaa", "--no-suite")
    assert code == 2
    assert "unknown method `isdaa`" in err
    assert "Did you mean `isda`?" in err


@pytest.mark.slow
def test_the_methods_here_pass(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = augury(capsys, "plugins", "check", "dcutmix", "isda", "--no-suite")
    assert code == 0, out
    assert [row.split()[0] for row in out.splitlines()[1:3]] == ["dcutmix", "isda"]
    assert "ms (" in out
