"""The flags that say what a run does when numbers or memory run out."""

from __future__ import annotations

import pytest
from tests.cli.in_process import augury

from augury.errors import UsageError
from augury_cli.settings import read_settings


def test_flags_are_settings() -> None:
    settings = read_settings(None, None, None, None, None, on_nan="skip", auto_batch=True).train
    assert (settings.on_nan, settings.auto_batch) == ("skip", True)
    settings = read_settings(None, None, None, None, None).train
    assert (settings.on_nan, settings.auto_batch) == ("stop", False)
    with pytest.raises(UsageError, match=r"`train.on_nan` must be one of 'stop' or 'skip', got 'go'"):
        read_settings(None, None, None, None, None, on_nan="go")


def test_the_command_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = augury(capsys, "run", "--on-nan", "go", "--auto-batch", "-o", "run")
    assert (code, "`train.on_nan` must be one of 'stop' or 'skip'" in err) == (2, True), err
