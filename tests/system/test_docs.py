"""The guides' commands and examples, run in order as a reader would, and their tables against the program.

Each guide gets a folder of its own with small real images under the names that it uses (`_stage`). Its ```sh blocks,
its ```python blocks and its TOML files are then run, or written, from top to bottom in this process. What a reader does
not see stands in an HTML comment before a block:

    <!-- check: optim.epochs=1 model.name=test_resnet -->   added, as `--set`, to the block's run, preview and compare;
                                                            `seeds=1` is the number of seeds of its compare
    <!-- not run: why -->                                   the block is left out

A download of pretrained weights is answered with a fresh network's weights of that name. Anything else that a command
needs must be there: it fails as it would for a reader. `make docs-check` runs this file.
"""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from tests.docs_programs import load

import augury_cli.main
from augury_train.data.decoding import SUFFIXES
from augury_train.data.named import NAMES
from augury_train.data.pipeline import WORDS
from augury_train.data.readers import PREFIXES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
QUICK = [ROOT / "README.md", DOCS / "run-folder.md", DOCS / "data.md"]
LONG = [DOCS / f"{name}.md" for name in ("own-images", "papers", "compare", "report", "evaluate", "uncertainty")]
LONG += [DOCS / f"{name}.md" for name in ("reliability", "processes", "networks", "using")]
GUIDES = QUICK + LONG
BLOCK = re.compile(r"((?:^<!--(?:(?!-->).)*-->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TAKE_SETTINGS = {"run", "preview", "compare"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a guide: its language, its text, and what the comments before it say."""

    language: str
    text: str
    extra: tuple[str, ...]
    left_out: bool


def blocks(guide: Path) -> list[Block]:
    """The guide's fenced blocks from top to bottom."""
    found = []
    for comments, language, text in BLOCK.findall(guide.read_text(encoding="utf-8")):
        extra = [word for words in re.findall(r"<!-- check: (.*?) -->", comments) for word in shlex.split(words)]
        found.append(Block(language, text, tuple(extra), "<!-- not run: " in comments))
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a block as lists of words, variables put in; continued lines are one, and comments none."""
    lines = text.replace("\\\n", " ").splitlines()
    split = [shlex.split(os.path.expandvars(line), comments=True) for line in lines]
    return [words for words in split if words]


# What the guides find in their folder.


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    digits = load_digits()
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def _resized(images: NDArray[np.uint8], width: int, height: int) -> list[Image.Image]:
    return [Image.fromarray(image).resize((width, height)) for image in images]


def _photos(folder: Path) -> None:
    """A flat folder of colour JPEG files, more of some classes than of others, not square."""
    images, labels = _digits()
    for label, (name, count) in enumerate({"daisy": 40, "rose": 30, "tulip": 20}.items()):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(_resized(images[labels == label][:count], 48, 40), 1):
            image.convert("RGB").save(folder / name / f"{number:04}.jpg")


def _idx_files(folder: Path) -> None:
    """Fashion-MNIST's four files, with digits in them."""
    folder.mkdir(parents=True)
    images, labels = _digits()
    for name, rows in (("train", slice(0, 200)), ("t10k", slice(200, 260))):
        pixels = np.stack([np.asarray(image) for image in _resized(images[rows], 28, 28)])
        for part, content in (("images-idx3", pixels), ("labels-idx1", labels[rows].astype(np.uint8))):
            header = bytes((0, 0, 8, content.ndim)) + np.array(content.shape, dtype=">u4").tobytes()
            (folder / f"{name}-{part}-ubyte").write_bytes(header + content.tobytes())


def _cifar10(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's files in torchvision's form, with digits in them; their checksums are not the originals'."""
    folder.mkdir(parents=True)
    images, labels = _digits()
    batches = {f"data_batch_{i}": slice(30 * i, 30 * i + 30) for i in range(1, 6)} | {"test_batch": slice(300, 360)}
    for name, rows in batches.items():
        pixels = np.stack([np.asarray(image.convert("RGB")) for image in _resized(images[rows], 32, 32)])
        content = {"data": pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1), "labels": labels[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(digit) for digit in range(10)]}))
    patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


def _stage(folder: Path, patch: pytest.MonkeyPatch) -> None:
    _photos(folder / "photos")
    _idx_files(folder / "downloads" / "fashion")
    _cifar10(folder / "data" / "cifar-10-batches-py", patch)

    def downloaded(model_id: str, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        name = model_id.split("/")[1].split(".")[0]
        return dict(timm.create_model(name).state_dict())

    patch.setattr("timm.models._builder.load_state_dict_from_hf", downloaded)


# Running them.


def _augury(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    *arguments, into = [*arguments[:-2], arguments[-1]] if ">" in arguments else [*arguments, ""]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["augury", *arguments])
        with pytest.raises(SystemExit) as end:
            augury_cli.main.main()
    out, err = capsys.readouterr()
    assert not end.value.code, f"augury {shlex.join(arguments)}\n{out}{err}"
    if into:
        Path(into).write_text(out, encoding="utf-8")


def _added(block: Block, command: str) -> list[str]:
    seeds = [setting for setting in block.extra if setting.startswith("seeds=")]
    settings = [part for setting in block.extra if setting not in seeds for part in ("--set", setting)]
    if command == "compare":
        settings += [f"--{setting}" for setting in seeds]
    return settings if command in TAKE_SETTINGS else []


def _shell(block: Block, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(block.text):
        program, *arguments = words
        if program == "export":
            patch.setenv(*arguments[0].split("=", 1))
        elif Path(program).name == "augury":
            _augury(arguments + _added(block, arguments[0]), capsys)
        else:
            subprocess.run(words, check=True, capture_output=True)


@pytest.mark.parametrize(
    "guide", [*QUICK, *(pytest.param(guide, marks=pytest.mark.slow) for guide in LONG)], ids=lambda path: path.stem
)
def test_the_guides_commands_run(
    guide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _stage(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    names: dict[str, Any] = {}
    for block in blocks(guide):
        if block.left_out:
            continue
        if block.language == "sh":
            _shell(block, monkeypatch, capsys)
        elif block.language == "python" and guide.parent == DOCS:
            # The README's are run by test_readme.py.
            exec(block.text, names)
        elif block.language == "toml" and (title := re.match(r"# (\S+\.toml)\n", block.text)):
            Path(title[1]).write_text(block.text)
    if guide.stem == "own-images":
        tuned = json.loads(Path("runs/photos-tuned/config.json").read_text())
        assert tuned["data"]["augmented"][-1] == "random_erasing:0.25", "the guide's settings are those that ran"
        assert tuned["train"]["ema"] == 0.9, "and what the comment says comes after them"
    if guide.stem == "using":
        _assert_all_say_the_same(names)


def _assert_all_say_the_same(names: dict[str, Any]) -> None:
    """What the guide's programs found of one photo by timm, onnxruntime and augury, and what the commands printed."""
    assert names["classes"] == ["daisy", "rose", "tulip"]
    with open("predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert [row["file"] for row in rows] == [line["file"] for line in lines]
    assert len(rows) == 90
    (ours,) = [line for line in lines if line["file"] == "photos/daisy/0001.jpg"]
    assert names["classifier"].classes == names["classes"]
    by_onnx = np.exp(names["logits"][0]) / np.exp(names["logits"][0]).sum()
    by_timm = names["probabilities"].numpy()
    for found in (by_timm, by_onnx):
        assert names["classes"][int(found.argmax())] == ours["class"]
    assert float(by_onnx.max()) == pytest.approx(ours["probability"], abs=1e-4)
    # timm resizes first and crops then, so its pixels of a photo are not quite the same.
    assert float(by_timm.max()) == pytest.approx(ours["probability"], abs=0.02)


# Tables against the program.


def test_every_command_is_in_a_block_that_is_run() -> None:
    for guide in GUIDES:
        for block in blocks(guide):
            lines = [line.split()[0] for line in block.text.splitlines() if line.strip()]
            shown = any(Path(word).name == "augury" for word in lines)
            assert block.language == "sh" or not shown, f"{guide.name}: not in ```sh:\n{block.text}"


def test_the_settings_file_is_what_the_models_say() -> None:
    page = load("settings")
    assert page.FILE.read_text(encoding="utf-8") == page.render(), "write it anew: make docs"


def test_links_lead_somewhere() -> None:
    for guide in [*GUIDES, *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]*)", guide.read_text(encoding="utf-8")):
            assert (guide.parent / target).exists(), f"{guide.name}: {target}"


def _rows(page: str) -> dict[str, list[str]]:
    """Rows of a page's tables by their first cell, without backticks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]
    # Of two rows the first: later tables may speak of the same word.
    return {cells[0].replace("`", "").strip(): cells[1:] for cells in reversed(rows)}


def test_the_words_of_pipelines_are_told_with_their_arguments() -> None:
    rows = _rows("data.md")
    for word, place in WORDS.items():
        module, _, name = place.rpartition(".")
        model = getattr(import_module(f"augury_train.data.{module}"), name)
        wanted = [
            field if info.is_required() else f"{field}={info.default}" for field, info in model.model_fields.items()
        ]
        assert re.findall(r"`(.*?)`", rows[word][0]) == wanted, word


def test_data_sets_and_suffixes_are_told() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    told = {*re.findall(r"`(\w+)[`:/]", text), *re.findall(r"\.\w+(?=[ `])", text)}
    assert {*NAMES, *(prefix.strip("/") for prefix in PREFIXES), *SUFFIXES, "synthetic"} - told == set()


def test_all_that_a_run_folder_holds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = "optim.epochs=1 data.images_per_class=5 optim.batch_size=25 train.ema=0.9"
    for protocol in ("validation", "paper"):
        settings = [f"--set={setting}" for setting in (*short.split(), f"data.protocol={protocol}")]
        _augury(["run", "--dataset", "digits", *settings, "--output", protocol], capsys)
    text = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([^`\n]+)`", text))
    files = {path.name + "/" * path.is_dir() for folder in ("validation", "paper") for path in Path(folder).iterdir()}
    assert {name for name in files if not any(word.startswith(name) for word in told)} == set()
    rows = [json.loads(Path(folder, "metrics.jsonl").read_text()) for folder in ("validation", "paper")]
    facts = [json.loads(Path("paper", name).read_text()) for name in ("data.json", "result.json")]
    assert {key for keys in (*rows, *facts) for key in keys} - told == set()
