"""`augury plugins list`, `trust` and `untrust`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from augury.errors import UsageError
from augury_cli.plugins import app, list_methods

RUNNER = CliRunner()
LISTED = """
[methods.alpha]
distribution = "fake-alpha"
entry_point = "fake_alpha:M"
versions = ">=1,<2"
title = "Alpha: the first"
paper = "none"
hooks = ["augment_batch", "post_epoch"]
summary = "[red]nothing[/red] at all is what it does, at some length, so that it fills more than a line of a terminal."
"""
Install = Callable[..., None]


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's register, in a folder of its own; the current folder is another one."""
    (tmp_path / "config").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("AUGURY_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "config/registry.toml"


@pytest.fixture
def install(tmp_path: Path, user_file: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put throw-away distributions on the path, whose modules must not be imported."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def put(name: str, dist: str = "", version: str = "1.0", summary: str = "", folder: Path | None = None) -> None:
        dist = dist or f"fake-{name}"
        module = dist.replace("-", "_")
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        told = f"Summary: {summary}\n" if summary else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n{told}")
        if folder is not None:
            origin = {"url": folder.as_uri(), "dir_info": {"editable": True}}
            (info / "direct_url.json").write_text(json.dumps(origin))
        (info / "entry_points.txt").write_text(f"[augury.methods]\n{name} = {module}:M\n")
        (site / f"{module}.py").write_text("raise RuntimeError('imported')")

    return put


def test_a_pipe_gets_one_line_a_method_and_problems_on_stderr(install: Install, user_file: Path) -> None:
    install("alpha")
    install("stranger")
    user_file.write_text(LISTED)
    Path("registry.toml").write_text("[methods")
    result = RUNNER.invoke(app, ["list"])
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["name", "distribution", "version", "hooks", "status", "summary"]
    assert [row.split()[0] for row in rows] == sorted(row.split()[0] for row in rows)
    alpha = next(row for row in rows if row.startswith("alpha "))
    assert alpha.split()[1:6] == ["fake-alpha", "1.0", "augment_batch,", "post_epoch", "ready"]
    assert alpha.endswith(
        "[red]nothing[/red] at all is what it does, at some length, so that it fills more than a line of a terminal."
    )
    stranger = next(row for row in rows if row.startswith("stranger "))
    assert stranger.split()[1:] == ["fake-stranger", "1.0", "not", "trusted"]
    problems = result.stderr.splitlines()
    assert any(
        line.startswith("stranger: fake-stranger 1.0 (fake_stranger:M) is installed but not listed.")
        for line in problems
    )
    assert problems[-1].startswith("./registry.toml: is not valid TOML and is ignored")


def test_the_summary_is_the_package_s_where_the_register_has_none(install: Install, user_file: Path) -> None:
    install("alpha", summary="what the package says")
    install("beta", summary="what beta says")
    install("gamma", summary="what gamma says")
    user_file.write_text(LISTED)
    assert RUNNER.invoke(app, ["trust", "beta", "--yes"]).exit_code == 0
    alpha = tomllib.loads(LISTED)["methods"]["alpha"]["summary"]
    for name, summary in [("alpha", alpha), ("beta", "what beta says"), ("gamma", "what gamma says")]:
        rows = RUNNER.invoke(app, ["list"]).stdout.splitlines()
        assert next(row for row in rows if row.startswith(f"{name} ")).endswith(summary)
        methods = json.loads(RUNNER.invoke(app, ["list", "--json"]).stdout)
        assert next(method for method in methods if method["name"] == name)["summary"] == summary


@pytest.mark.parametrize("columns", [40, 99, 100, 140])
def test_a_terminal_of_any_width_shows_every_name_and_status_whole(
    install: Install, user_file: Path, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install("alpha")
    install("stranger")
    user_file.write_text(LISTED)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    list_methods()
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert any("stranger" in line and "not trusted" in line for line in lines)
    assert any("alpha" in line and "ready" in line for line in lines)
    assert any("[red]nothing[/red]" in line for line in lines)
    if columns >= 100:
        assert max(map(len, lines)) <= columns
        assert any(line.split() == ["name", "distribution", "version", "hooks", "status", "summary"] for line in lines)


def test_json_is_a_list_of_objects_and_nothing_else(install: Install, user_file: Path) -> None:
    install("alpha")
    install("stranger")
    user_file.write_text(LISTED)
    result = RUNNER.invoke(app, ["list", "--json"])
    methods = {method["name"]: method for method in json.loads(result.stdout)}
    assert methods["alpha"] == {
        "name": "alpha",
        "distribution": "fake-alpha",
        "version": "1.0",
        "entry_point": "fake_alpha:M",
        "status": "ready",
        "problem": "",
        "versions": ">=1,<2",
        "layer": "user",
        "title": "Alpha: the first",
        "paper": "none",
        "hooks": ["augment_batch", "post_epoch"],
        "summary": tomllib.loads(LISTED)["methods"]["alpha"]["summary"],
    }
    assert methods["stranger"]["status"] == "not trusted"
    assert methods["stranger"]["hooks"] == []
    assert methods["stranger"].keys() == methods["alpha"].keys()
    assert {"agmax", "dcutmix", "isda", "resmooth"} <= methods.keys()


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"]])
def test_listing_imports_no_method_and_nothing_large(install: Install, tmp_path: Path, arguments: list[str]) -> None:
    install("alpha")
    program = """
import sys
sys.path.insert(0, sys.argv[1])
from augury_cli.plugins import app
app(sys.argv[2:], standalone_mode=False)
large = ("torch", "torchvision", "timm", "numpy", "matplotlib", "pydantic", "pluggy", "accelerate", "rich.table")
methods = [m for m in sys.modules if m.startswith(("augury_", "fake_")) and not m.startswith("augury_cli")]
assert not [*methods, *(m for m in large if m in sys.modules)], (methods, [m for m in large if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "site"), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "fake-alpha" in done.stdout


def test_trust_shows_what_it_is_and_lists_it_after_a_yes(install: Install, user_file: Path) -> None:
    install("stranger", version="2.3")
    result = RUNNER.invoke(app, ["trust", "stranger"], input="y\n")
    assert result.exit_code == 0
    assert result.stdout.startswith("stranger: fake-stranger 2.3 (fake_stranger:M)\n")
    assert "Trust its versions >=2.3,<3?" in result.stdout
    assert result.stdout.endswith(f"Listed in {user_file}.\n")
    assert tomllib.loads(user_file.read_text())["methods"]["stranger"] == {
        "distribution": "fake-stranger",
        "entry_point": "fake_stranger:M",
        "versions": ">=2.3,<3",
    }
    again = RUNNER.invoke(app, ["trust", "stranger"])
    assert again.exit_code == 0
    assert "It is listed already (user register, versions >=2.3,<3)." in again.stdout


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_trust_changes_nothing_without_a_yes(install: Install, user_file: Path, answer: str) -> None:
    install("stranger")
    result = RUNNER.invoke(app, ["trust", "stranger"], input=answer)
    assert result.exit_code == 1
    assert not user_file.exists()


def test_trust_with_yes_does_not_ask(install: Install, user_file: Path) -> None:
    install("stranger")
    result = RUNNER.invoke(app, ["trust", "stranger", "--yes"], input="")
    assert result.exit_code == 0
    assert "stranger" in tomllib.loads(user_file.read_text())["methods"]


def test_trust_of_what_cannot_be_trusted_raises_before_it_asks(install: Install, user_file: Path) -> None:
    install("twice", "fake-twice")
    install("twice", "look-alike")
    for name, reason in [("twice", "claimed more than once"), ("twise", "Did you mean `twice`")]:
        result = RUNNER.invoke(app, ["trust", name], input="y\n")
        assert isinstance(result.exception, UsageError)
        assert reason in str(result.exception)
    assert not user_file.exists()


def test_trusting_another_package_than_the_listed_one_shows_both(install: Install, user_file: Path) -> None:
    install("alpha", "look-alike")
    user_file.write_text(LISTED)
    result = RUNNER.invoke(app, ["trust", "alpha"], input="n\n")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        "alpha: look-alike 1.0 (look_alike:M)",
        "Listed is fake-alpha (fake_alpha:M), versions >=1,<2 (user register): this is another.",
    ]
    assert user_file.read_text() == LISTED


def test_trusting_again_shows_what_would_change_and_asks(install: Install, user_file: Path, tmp_path: Path) -> None:
    install("alpha", folder=tmp_path / "project")
    user_file.write_text(LISTED.replace(", at some length, so that it fills more than a line of a terminal", ""))
    before = user_file.read_text()
    result = RUNNER.invoke(app, ["trust", "alpha"], input="n\n")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:6] == [
        f"alpha: fake-alpha 1.0 (fake_alpha:M) from {tmp_path / 'project'}",
        "It is listed already. Your register's entry would become what `trust` writes today:",
        '  - title = "Alpha: the first"',
        '  - hooks = ["augment_batch", "post_epoch"]',
        '  - summary = "[red]nothing[/red] at all is what it does."',
        f'  + folder = "{tmp_path / "project"}"',
    ]
    assert user_file.read_text() == before
    assert RUNNER.invoke(app, ["trust", "alpha"], input="y\n").exit_code == 0
    assert tomllib.loads(user_file.read_text())["methods"]["alpha"].keys() == {
        "distribution",
        "entry_point",
        "versions",
        "folder",
        "paper",
    }
    result = RUNNER.invoke(app, ["trust", "alpha"], input="")
    assert result.exit_code == 0
    assert "It is listed already (user register, versions >=1,<2)." in result.stdout


def test_trusting_another_folder_than_the_listed_one_shows_both(
    install: Install, user_file: Path, tmp_path: Path
) -> None:
    install("alpha", folder=tmp_path / "project")
    user_file.write_text(f"{LISTED}folder = '{tmp_path / 'site'}'\n")
    result = RUNNER.invoke(app, ["trust", "alpha"], input="n\n")
    assert result.stdout.splitlines()[:2] == [
        f"alpha: fake-alpha 1.0 (fake_alpha:M) from {tmp_path / 'project'}",
        f"Listed is fake-alpha (fake_alpha:M) from {tmp_path / 'site'}, versions >=1,<2 (user register): "
        "this is another.",
    ]


def test_untrust_takes_a_method_off_the_register_and_tells_what_named_it(install: Install, user_file: Path) -> None:
    install("alpha")
    kept = "# mine\n[aliases.a]\nmethod = 'alpha'\n\n[defaults.alpha]\nx = 1\n"
    user_file.write_text(kept + LISTED)
    result = RUNNER.invoke(app, ["untrust", "alpha"])
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"alpha: no longer listed in {user_file}.",
        "What names it counts for nothing from now on: the alias `a`, its [defaults] table.",
    ]
    assert user_file.read_text() == kept + "\n"
    again = RUNNER.invoke(app, ["untrust", "alpha"])
    assert isinstance(again.exception, UsageError)
    assert "alpha is not listed" in str(again.exception)


def test_untrusting_what_the_built_in_register_lists_too_says_that_it_stays(install: Install, user_file: Path) -> None:
    user_file.write_text(LISTED.replace("alpha", "isda"))
    result = RUNNER.invoke(app, ["untrust", "isda"])
    assert result.stdout.splitlines()[1:] == [
        "It is listed still, in the built-in register: augury-isda, versions >=0.1,<1."
    ]
