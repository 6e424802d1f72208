"""What is to be refused is refused, for the reason that is wrong with it; what is whole is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from tests.fuzz import faults
from tests.fuzz.hostile import TINY, Drawn, answer, cases, encoded, toml_text
from tests.fuzz.test_fuzz_run_folders import SUBSET, copied

from augury.outside import given_path
from augury_train.backbones.weights import read_weights
from augury_train.config import load_config, read_config, read_recipe
from augury_train.data.patterns import expand
from augury_train.data.subset import _read as read_subset
from augury_train.data.tar_members import members
from augury_train.files import refuse_ways_out
from augury_train.training.checkpoint import load_checkpoint
from augury_train.training.facts import begun
from augury_train.training.recorder import read_rows
from augury_train.training.result import read_result

pytestmark = pytest.mark.filterwarnings("ignore")


@cases(4, found=st.fixed_dictionaries(faults.SETTINGS))
def test_settings_with_one_fault(tmp_path: Path, found: dict[str, Drawn]) -> None:
    for drawn in (*found.values(), Drawn(TINY, "accepted")):
        (tmp_path / "config.json").write_bytes(encoded(json.dumps(drawn.value)))
        answer(lambda: load_config(tmp_path / "config.json"), drawn)
        # TOML has no halves of characters.
        if "\ud800" not in repr(drawn.value) and "\\ud800" not in repr(drawn.value):
            (tmp_path / "recipe.toml").write_bytes(encoded(toml_text(drawn.value)))
            answer(lambda: read_config(read_recipe(tmp_path / "recipe.toml")), drawn)


@cases(2, more=st.integers(1, 2**20), byte=st.sampled_from([b"\xff", b"\x80", b"\xed\xa0\x80"]))
def test_files_that_are_too_large_or_no_text(tmp_path: Path, more: int, byte: bytes) -> None:
    content = encoded(toml_text(TINY))
    for whole, drawn in (
        (content + b"\n#" + b"x" * (2**20 - len(content) - 2), Drawn(due="accepted")),
        (content + b"\n#" + b"x" * (2**20 - len(content) - 2 + more), Drawn(due="refused", about="larger than 1 MiB")),
        (content + b"\n#" + byte, Drawn(due="refused", about="no UTF-8")),
    ):
        (tmp_path / "recipe.toml").write_bytes(whole)
        answer(lambda: read_config(read_recipe(tmp_path / "recipe.toml")), drawn)


@cases(4, data=st.data())
def test_documents_of_a_run_with_one_fault(finished: Path, tmp_path: Path, data: st.DataObject) -> None:
    said = json.loads((finished / "data.json").read_text())
    for drawn in (Drawn(said, "accepted"), *data.draw(faults.documents(said, faults.DATA))):
        (tmp_path / "data.json").write_text(json.dumps(drawn.value))
        answer(lambda: begun(tmp_path), drawn)
    for drawn in (Drawn(SUBSET, "accepted"), *data.draw(faults.documents(SUBSET, faults.SUBSET))):
        (tmp_path / "subset.json").write_text(json.dumps(drawn.value))
        answer(lambda: read_subset(tmp_path / "subset.json"), drawn)
    result: dict[str, Any] = json.loads((finished / "result.json").read_text())
    for key in ("best", "costs", "best_epoch", "last"):
        wrong = data.draw(st.sampled_from([None, "x", [1], {}, {"test": 5}, {"train": {}}]))
        (tmp_path / "result.json").write_text(json.dumps({**result, key: wrong}))
        answer(lambda: read_result(tmp_path), Drawn(wrong, "refused", "result.json: cannot be read"))
    rows = (finished / "metrics.jsonl").read_text()
    wrong = data.draw(st.sampled_from(["[]", "{}", '{"epoch": "1"}', '{"epoch": 1, "train_seconds": -1}', "x", "1"]))
    (tmp_path / "metrics.jsonl").write_text(f"{wrong}\n{rows}")
    answer(lambda: read_rows(tmp_path / "metrics.jsonl"), Drawn(wrong, "refused", "line 1 is no epoch's row"))


@cases(3, to=st.sampled_from(["../../victim", "/", "/etc", "../..", "../run2"]), name=st.sampled_from(["a", "b/c/d"]))
def test_links_out_of_a_folder(tmp_path: Path, to: str, name: str) -> None:
    for drawn in (Drawn(to, "refused", "is a link to"), Drawn(".", "accepted")):
        link = tmp_path / drawn.due / "run" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(drawn.value)
        root = next(parent for parent in link.parents if parent.name == "run")
        answer(lambda root=root: refuse_ways_out(root), drawn)


@cases(4, found=faults.tars())
def test_tars_with_one_odd_member(tmp_path: Path, found: list[Drawn]) -> None:
    path = tmp_path / "x.tar"
    for drawn in found:
        path.write_bytes(drawn.value)
        answer(lambda: list(members(path, nested=True)), drawn)
        if "inside each other" not in drawn.about:
            answer(lambda: list(members(path, nested=False)), drawn)


@cases(6, drawn=faults.patterns())
def test_patterns_of_any_number_of_paths(tmp_path: Path, drawn: Drawn) -> None:
    answer(lambda: list(expand(f"{tmp_path}/{drawn.value}", "p")), drawn)


@cases(4, drawn=faults.weights(), name=st.sampled_from(["x.safetensors"]))
def test_weights_that_are_not_those_of_their_digest(tmp_path: Path, drawn: Drawn, name: str) -> None:
    (tmp_path / name).write_bytes(drawn.value)
    answer(lambda: read_weights(tmp_path / name, "x"), drawn)


@cases(2, place=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_checkpoints_that_are_not_those_of_their_digest(
    unfinished: Path, tmp_path: Path, place: float, bit: int
) -> None:
    folder = copied(unfinished, tmp_path / "case")
    assert isinstance(answer(lambda: load_checkpoint(folder), Drawn(due="accepted")), dict)
    for path in (folder / "checkpoints").iterdir():
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 1 << bit
        path.write_bytes(content)
    answer(lambda: load_checkpoint(folder), Drawn(due="refused", about="its content is not what was written"))


@cases(10, drawn=faults.paths)
def test_paths_of_any_kind(tmp_path: Path, drawn: Drawn) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        if not (tmp_path / "loop").is_symlink():
            (tmp_path / "loop").symlink_to("loop")
        answer(lambda: given_path(drawn.value, "--output"), drawn)


def test_no_field_of_a_runs_data_is_true_for_one(finished: Path, tmp_path: Path) -> None:
    said = json.loads((finished / "data.json").read_text())
    for channels in (True, 2, "1"):
        (tmp_path / "data.json").write_text(json.dumps({**said, "channels": channels}))
        answer(lambda: begun(tmp_path), Drawn(channels, "refused", "channels"))
