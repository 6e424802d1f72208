"""Run folders from anywhere: gone on with, reported on and evaluated, or refused; nothing beside them is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.fuzz.hostile import Drawn, all_told, answer, cases, damaged, encoded, files, told, tree, values

from augury.errors import one_line
from augury_lab.evaluation.subject import load_subject
from augury_lab.report import write_report
from augury_lab.report.gather import gather
from augury_train.data.subset import _read as read_subset
from augury_train.training.environment import how_to_resume, read_environment, version_changes
from augury_train.training.facts import begun
from augury_train.training.recorder import read_rows
from augury_train.training.result import read_result
from augury_train.training.trainer import resume

SMALL = ("config.json", "data.json", "environment.json", "metrics.jsonl", "result.json")


def odd_json(draw: st.DrawFn, said: Any) -> Any:
    """A JSON document in which a value somewhere is another."""
    if isinstance(said, dict) and said and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(said)))
        match draw(st.integers(0, 5)):
            case 0:
                return {inner: value for inner, value in said.items() if inner != key}
            case 1:
                return {**said, draw(st.text(max_size=5)): draw(values)}
        return {**said, key: odd_json(draw, said[key])}
    if isinstance(said, list) and said and draw(st.booleans()):
        place = draw(st.integers(0, len(said) - 1))
        return [*said[:place], odd_json(draw, said[place]), *said[place + 1 :]]
    return draw(values)


@st.composite
def documents(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """The file of that name, odd in some way."""
    if draw(st.booleans()):
        return draw(files(damaged(content)))
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in content.splitlines()]
        rows = [odd_json(draw, row) for row in rows * draw(st.integers(1, 3))]
        return b"".join(encoded(json.dumps(row)) + b"\n" for row in rows)
    return encoded(json.dumps(odd_json(draw, json.loads(content))))


def copied(run: Path, at: Path) -> Path:
    """A copy of a run to damage; `at` holds it and nothing else."""
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(run, at / "inside" / "run")
    return at / "inside" / "run"


READERS: dict[str, Callable[[Path], Any]] = {
    "data.json": begun,
    "environment.json": lambda folder: version_changes(read_environment(folder)),
    "metrics.jsonl": lambda folder: read_rows(folder / "metrics.jsonl"),
    "result.json": read_result,
}


@cases(30, data=st.data(), name=st.sampled_from(sorted(READERS)))
def test_each_file_of_a_run_is_read_or_refused(finished: Path, tmp_path: Path, data: st.DataObject, name: str) -> None:
    (tmp_path / name).write_bytes(data.draw(documents(name, (finished / name).read_bytes())))
    found = answer(lambda: READERS[name](tmp_path))
    if name == "environment.json":
        all_told([one_line(line) for line in found or []])
        told(how_to_resume(tmp_path, read_environment(tmp_path)).replace("\n", " "))


@cases(4, data=st.data(), names=st.sets(st.sampled_from(SMALL), min_size=1, max_size=2))
def test_a_run_with_odd_files_is_gone_on_with_or_refused(
    unfinished: Path, tmp_path: Path, data: st.DataObject, names: set[str]
) -> None:
    folder = copied(unfinished, tmp_path / "case")
    for name in sorted(names & {path.name for path in unfinished.iterdir()}):
        (folder / name).write_bytes(data.draw(documents(name, (unfinished / name).read_bytes())))
    answer(lambda: resume(folder))
    assert {name for name in tree(tmp_path / "case") if not name.startswith("inside/run")} == {"inside"}


@cases(6, data=st.data(), names=st.sets(st.sampled_from(SMALL), min_size=1, max_size=3))
def test_a_report_of_odd_files_is_written_or_refused(
    finished: Path, tmp_path: Path, data: st.DataObject, names: set[str]
) -> None:
    folder = copied(finished, tmp_path / "case")
    for name in sorted(names):
        (folder / name).write_bytes(data.draw(documents(name, (finished / name).read_bytes())))
    facts = answer(lambda: gather(folder))
    if facts is not None:
        all_told(facts.problems)
    answer(lambda: write_report(folder))


@cases(5, data=st.data(), name=st.sampled_from(["config.json", "data.json"]))
def test_a_run_with_odd_files_is_evaluated_or_refused(
    finished: Path, tmp_path: Path, data: st.DataObject, name: str
) -> None:
    folder = copied(finished, tmp_path / "case")
    (folder / name).write_bytes(data.draw(documents(name, (finished / name).read_bytes())))
    answer(lambda: load_subject(folder, device="cpu"))


SUBSET = {
    "dataset": "digits",
    "classes": ["0", "1"],
    "images": 9,
    "labels": "abc",
    "protocol": "validation",
    "split_seed": 0,
    "val_fraction": 0.1,
    "test_fraction": 0.3,
    "rows": [1, 2, 8],
}


@cases(8, content=documents("subset.json", json.dumps(SUBSET).encode()))
def test_any_file_can_be_given_as_a_subset(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "subset.json"
    path.write_bytes(content)
    answer(lambda: read_subset(path))


@cases(
    5,
    name=st.sampled_from(
        [*SMALL, "best.safetensors", "checkpoints", "stages", "figures", "tensorboard", "report.html"]
    ),
    to=st.sampled_from(["../../victim", "../../victim/file", "../../new", "/", ".", "metrics.jsonl"]),
)
def test_links_in_a_run_change_nothing_outside(unfinished: Path, tmp_path: Path, name: str, to: str) -> None:
    folder = copied(unfinished, tmp_path / "case")
    (tmp_path / "case" / "victim").mkdir()
    (tmp_path / "case" / "victim" / "file").write_text("dear", encoding="utf-8")
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(to)
    before = {key: value for key, value in tree(tmp_path / "case").items() if not key.startswith("inside/run")}
    inside = to in (".", "metrics.jsonl")
    drawn = Drawn(to, "either" if inside else "refused", "is a link to")
    answer(lambda: resume(folder), drawn)
    answer(lambda: write_report(folder), drawn)
    after = {key: value for key, value in tree(tmp_path / "case").items() if not key.startswith("inside/run")}
    assert after == before


pytestmark = pytest.mark.filterwarnings("ignore")
