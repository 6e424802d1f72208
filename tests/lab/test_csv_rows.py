"""CSV that a spreadsheet opens without carrying anything out, and from which every name is found again."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image

from augury_lab.csv_rows import ERRORS, csv_row
from augury_lab.evaluation.subject import Subject
from augury_lab.evaluation.uncertainty import Uncertainty
from augury_lab.evaluation.uncertainty_files import _write_table
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.subset import subset_of, write_subset

ROOT = Path(__file__).parents[2]
FORMULAS = ["=cmd|' /C calc'!A0", "-1.jpg", "+a", "@x", "'q", "\uff1d1+1", "-", "--1", "-1e", "-1,2", '=HYPERLINK("x")']


def cells(row: str) -> list[str]:
    (found,) = csv.reader(io.StringIO(row))
    return found


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_looks_like_a_formula_gets_an_apostrophe(text: str) -> None:
    assert cells(csv_row(["x", text])) == ["x", "'" + text]


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        (-0.5, "-0.5"),
        (-3, "-3"),
        ("-0.500000", "-0.500000"),
        ("-1e-06", "-1e-06"),
        (float("-inf"), "-inf"),
        (None, ""),
        ("", ""),
        ("cat, grey", '"cat, grey"'),
        ("a=b", "a=b"),
        ("a-1", "a-1"),
        ("true \\ predicted", "true \\ predicted"),
    ],
)
def test_numbers_and_harmless_texts_stay(cell: object, written: str) -> None:
    assert csv_row([cell, 1]) == f"{written},1\n"


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\t=1", "\\x09=1"),
        ("\r=1", "\\x0d=1"),
        ("\n=1", "\\n=1"),
        ("a\nb", "a\\nb"),
        ("=\x1b[2J", "'=\\x1b[2J"),
        ("\x00", "\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_control_characters_are_written_out(text: str, written: str) -> None:
    assert csv_row([text]) == written + "\n"


def test_names_that_are_no_utf_8_stay_the_bytes_that_they_are() -> None:
    assert csv_row(["caf\udce9"]).encode("utf-8", ERRORS) == b"caf\xe9\n"


def test_the_images_of_odd_names_are_found_again(tmp_path: Path) -> None:
    kinds = ["=cmd|' C calc'!A0", "-1", "-1.jpg", "+a", "@x", "two\nlines", "'q"]
    for number, kind in enumerate(kinds):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for name in ("=1.png", "-1.png", "a\nb.png", "'.png"):
            Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "in" / kind / name)
    config = DataConfig(dataset=str(tmp_path / "in"))
    collection = open_dataset(config)
    source, rows = collection.splits["all"], torch.arange(28)
    split = SimpleNamespace(labels=torch.from_numpy(source.labels), rows=rows, source=source)
    subject = cast(Subject, SimpleNamespace(split=split, classes=collection.classes))
    zeros = torch.zeros(28, dtype=torch.float64)
    found = Uncertainty(subject, [], 1, 0, rows.double(), zeros, zeros, zeros - 0.5, split.labels, None)
    _write_table(found, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        told = list(csv.DictReader(file))
    assert {row["margin"] for row in told} == {"-0.500000"}
    for row in told:
        assert row["name"] == source.name(int(row["index"])).replace("\n", "\\n")
        kind = collection.classes[source.labels[int(row["index"])]]
        assert row["class"].removeprefix("'" if kind != "-1" else "") == kind.replace("\n", "\\n")
        assert row["class"] == "-1" or row["class"][0] in "'t"
    chosen = torch.tensor([0, 5, 9, 14, 20, 27])
    write_subset(tmp_path / "subset.json", source, chosen, collection.classes, config, {})
    again = config.model_copy(update={"subset": str(tmp_path / "subset.json")})
    assert subset_of(source, rows, collection.classes, again).tolist() == chosen.tolist()


def test_every_table_is_written_by_this_function() -> None:
    """No other module writes CSV by itself."""
    users = set[str]()
    for part in ("core", "train", "lab", "authoring", "cli", "plugins"):
        for path in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names: list[Any] = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names.append(node.module)
                users |= {path.name for name in names if name == "csv"}
    assert users == {"csv_rows.py"}
