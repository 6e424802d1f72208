"""`augury report` as its user meets it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.lab.report_folders import write_run

from augury_cli.main import main


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["augury", "report", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


def test_it_says_where_the_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"))
    assert report(capsys, "run") == (0, "report run/report.html\n", "")
    assert report(capsys, "run", "--output", "page.html") == (0, "report page.html\n", "")
    assert Path("page.html").read_bytes() == Path("run/report.html").read_bytes()


def test_what_is_no_folder_of_ours_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = report(capsys, str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"{tmp_path} holds no run (config.json), no comparison (comparison.json)")
    assert err.count("\n") == 1
