"""docs/register.md, read as a user would who installs somebody's method: commands, files and tables."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.in_process import augury
from tests.system.test_docs import Block, blocks, commands

from augury.errors import UsageError
from augury.registry import Register, default_user_file
from augury_cli.check import _SPARE, _TITLES

PAGE = Path(__file__).parents[2] / "docs" / "register.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = blocks(PAGE)
METHOD = """
import augury
print("hello")

class HideAndSeek(augury.Method):
    contract = "2.0"
    class Options(augury.Options):
        grid: int = 4
        probability: float = 0.5

    @augury.hookimpl
    def post_epoch(self, metrics):
        return {"grid": self.options.grid}
"""
QUICK = "--set optim.epochs=1 --set data.images_per_class=4 --set optim.batch_size=16"


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the page, installed, and a folder to work in; costs, which take seconds, are not measured."""

    def unmeasured(*_: object) -> None:
        raise UsageError("not here")

    monkeypatch.setattr("augury_train.training.hook_costs.CostMeter.measure", unmeasured)
    info = tmp_path / "site/augury_hide_and_seek-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: augury-hide-and-seek\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[augury.methods]\nhide_and_seek = augury_hide_and_seek:HideAndSeek\n")
    (tmp_path / "site/augury_hide_and_seek.py").write_text(METHOD)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    yield
    sys.modules.pop("augury_hide_and_seek", None)


def files() -> tuple[str, str]:
    """The user's register and the project's."""
    users, projects = (block.text for block in BLOCKS if block.language == "toml")
    return users, projects


def table(title: str, head: str) -> dict[str, str]:
    """Rows of the section's table with that head; a first cell of two names counts for both."""
    rows = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0].split(f"| {head} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [row.strip("|").split(" | ", 1) for row in rows]
    return {name: told for first, told in cells for name in re.findall(r"`([^`]+)`", first) or [first.strip()]}


def _run(block: Block, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    command, *rest = words[1:]
    added = [extra for extra in block.extra if extra.startswith("-") and words[2] == "trust"]
    if command == "run":
        added += shlex.split(QUICK)
    return augury(capsys, command, *rest, *added, *(["--no-suite"] if rest[0] == "check" else []))


def test_the_commands_run_and_trust_writes_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    for block in BLOCKS:
        if block.language != "sh" or block.left_out:
            continue
        untrusted = "untrusted" in block.extra
        if untrusted:
            assert augury(capsys, "plugins", "untrust", "hide_and_seek")[0] == 0
            written = default_user_file().read_text()
        for words in commands(block.text):
            code, out, err = _run(block, words, capsys)
            assert code == 0, f"{words}\n{out}{err}"
        if untrusted:
            assert default_user_file().read_text() == written, "--trust writes nothing"
            assert augury(capsys, "run", "--dataset", "digits", "--with", "hide_and_seek", "--output", "no")[0] == 2
            assert augury(capsys, "plugins", "trust", "hide_and_seek", "--yes")[0] == 0
    listed = tomllib.loads(default_user_file().read_text())["methods"]
    assert listed == tomllib.loads(files()[0])["methods"]
    row = json.loads(Path("runs/hidden/metrics.jsonl").read_text().splitlines()[-1])
    assert [value for key, value in row.items() if "grid" in key] == [2]


def test_the_files_mean_what_the_page_says() -> None:
    users, projects = files()
    default_user_file().write_text(users)
    register = Register.load()
    assert register.notes == []
    assert register.resolve("hide_coarse")[1] == {"grid": 2, "probability": 0.25}
    Path("registry.toml").write_text(projects)
    register = Register.load()
    assert register.notes == []
    assert register.resolve("hide_and_seek")[1] == {"probability": 0.5}, "the project's goes before the user's"
    assert register.resolve("hide_fine")[1] == {"grid": 8, "probability": 0.5}
    default_user_file().write_text("")
    register = Register.load()
    assert len(register.notes) == 2, "an alias and defaults for what nobody lists"
    assert all("is ignored" in note for note in register.notes)
    Path("registry.toml").write_text(users.split("\n\n")[0])
    register = Register.load()
    assert "can neither trust a method" in register.notes[0]
    (found,) = (found for found in register.methods() if found.name == "hide_and_seek")
    assert found.status == "not trusted"


def test_the_tables_of_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert ["name", *table("Check", "column | says")] == list(_TITLES)
    (spared,) = re.findall(r"a narrow terminal is spared (.*?)\.", TEXT)
    assert tuple(re.findall(r"`(\w+)`", spared)) == _SPARE
    default_user_file().write_text(files()[0])
    code, out, err = augury(capsys, "plugins", "check", "hide_and_seek", "--no-suite", "--json")
    assert (code, "hello" in err) == (0, True)
    found = json.loads(out)
    told = table("Check", "key | holds")
    assert told.keys() == found.keys()
    assert set(re.findall(r"`(\w+)`", told["methods"])) == found["methods"][0].keys()
    codes = table("Check", "exit code | means")
    assert set(codes) == {"0", "1", "2"}
    default_user_file().write_text("")
    assert augury(capsys, "plugins", "check", "hide_and_seek", "--no-suite")[0] == 1
    assert augury(capsys, "plugins", "check", "seek", "--no-suite")[0] == 2


def test_info_as_json_is_nothing_else_whatever_a_method_prints(capsys: pytest.CaptureFixture[str]) -> None:
    default_user_file().write_text(files()[0])
    code, out, err = augury(capsys, "plugins", "info", "hide_and_seek", "--json")
    assert (code, json.loads(out)["name"], "hello" in err) == (0, "hide_and_seek", True)
