"""The command, run in this process."""

from __future__ import annotations

import sys

import pytest

from augury_cli.main import main


def augury(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["augury", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err
