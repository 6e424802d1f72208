"""Paths that a user gives: whatever no path can be called, is refused in a line that says so."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.in_process import augury

from augury.errors import UsageError
from augury.outside import given_path, with_home

TOO_LONG = "x" * 300


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a loop of links."""
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("", "it is empty"),
        (TOO_LONG, "File name too long"),
        ("x/" * 3000, "File name too long"),
        ("a\0b", "embedded null byte"),
        ("~a\0b", "embedded null byte"),
        ("\ud800", "surrogates not allowed"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/inside", "Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_a_path_is_refused_in_a_line(here: Path, place: str, why: str) -> None:
    with pytest.raises(UsageError) as error:
        given_path(place, "--output")
    told = str(error.value)
    assert told.startswith("--output: the path '")
    assert why in told
    assert told.endswith("Give another one.")
    assert "\n" not in told
    assert len(told) < 300


def test_what_may_not_be_read_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("shut").mkdir()
    assert given_path("shut", "RUN") == Path("shut")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match=r"^RUN: the path 'shut' cannot be used \(Permission denied\)"):
        given_path("shut", "RUN")

    def forbidden(path: object, **options: object) -> os.stat_result:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", forbidden)
    with pytest.raises(UsageError, match=r"^RUN: the path 'shut/in' cannot be used \(Permission denied\)"):
        given_path("shut/in", "RUN")


def test_a_path_need_not_exist_and_home_is_written_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert given_path("~/x", "RUN") == Path("/somewhere/x")
    assert given_path(Path("~/x"), "RUN") == Path("/somewhere/x")
    assert given_path("~no-such-user/x", "RUN") == Path("~no-such-user/x")
    assert with_home("a/~") == "a/~"
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    for place in ("nowhere", "file/below", "dangling"):
        assert given_path(place, "RUN") == Path(place)


COMMANDS = [
    "run --dry-run --dataset {}",
    "run --dry-run --dataset fashion_mnist:{}",
    "run --dry-run --dataset wds/{}",
    "run --dry-run --recipe {}",
    "run --dry-run --init-from {}",
    "run --dry-run --subset {}",
    "run --output {}",
    "run --output {}/run",
    "resume {}",
    "preview --output {}",
    "compare --with-each isda --output {}",
    "compare {}",
    "evaluate {}",
    "evaluate . --output {}",
    "uncertainty {}",
    "predict {} image.png",
    "export {}",
    "report {}",
    "report . --output {}",
    "plugins new some_name --path {}",
    "recipes show {}",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore")
def test_no_command_fails_at_a_path(here: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    make: list[Callable[[], str]] = [lambda: TOO_LONG, lambda: "x" * 20_000, lambda: "loop", lambda: "~no-such-user/x"]
    for place in (each() for each in make):
        # What is not there may be made: nothing is wrong with this one as an output.
        if place.startswith("~") and ("--output" in command or "--path" in command):
            continue
        code, out, err = augury(capsys, *[word.format(place) for word in shlex.split(command)])
        assert code in (1, 2), out
        assert "augury failed" not in err
        assert len(err.strip().splitlines()) <= 2, err
        assert len(err) < 5000


@pytest.mark.parametrize("variable", ["AUGURY_DATA", "AUGURY_CONFIG"])
def test_variables_that_name_folders(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, TOO_LONG)
    code, _, err = augury(capsys, "run", "--dry-run", "--dataset", "no-such-folder", "--with", "isda")
    assert code == 2
    assert err.startswith(f"{variable}: the path 'xxx")


def test_a_run_below_the_home_folder_is_one_run_however_it_is_written(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(here))
    few = ["--set", "data.images_per_class=3", "--set", "optim.batch_size=15", "--set", "optim.epochs=1"]
    few += ["--set", "train.trackers=[]"]
    assert augury(capsys, "run", *few, "--output=~/run")[0] == 0
    assert not (here / "~").exists()
    rows = (here / "run" / "metrics.jsonl").read_text()
    for place in ("~/run", str(here / "run")):
        code, _, err = augury(capsys, "run", *few, "--output", place)
        assert (code, "exists. Continue it with" in err) == (2, True), err
    assert (here / "run" / "metrics.jsonl").read_text() == rows
    code, _, err = augury(capsys, "resume", "~/run")
    assert (code, "this run is finished" in err) == (0, True), err
    assert augury(capsys, "compare", "--with", "dcutmix", "--seeds", "1", *few, "--output=~/compared")[0] == 0
    assert (here / "compared" / "comparison.json").is_file()
    assert not (here / "~").exists()
