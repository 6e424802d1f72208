"""What a run says it runs on, before it does anything."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import Field
from tests.train.small_runs import interrupted, small

import augury
from augury.choice import Chosen
from augury.distributed import Ranks
from augury_train.data.source import ArraySource
from augury_train.data.splits import Split, Splits
from augury_train.training import trainer
from augury_train.training.plan import Plan, make_plan
from augury_train.training.rehearsal import preview, rehearse
from augury_train.training.start_lines import labelled, start_fields
from augury_train.training.watch import Reporter, Silent

DIGITS = [
    "data       digits: 100 training, 126 validation, 540 test images, 8x8, 1 channel",
    "classes    10 with 10 training images each: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "model      resnet20_cifar, 0.27 M parameters, on cpu, fp32",
    "methods    none",
]


class Heard(Silent):
    """Keeps what is told, in order; the other moments by their names."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def read(self, done: int, total: int) -> None:
        self.lines.append("<read>")

    def start(self, what: str, total_steps: int, done: int) -> None:
        self.lines.append("<start>")

    def named(self, name: str) -> Reporter:
        return self


# --- the lines ---


def with_classes(counts: dict[str, int], plan: Plan | None = None) -> Plan:
    """A plan on so many training images of each class."""
    plan = plan or make_plan(small())
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    split = Split(ArraySource(np.zeros((len(labels), 1, 8, 8), np.uint8), labels), torch.arange(len(labels)))
    data = dataclasses.replace(plan.data, splits=Splits(split, split, None), classes=list(counts), _decoded={})
    return dataclasses.replace(plan, data=data)


def classes_line(counts: dict[str, int]) -> str:
    return start_fields(with_classes(counts))["classes"]


def test_the_lines_of_a_run_on_digits() -> None:
    assert labelled(start_fields(make_plan(small()))) == DIGITS


def test_few_classes_are_told_with_their_counts() -> None:
    assert classes_line({"cat": 1200, "dog": 7}) == "2, with training images: cat (1,200), dog (7)"
    assert classes_line({"cat": 1200, "dog": 1200}) == "2 with 1,200 training images each: cat, dog"


def test_many_classes_are_folded() -> None:
    counts = {f"plant{number:02d}": 10 + number % 7 for number in range(100)}
    told = "100 with 10 (plant00) to 16 (plant06) training images: plant00, plant01, plant02 and 97 more"
    assert classes_line(counts) == told
    assert classes_line(dict.fromkeys(counts, 5)) == (
        "100 with 5 training images each: plant00, plant01, plant02 and 97 more"
    )


def test_names_from_elsewhere_are_cut_and_steer_no_terminal() -> None:
    counts = {"\x1b[31mred": 1, "a\nb": 2, "x" * 500: 3, "Dog ": 4, "a, b": 5}
    plan = with_classes(counts)
    (line,) = (line for line in labelled(start_fields(plan)) if line.startswith("classes"))
    assert line == (
        "classes    5, with training images: \\x1b[31mred (1), a b (2), " + "x" * 30 + "... (3), `Dog ` (4), `a, b` (5)"
    )


def test_splits_and_sizes(tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        for split in ("train", "val"):
            (tmp_path / "pets" / split / kind).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 30)).save(tmp_path / "pets" / split / kind / f"{number}.png")
    data: dict[str, Any] = {"dataset": str(tmp_path / "pets"), "image_size": 32, "test_size": 48, "augmented": ""}
    model = {"name": "test_resnet", "frozen_stages": 1}
    config = small(data=data, model=model, optim={"batch_size": 4}, train={"precision": "bf16"})
    plan = make_plan(config)
    fields = start_fields(plan)
    assert fields["data"] == (
        f"{tmp_path}/pets: 8 training, 8 validation images, 32x32, 3 channels; tested at 48x48; no test split"
    )
    network = plan.build_network()
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    every = sum(p.numel() for p in network.parameters())
    assert 0 < frozen < 10_000 < every
    assert fields["model"] == f"test_resnet, {every / 1e6:.2f} M parameters, {frozen:,} of them frozen, on cpu, bf16"
    paper = start_fields(make_plan(small(data={"protocol": "paper", "images_per_class": None})))
    assert paper["data"] == "digits: 1,257 training, 540 test images, 8x8, 1 channel"


class Many(augury.Method):
    """A method with options of all kinds."""

    class Options(augury.Options):
        needed: int
        text: str = "a"
        numbers: list[int] = Field(default_factory=lambda: [1, 2])
        unset: float | None = None
        made: Any = None


def test_methods_are_told_with_the_options_that_differ() -> None:
    plan = make_plan(small(("dcutmix", {"k": 3}), "isda"))
    assert start_fields(plan)["methods"] == "dcutmix(k=3), isda"
    options = Many.Options(needed=1, text="b" * 99, made=torch.zeros(3))
    chosen = [Chosen("many", Many, options), Chosen("again", Many, Many.Options(needed=2, numbers=[1, 2]))]
    assert start_fields(dataclasses.replace(plan, chosen=chosen))["methods"] == (
        f"many(needed=1, text={'b' * 30}..., made=<Tensor>), again(needed=2)"
    )


# --- where they are told ---


def test_a_run_begins_with_them_and_its_notes_do_not_hold_them(tmp_path: Path) -> None:
    heard = Heard()
    result = trainer.train(small(optim={"epochs": 1}), tmp_path / "run", reporter=heard)
    assert heard.lines[:4] == DIGITS
    assert "<read>" in heard.lines[4:]
    assert "<start>" in heard.lines[4:]
    assert not set(DIGITS) & set(result.notes)


def test_a_resumed_run_begins_with_them(tmp_path: Path) -> None:
    interrupted(small("isda"), tmp_path / "run", 3)
    heard = Heard()
    trainer.resume(tmp_path / "run", reporter=heard)
    assert heard.lines[:4] == [*DIGITS[:3], "methods    isda"]


def test_a_preview_and_a_dry_run_begin_with_them() -> None:
    heard = Heard()
    preview(small(), reporter=heard)
    assert heard.lines[:4] == DIGITS
    assert list(rehearse(small()).start_lines) == DIGITS


def test_other_processes_than_the_first_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(config: Any) -> Ranks:
        ranks = Ranks()
        ranks.rank = 1
        return ranks

    heard = Heard()
    monkeypatch.setattr(trainer, "join", second)
    monkeypatch.setattr(trainer, "_carry_out", lambda *_, **__: None)
    trainer.train(small(), tmp_path / "run", reporter=heard)
    assert heard.lines == []
