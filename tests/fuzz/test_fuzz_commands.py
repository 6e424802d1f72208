"""The commands on files from anywhere: an exit code and a message, no traceback or escape, no file elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st
from tests.fuzz.faults import judged
from tests.fuzz.hostile import (
    HIDDEN,
    cases,
    command,
    configs,
    encoded,
    files,
    reject_root,
    texts,
    toml_text,
    tree,
)
from tests.fuzz.test_fuzz_registers import registers, suites
from tests.fuzz.test_fuzz_run_folders import SMALL, copied, documents

from augury_cli.processes import note
from augury_train.training.built import Built
from augury_train.training.watch import Silent

pytestmark = pytest.mark.filterwarnings("ignore")


def ended(code: int, out: str, err: str) -> None:
    """Check how a command ended."""
    assert code in (0, 1, 2)
    assert code == 0 or err.strip()
    for text in (out, err):
        assert "Traceback" not in text
        assert "augury failed" not in text, text
        assert not HIDDEN.search(text.replace("\n", "")), repr(text[:300])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


recipe_files = configs().map(lambda found: (found, encoded(toml_text(found))))


@cases(8, recipe=recipe_files)
def test_dry_runs_of_any_recipe(here: Path, recipe: tuple[dict, bytes]) -> None:
    reject_root(recipe[0])
    (here / "recipe.toml").write_bytes(recipe[1])
    code, out, err = command("run", "--recipe", "recipe.toml", "--dry-run")
    ended(code, out, err)
    assert judged(recipe[0]).due != "refused" or code
    assert set(tree(here)) == {"recipe.toml"}


@cases(5, content=files(recipe_files.map(lambda found: found[1])), name=texts)
def test_recipes_are_shown(here: Path, content: bytes, name: str) -> None:
    (here / "recipe.toml").write_bytes(content)
    code, out, err = command("recipes", "show", "recipe.toml")
    # Into a pipe it goes as it is, but for what is no text.
    assert not re.search("[\ud800-\udfff]", out)
    ended(code, "", err.partition("\n")[2] if code == 0 else err)
    if "\x00" not in name:
        ended(*command("recipes", "show", "--", name))


@cases(4, users=files(registers), projects=files(registers))
def test_methods_are_listed(here: Path, users: bytes, projects: bytes) -> None:
    (here / "registry.toml").write_bytes(projects)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUGURY_CONFIG", str(here / "config"))
        (here / "config").mkdir(exist_ok=True)
        (here / "config" / "registry.toml").write_bytes(users)
        ended(*command("plugins", "list"))
    assert set(tree(here)) == {"registry.toml", "config", "config/registry.toml"}


@cases(4, content=files(suites))
def test_comparisons_of_any_suite(here: Path, content: bytes) -> None:
    # No method of this name: what can be read is refused before anything is trained.
    (here / "suite.toml").write_bytes(content)
    ended(*command("compare", "suite.toml", "--with", "no_such_method"))
    assert set(tree(here)) == {"suite.toml"}


@cases(5, data=st.data(), name=st.sampled_from(SMALL))
def test_finished_runs_are_resumed_and_reported(finished: Path, here: Path, data: st.DataObject, name: str) -> None:
    folder = copied(finished, here / "case")
    (folder / name).write_bytes(data.draw(documents(name, (finished / name).read_bytes())))
    ended(*command("resume", str(folder)))
    ended(*command("report", str(folder)))
    assert {path for path in tree(here) if not path.startswith("case/inside/run")} == {"case", "case/inside"}
    shutil.rmtree(here / "case")


@cases(4, text=texts.filter(lambda text: "\x00" not in text), value=texts.filter(lambda text: "\x00" not in text))
def test_flags_of_any_text(here: Path, text: str, value: str) -> None:
    ended(*command("run", "--dry-run", "--with", text, "--set", f"{text}={value}"))
    ended(*command("run", "--dry-run", f"--model={text}", f"--dataset={value}", "--set", f"data.subset={value}"))
    assert json.dumps(sorted(tree(here))) == "[]"


def test_a_note_of_a_run_or_a_command_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    note("torch: had \x1b[2J\nuntil then")
    built = Built.__new__(Built)
    built.notes, built.reporter = [], Silent()
    built.note("torch: had \x1b[2J\nuntil then")
    assert [capsys.readouterr().err.removesuffix("\n")] == built.notes == ["torch: had \\x1b[2J until then"]
