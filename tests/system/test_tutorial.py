"""The tutorials as a reader does them (docs/tutorial.md, docs/formula.md): each file written, each command run, in an
environment that has augury from wheels; the last part by somebody else, in an environment of their own with the wheel
that came of it.

What a reader does not see stands in an HTML comment before a block:

    <!-- check: --set optim.epochs=1 -->   added to the block's augury commands that take it
    <!-- on another machine -->            run by the user of what was published
    <!-- not run: why -->                  the block is left out
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.system.fresh import PROGRAM, ROOT, build_wheel, fresh_environment, install

from augury_authoring.scaffold.forms import FORMS
from augury_authoring.scaffold.names import spell
from augury_authoring.scaffold.package import render
from augury_authoring.testing.bench import Bench
from augury_authoring.testing.candidate import find
from augury_authoring.testing.checks import basics

TUTORIAL, FORMULA = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "formula.md"
PACKAGE, GCE = "augury-hide-and-seek", "augury-gce"
# A fence may be longer than three signs, where the block holds fences.
BLOCK = re.compile(r"((?:^<!--[^\n]*-->\n)*)^(`{3,})(\w*)\n(.*?)^\2$", re.MULTILINE | re.DOTALL)
TAKES = {"run": ("--set",), "compare": ("--set", "--seeds"), "check": ("--no-suite",)}


@dataclass(frozen=True)
class Block:
    """A fenced block, what the comments before it say, and the last line of text before those."""

    language: str
    text: str
    comments: str
    before: str

    @property
    def extra(self) -> list[str]:
        return [word for words in re.findall(r"<!-- check: (.*?) -->", self.comments) for word in shlex.split(words)]

    @property
    def file(self) -> str:
        """The file that the text before names as the block's."""
        named = re.search(r"`(\S+)`[^`]*:$", self.before)
        return named[1] if named and self.language in ("python", "toml", "markdown") else ""


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        before = text[: match.start()].rstrip().splitlines()[-1]
        yield Block(match[3], match[4], match[1], before)


@dataclass
class Machine:
    """An environment, a register and a working folder of their own."""

    python: Path
    home: Path
    printed: dict[str, str] = field(default_factory=dict)

    def run(self, words: Sequence[str]) -> None:
        """Run one command of the tutorial; it must end well."""
        if words[0] == "cd":
            self.home = (self.home / words[1]).resolve()
        elif words[:2] == ["pip", "install"]:
            # What is not ours is there already, and nothing is fetched.
            if words[2] == "-e":
                install(self.python, "-e", str(self.home / words[3].partition("[")[0]))
        else:
            # `python` and `augury` are the environment's.
            program = self.python.with_name(words[0])
            done = subprocess.run(
                [str(program), *words[1:]], cwd=self.home, env=self._environ(), input="y\n", text=True, timeout=600,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}"
            self.printed[shlex.join(words)] = done.stdout

    def _environ(self) -> dict[str, str]:
        left_out = ("VIRTUAL_ENV", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST")
        kept = {key: value for key, value in os.environ.items() if key not in left_out}
        own = self.python.parents[1].parent
        return kept | {"AUGURY_CONFIG": str(own / "config"), "AUGURY_DATA": str(own / "data"), "OMP_NUM_THREADS": "1"}


def commands(block: Block) -> Iterator[list[str]]:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            name = next((word for word in words[1:] if word in TAKES), "") if words[0] == "augury" else ""
            yield words + list(_taken(block.extra, TAKES.get(name, ())))


def _taken(extra: list[str], flags: Sequence[str]) -> Iterator[str]:
    for position, word in enumerate(extra):
        if (word if word.startswith("--") else extra[position - 1]) in flags:
            yield word


def set_fields(path: Path, lines: str) -> None:
    """Set keys of `[project]`, of which each is a line."""
    text = path.read_text()
    for line in lines.splitlines():
        key = line.partition(" = ")[0]
        text = re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[project]\n", f"[project]\n{line}\n")
    text = re.sub(r"^# WRITE: .*\n", "", text, flags=re.MULTILINE)
    path.write_text(text)


def machine(home: Path, *wheels: Path) -> Machine:
    python = fresh_environment(home / "env", wheels)
    (home / "work").mkdir()
    return Machine(python, home / "work")


@pytest.mark.slow
def test_the_tutorial_ends_with_a_method_that_others_use(tmp_path: Path) -> None:
    parts = [build_wheel(ROOT / part, tmp_path) for part in (*PROGRAM, "plugins/dcutmix")]
    (tmp_path / "author").mkdir()
    (tmp_path / "user").mkdir()
    author, user = machine(tmp_path / "author", *parts), None
    work = author.home
    written = set()
    for block in blocks(TUTORIAL):
        if "<!-- not run:" in block.comments:
            continue
        if "<!-- on another machine -->" in block.comments:
            (wheel,) = (work / PACKAGE / "dist").glob("*.whl")
            user = user or machine(tmp_path / "user", *parts[: len(PROGRAM)], wheel)
        if block.language == "sh":
            for words in commands(block):
                (user or author).run(words)
        elif block.file == "[project]":
            set_fields(work / PACKAGE / "pyproject.toml", block.text)
        elif block.file:
            path = work / PACKAGE / block.file
            assert path.is_file(), f"the tutorial writes a file that the package has not: {block.file}"
            path.write_text(block.text)
            written.add(block.file)

    assert user is not None
    (row,) = [line for line in author.printed["augury plugins list"].splitlines() if line.startswith("hide_and_seek")]
    assert " ready " in row
    assert (
        json.loads((user.home / "runs/digits/config.json").read_text())["methods"][0]["options"]["probability"] == 0.1
    )
    with zipfile.ZipFile(wheel) as archive:
        assert "augury_hide_and_seek/recipes/digits.toml" in archive.namelist()
    assert written >= {"README.md", "tests/test_functional.py"}


@pytest.mark.slow
def test_the_formula_becomes_a_package_that_composes(tmp_path: Path) -> None:
    parts = [build_wheel(ROOT / part, tmp_path) for part in (*PROGRAM, "plugins/dcutmix", "plugins/isda")]
    author = machine(tmp_path, *parts)
    written = set()
    for block in blocks(FORMULA):
        if block.language == "sh":
            for words in commands(block):
                author.run(words)
        elif block.file:
            path = author.home / GCE / block.file
            assert path.is_file(), f"the tutorial writes a file that the package has not: {block.file}"
            path.write_text(block.text)
            written.add(block.file)
    assert written >= {"src/augury_gce/functional.py", "src/augury_gce/method.py", "tests/test_functional.py"}
    methods = json.loads((author.home / "runs/three/config.json").read_text())["methods"]
    assert [method["name"] for method in methods] == ["gce", "isda", "dcutmix"]


def test_what_the_formulas_page_says_of_the_suite_is_what_it_says(tmp_path: Path) -> None:
    """Label weights left out of the last listing; quick, in this process."""
    texts = {block.file: block.text for block in blocks(FORMULA) if block.file}
    package = tmp_path / "augury_gce"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "functional.py").write_text(texts["src/augury_gce/functional.py"])
    faulty = texts["src/augury_gce/method.py"].replace("batch.shares * batch.label_weights", "batch.shares")
    (package / "method.py").write_text(faulty)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        failed, _ = Bench(find(importlib.import_module("augury_gce.method").Gce, {})).verdict(basics.criterion)
    for name in [name for name in sys.modules if name.startswith("augury_gce")]:
        del sys.modules[name]
    (told,) = [block.text.strip() for block in blocks(FORMULA) if block.text.startswith("gce: ")]
    assert failed.startswith(told)


@pytest.mark.parametrize(
    ("page", "name", "form", "package", "files", "unwritten"),
    [
        (TUTORIAL, "hide_and_seek", None, PACKAGE, 7, ["pyproject.toml"]),
        (FORMULA, "gce", "criterion", GCE, 7, ["README.md", "pyproject.toml"]),
    ],
)
def test_the_tutorials_files_are_the_packages_and_as_clean(
    tmp_path: Path, page: Path, name: str, form: str | None, package: str, files: int, unwritten: list[str]
) -> None:
    """Quick, so that a word changed in the tutorial is seen at once."""
    for file, text in render(spell(name), ["augment_batch"], form and FORMS[form]).items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    for block in blocks(page):
        if block.file and block.file != "[project]":
            (tmp_path / block.file).write_text(block.text)
    for command in (["format", "--check"], ["check"]):
        ruff = str(Path(sys.executable).with_name("ruff"))
        done = subprocess.run(
            [ruff, *command, "--no-cache", str(tmp_path)], capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
    (tree,) = [block.text for block in blocks(page) if block.text.startswith(f"{package}/")]
    told = re.findall(r"^ +(\S+\.\w+) ", tree, re.MULTILINE)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(any(path.as_posix().endswith(f"/{name}") for path in written) for name in told)
    assert len(told) == files
    # What later steps, or the first tutorial's, write.
    assert sorted(path.name for path in written if "WRITE:" in path.read_text()) == unwritten
