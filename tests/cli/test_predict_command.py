"""`augury predict`, in this process; its network is a stand-in, but for the last test's."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.cli.in_process import augury

from augury_cli.main import main
from augury_train.inference import classifier as classifier_module
from augury_train.inference import predict as predict_module
from augury_train.inference.predict import Prediction


class _Stub:
    classes = ("cat", "dog", "bird, grey")
    notes = ("runs/x\x1b[31m is not finished: these are its best weights so far.",)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A network that takes every image for the same, and cannot read those called bad; what it was asked for."""
    asked: list[Any] = []

    def load(place: Path, weights: str, device: str) -> _Stub:
        asked.append((place, weights, device))
        return _Stub()

    def predict(_: Any, files: Iterable[Path], *, top: int, batch_size: int) -> Iterator[Prediction]:
        asked.append((top, batch_size))
        for file in files:
            if "bad" in file.name:
                yield Prediction(str(file), error="no image\x1b[31m")
            else:
                yield Prediction(str(file), ("bird, grey", "cat", "dog")[:top], (0.75, 0.1875, 0.0625)[:top])

    monkeypatch.setattr(classifier_module, "load_classifier", load)
    monkeypatch.setattr(predict_module, "predict", predict)
    return asked


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("a.png", "bad.png", "c d.png"):
        Path("photos", name).touch()
    return Path("photos")


def test_a_table(photos: Path, capsys: pytest.CaptureFixture[str], network: list[Any]) -> None:
    code, out, err = augury(capsys, "predict", "runs/x", "photos")
    assert [re.split(r"\s{2,}", line) for line in out.splitlines()] == [
        ["image", "class", "probability", "then"],
        ["photos/a.png", "bird, grey", "75.0%", "cat 18.8%, dog 6.2%"],
        ["photos/bad.png", "cannot be read", "-", "no image\\x1b[31m"],
        ["photos/c d.png", "bird, grey", "75.0%", "cat 18.8%, dog 6.2%"],
    ]
    assert code == 1
    assert err.splitlines() == [
        "runs/x\\x1b[31m is not finished: these are its best weights so far.",
        "1 of 3 images could not be read.",
    ]
    assert network == [(Path("runs/x"), "best", "auto"), (3, 64)]


def test_a_table_of_one_class(photos: Path, capsys: pytest.CaptureFixture[str], network: list[Any]) -> None:
    line = ("--top", "1", "--weights", "last", "--device", "cpu", "--batch-size", "7")
    code, out, _ = augury(capsys, "predict", "runs/x", "photos/c d.png", *line)
    assert (code, out) == (0, "image           class       probability\nphotos/c d.png  bird, grey        75.0%\n")
    assert network == [(Path("runs/x"), "last", "cpu"), (1, 7)]


def test_json_lines(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = augury(capsys, "predict", "runs/x", "photos", "--format", "jsonl", "--top", "2")
    first, bad, _ = map(json.loads, out.splitlines())
    assert first == {
        "file": "photos/a.png",
        "class": "bird, grey",
        "probability": 0.75,
        "top": [{"class": "bird, grey", "probability": 0.75}, {"class": "cat", "probability": 0.1875}],
    }
    assert bad == {"file": "photos/bad.png", "error": "no image\x1b[31m"}
    assert code == 1
    assert "1 of 3 images could not be read." in err


def test_csv(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = photos / "a,\n\x1b[31mb.png"
    odd.touch()
    code, out, _ = augury(capsys, "predict", "runs/x", "photos", "--format", "csv", "--top", "9")
    rows = list(csv.DictReader(io.StringIO(out)))
    seen = "photos/a,\\n\\x1b[31mb.png"
    assert [row["file"] for row in rows] == [seen, *(str(photos / n) for n in ("a.png", "bad.png", "c d.png"))]
    assert rows[0] == {
        "file": seen,
        "class": "bird, grey",
        "probability": "0.750000",
        "class_2": "cat",
        "probability_2": "0.187500",
        "class_3": "dog",
        "probability_3": "0.062500",
        "error": "",
    }
    assert rows[2]["error"] == "no image\\x1b[31m"
    assert {value for key, value in rows[2].items() if key not in ("file", "error")} == {""}
    assert code == 1


def test_nothing_raw_reaches_a_terminal(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "\x1b[31mb.png").touch()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for form in ("table", "jsonl", "csv"):
        _, out, _ = augury(capsys, "predict", "runs/x", "photos", "--format", form)
        assert "\x1b[31m" not in out


def test_names_that_are_no_text_are_told_as_they_are(
    photos: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = b"photos/caf\xe9.png"
    Path(os.fsdecode(name)).touch()
    monkeypatch.setattr(sys, "argv", ["augury", "predict", "runs/x", "photos", "--format", "csv"])
    with pytest.raises(SystemExit):
        main()
    assert name in capfdbinary.readouterr().out


def test_a_named_image_that_may_not_be_read_does_not_keep_the_others(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    code, out, _ = augury(capsys, "predict", "runs/x", "photos/bad.png", "photos/a.png", "--format", "jsonl")
    assert (code, len(out.splitlines())) == (1, 2)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["runs/x"], "Missing argument"),
        (["runs/x", "photos", "--top", "0"], "--top"),
        (["runs/x", "photos", "--format", "xml"], "--format"),
        (["runs/x", "empty"], "empty: no images in it. Name files, or another folder."),
    ],
)
def test_what_cannot_be_asked(
    photos: Path, capsys: pytest.CaptureFixture[str], line: list[str], told: str, network: list[Any]
) -> None:
    Path("empty").mkdir()
    code, out, err = augury(capsys, "predict", *line)
    assert (code, out) == (2, "")
    assert told in err
    assert network == [], "no network is loaded for it"


def test_a_place_without_anetwork(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("photos/a.png")
    assert augury(capsys, "predict", "photos", "photos/a.png") == (
        2,
        "",
        "photos: neither run nor model.safetensors. Give a run's folder, or what `augury export` wrote.\n",
    )
