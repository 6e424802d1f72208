"""`augury plugins new`."""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from tests.cli.in_process import augury


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's register; the current one is another, and empty, and the shell finds this Python."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path / "config"))
    return tmp_path / "config"


def test_it_tells_what_it_wrote_and_what_comes_next(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hooks = ("--hook", "compute_loss", "--hook", "augment_batch")
    code, out, err = augury(capsys, "plugins", "new", "feature_noise", *hooks)
    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert "augury-feature-noise" in first
    assert "feature_noise (augment_batch, compute_loss)" in first
    folder = Path("augury-feature-noise")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    listed = [line.strip() for line in lines[: len(files)]]
    assert set(listed) == files
    commands = [shlex.split(line) for line in lines[lines.index("Next:") + 1 :]]
    assert commands == [
        ["python", "-m", "pip", "install", "-e", "augury-feature-noise[test]"],
        ["python", "-m", "pytest", "augury-feature-noise"],
        ["augury", "plugins", "list"],
        ["augury", "run", "--recipe", "feature_noise/digits"],
    ]
    listed = tomllib.loads((config / "registry.toml").read_text())["methods"]
    assert {name: entry["folder"] for name, entry in listed.items()} == {"feature_noise": str(folder.resolve())}


def test_commands_name_the_environment_where_the_shell_would_find_another(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/some where/bin/python")
    assert "  '/some where/bin/'python -m pytest augury-one\n" in augury(capsys, "plugins", "new", "one")[1]
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv/bin/python"))
    assert "  .venv/bin/augury plugins list\n" in augury(capsys, "plugins", "new", "two")[1]


def test_the_help_names_every_hook_and_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    from augury.hookspecs import HOOKS
    from augury_authoring.scaffold import DEFAULT_HOOKS

    code, out, _ = augury(capsys, "plugins", "new", "--help")
    told = " ".join(out.split())
    assert code == 0
    assert all(hook in told for hook in HOOKS)
    assert f"[default: {', '.join(DEFAULT_HOOKS)}]" in told
    code, out, _ = augury(capsys, "plugins", "new", "plain", "--path", "sub folder/plain")
    assert f"plain ({', '.join(DEFAULT_HOOKS)})" in out
    assert "python -m pip install -e 'sub folder/plain[test]'" in out
    assert "python -m pytest 'sub folder/plain'" in out


def test_what_is_wrong_is_a_line_each_and_nothing_is_written(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = augury(capsys, "plugins", "new", "MixUp", "--hook", "augment_bach", "--hook", "post_epoch")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 2
    assert "Did you mean `augment_batch`?" in err
    assert list(Path().iterdir()) == []
    assert not config.exists()


@pytest.mark.parametrize("text", [None, "[methods"])
def test_a_register_that_cannot_be_written_is_told_beside_the_package(
    config: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    if text is None:
        config.write_text("a file where the folder should be")
    else:
        config.mkdir()
        (config / "registry.toml").write_text(text)
    code, out, err = augury(capsys, "plugins", "new", "fresh")
    assert code == 0
    assert err.splitlines()[-1].endswith("once it is installed, `augury plugins trust fresh`.")
    assert "Your register lists" not in out
    commands = [line.strip() for line in out.partition("Next:\n")[2].splitlines()]
    assert commands[0].startswith("python -m pip install -e ")
    assert commands[1] == "augury plugins trust fresh"
    assert Path("augury-fresh/pyproject.toml").is_file()
