"""The uncertainty of training images against its definition, planted cases, its files and its refusals."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.train.small_runs import small
from torch import Tensor, nn

import augury
from augury.errors import AuguryError, UsageError
from augury.randomness import generator
from augury_lab.evaluation import uncertainty as module
from augury_lab.evaluation.subject import Subject, load_subject
from augury_lab.evaluation.uncertainty import Uncertainty, choose_subset, measure_uncertainty
from augury_lab.evaluation.uncertainty_files import (
    COLUMNS,
    check_output,
    entropy_cells,
    most_uncertain,
    uncertainty_picture,
    write_uncertainty,
)
from augury_train.config import parse_method
from augury_train.training.plan import make_plan
from augury_train.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose only method mixes."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    train(small(("dcutmix", {"k": 3}), data={"images_per_class": 25}), folder)
    return folder


@pytest.fixture(scope="module")
def found(run: Path) -> Uncertainty:
    return measure_uncertainty(run, passes=4, device="cpu")


def entropy(p: np.ndarray[Any, Any]) -> float:
    return -sum(float(v) * math.log(v) for v in p if v > 0)


def test_is_what_its_definition_says(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP", 90)
    found = measure_uncertainty(run, passes=5, seed=6, device="cpu")
    subject = load_subject(run, "best", "train", "cpu")
    mean, std = (torch.tensor(v)[:, None, None] for v in (subject.mean, subject.std))
    methods = augury.compose(
        [("dcutmix", {"k": 3})], num_classes=10, classifier=cast(nn.Module, subject.network.get_classifier()), seed=6
    )
    order = torch.randperm(250, generator=generator(6, "uncertainty"))
    for group in order.tensor_split(3):
        images, labels = (subject.images(group) - mean) / std, subject.split.labels[group]
        seen: list[list[tuple[float, Any]]] = [[] for _ in group]
        for _ in range(5):
            batch = methods.batch(images, labels)
            methods.augment_batch(batch)
            methods.step()
            with torch.no_grad():
                rows = subject.network(batch.images).double().softmax(1).numpy()
            for place, share, p in zip(batch.indices.tolist(), batch.shares[:, 0].double().tolist(), rows, strict=True):
                seen[place].append((share, p))
        clean = subject.logits(subject.images(group)).double().softmax(1).numpy()
        for place, (number, label) in enumerate(zip(group.tolist(), labels.tolist(), strict=True)):
            if not (total := sum(share for share, _ in seen[place])):
                # Nothing of it was shown: it counts as unmixed.
                seen[place], total = [(1.0, clean[place])], 1.0
            whole = entropy(sum(share * p for share, p in seen[place]) / total)
            expected = sum(share * entropy(p) for share, p in seen[place]) / total
            assert float(found.entropy[number]) == pytest.approx(whole, rel=1e-6)
            assert float(found.expected[number]) == pytest.approx(expected, rel=1e-6)
            assert float(found.information[number]) == pytest.approx(whole - expected, abs=1e-6)
            others = max(p for c, p in enumerate(clean[place]) if c != label)
            assert float(found.margin[number]) == pytest.approx(clean[place][label] - others, abs=1e-6)
            assert int(found.predicted[number]) == clean[place].argmax()


class Fades(augury.Method):
    """Mixes each image with its successor, of which it takes the share `other`."""

    class Options(augury.Options):
        other: float = 0.0

    mixes = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        own = torch.arange(len(batch), device=batch.device)
        shares = torch.tensor([1 - self.options.other, self.options.other]).repeat(len(batch), 1)
        sources = torch.stack([own, own.roll(-1)], 1)
        images = (batch.images[sources] * shares[:, :, None, None, None]).sum(1)
        batch.mix(images, sources, shares)


def test_mixes_that_show_the_image_alone_leave_its_own_entropy(run: Path) -> None:
    found = measure_uncertainty(run, [(cast(str, Fades), {})], passes=3, device="cpu")
    subject = found.subject
    clean = subject.logits(subject.images(torch.arange(len(subject)))).double().softmax(1)
    wanted = -(clean * clean.log()).sum(1)
    assert torch.allclose(found.entropy, wanted, atol=1e-6)
    assert torch.allclose(found.expected, wanted, atol=1e-6)
    assert float(found.information.max()) < 1e-9
    assert found.reliability == pytest.approx(1)


def test_an_image_of_which_nothing_is_shown_counts_as_unmixed(run: Path) -> None:
    whole = measure_uncertainty(run, [(cast(str, Fades), {})], passes=2, device="cpu")
    nothing = measure_uncertainty(run, [(cast(str, Fades), {"other": 1.0})], passes=2, device="cpu")
    assert torch.allclose(nothing.entropy, whole.entropy, atol=1e-6)
    assert torch.allclose(nothing.expected, whole.expected, atol=1e-6)


def test_same_seed_same_numbers_and_neither_weights_nor_draws_change(run: Path, found: Uncertainty) -> None:
    state = torch.get_rng_state()
    again = measure_uncertainty(run, passes=4, device="cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.entropy, found.entropy)
    assert not torch.equal(measure_uncertainty(run, passes=4, seed=1, device="cpu").entropy, found.entropy)
    for name, value in load_subject(run, device="cpu").network.state_dict().items():
        assert torch.equal(value, found.subject.network.state_dict()[name]), name


def test_parts_add_up_and_stay_in_range(found: Uncertainty) -> None:
    assert torch.allclose(found.entropy, found.expected + found.information, atol=1e-9)
    assert float(found.information.min()) >= 0
    assert float(found.entropy.max()) <= math.log(10) + 1e-9
    right = found.predicted == found.subject.split.labels
    assert torch.equal(right, found.margin > 0)


def test_reliability_is_spearmans_and_browns() -> None:
    draws = torch.Generator().manual_seed(0)
    one = torch.rand(200, generator=draws, dtype=torch.float64)
    other = one + torch.rand(200, generator=draws, dtype=torch.float64)
    wanted = spearmanr(one, other).statistic
    assert module._reliability(one, other) == pytest.approx(2 * wanted / (1 + wanted))
    assert module._reliability(one, -one) == 0
    # Entropies of a sure network are often equal.
    one, other = one.round(decimals=1), other.round(decimals=1)
    wanted = spearmanr(one, other).statistic
    assert module._reliability(one, other) == pytest.approx(2 * wanted / (1 + wanted))
    zeros = torch.zeros(200, dtype=torch.float64)
    assert module._reliability(zeros, zeros) == 0
    assert module._reliability(one, zeros) == 0


def test_reliability_foretells_the_agreement_of_two_seeds(run: Path) -> None:
    one, other = (measure_uncertainty(run, passes=24, seed=seed, device="cpu") for seed in (0, 1))
    assert one.reliability is not None
    assert one.reliability == pytest.approx(spearmanr(one.entropy, other.entropy).statistic, abs=0.2)
    assert measure_uncertainty(run, passes=1, device="cpu").reliability is None


@pytest.mark.parametrize(
    ("named", "told"),
    [
        (["isda"], "--with: isda mixes no images, or not only them. Name one that does"),
        (["dcutmix", "agmax"], "--with: agmax mixes no images"),
        (["dcutmix:k=1"], "dcutmix: no batch was mixed in 100 tries"),
        (["dcutmux"], "unknown method `dcutmux`.*Did you mean `dcutmix`"),
        (["dcutmix:k=0"], "dcutmix: option `k` must be >= 1"),
    ],
)
def test_what_cannot_mix_is_refused(named: list[str], told: str, run: Path) -> None:
    with pytest.raises(UsageError, match=told):
        measure_uncertainty(run, [parse_method(text) for text in named], device="cpu")


class Prepared(Fades):
    """Mixes by what a stage made."""

    @augury.hookimpl
    def pre_train_stage(self, run: augury.Run) -> None:
        return None


def test_a_method_that_a_stage_prepares_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match=r"prepared mixes by what a pre-train stage made"):
        measure_uncertainty(run, [(cast(str, Prepared), {})], device="cpu")


def test_a_run_that_mixes_nothing_says_what_to_do(tmp_path: Path, run: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (plain / file.name).write_bytes(file.read_bytes())
    config = json.loads((plain / "config.json").read_text()) | {"methods": [{"name": "isda", "options": {}}]}
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"none of its methods \(isda\) mixes images. Name one that does, --with"):
        measure_uncertainty(plain, device="cpu")
    assert measure_uncertainty(plain, [("dcutmix", {})], passes=1, device="cpu").methods == [("dcutmix", {})]
    with pytest.raises(UsageError, match="--passes must be >= 1, got 0"):
        measure_uncertainty(run, passes=0)


def test_a_network_without_finite_answers_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*asked: Any) -> Subject:
        subject = load_subject(*asked)
        cast(Any, subject.network.get_classifier()).bias[3] = -math.inf
        return subject

    monkeypatch.setattr(module, "load_subject", loaded)
    with pytest.raises(
        AuguryError, match="numbers that are not finite on 250 of a group of 250 images, so nothing"
    ) as end:
        measure_uncertainty(run, passes=1, device="cpu")
    assert end.value.exit_code == 1


def planted(entropies: list[float], labels: list[int]) -> Uncertainty:
    split = SimpleNamespace(labels=torch.tensor(labels))
    values = torch.tensor(entropies, dtype=torch.float64)
    zeros, subject = torch.zeros_like(values), cast(Subject, SimpleNamespace(split=split))
    return Uncertainty(subject, [], 1, 0, values, zeros, zeros, zeros, zeros.long(), None)


def test_a_subset_keeps_its_end_of_each_class() -> None:
    found = planted([0.9, 0.1, 0.5, 0.7, 0.3, 0.2, 0.8], [0, 0, 0, 0, 1, 1, 2])
    assert choose_subset(found, 0.5).tolist() == [0, 3, 4, 6]
    assert choose_subset(found, 0.5, "certain").tolist() == [1, 2, 5, 6]
    assert choose_subset(found, 0.01).tolist() == [0, 4, 6], "no class vanishes"
    assert choose_subset(found, 1).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("keep", "end", "told"), [(0, "certain", "got 0"), (1.5, "certain", "got 1.5"), (0.5, "both", "`both`")]
)
def test_impossible_subsets_are_refused_before_anything_is_written(
    keep: float, end: str, told: str, found: Uncertainty, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=told):
        write_uncertainty(found, tmp_path / "out", keep, end)
    assert not (tmp_path / "out").exists()


def test_files_hold_every_image_and_train_a_run(found: Uncertainty, tmp_path: Path) -> None:
    files = write_uncertainty(found, tmp_path / "out", keep=0.2)
    assert [file.name for file in files] == ["uncertainty.csv", "uncertainty.png", "subset.json"]
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    split = found.subject.split
    assert sorted(int(row["index"]) for row in rows) == sorted(split.rows.tolist())
    entropies = [float(row["entropy"]) for row in rows]
    assert entropies == sorted(entropies, reverse=True)
    for place in (0, 100):
        (row,) = [row for row in rows if int(row["index"]) == int(split.rows[place])]
        assert float(row["entropy"]) == pytest.approx(float(found.entropy[place]), abs=1e-6)
        assert float(row["margin"]) == pytest.approx(float(found.margin[place]), abs=1e-6)
        assert row["class"] == found.subject.classes[int(split.labels[place])]
        assert row["name"] == split.source.name(int(split.rows[place]))
    assert files[1].read_bytes().startswith(b"\x89PNG")
    made = json.loads(files[2].read_text())["made"]
    assert (made["keep"], made["end"], made["passes"]) == (0.2, "uncertain", 4)
    assert made["methods"] == [{"name": "dcutmix", "options": {"k": 3}}]
    data = found.subject.config.data.model_copy(update={"subset": str(files[2])})
    config = found.subject.config.model_copy(update={"data": data})
    part = make_plan(config).data.splits.train
    wanted: Tensor = split.rows[choose_subset(found, 0.2)]
    assert sorted(part.rows.tolist()) == sorted(wanted.tolist())
    assert torch.bincount(part.labels).tolist() == [5] * 10


def test_the_most_uncertain_come_first_and_equal_ones_in_the_order_of_the_data() -> None:
    found = planted([0.5, 0.9, 0.5, 0.1], [0, 0, 0, 0])
    cast(Any, found.subject.split).rows = torch.tensor([7, 3, 2, 9])
    assert most_uncertain(found).tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ([1.3, 1.25, 0.0], ["1.30", "1.25", "0.00"]),
        ([1.0986, 1.0984, 1.0981], ["1.0986", "1.0984", "1.0981"]),
        ([0.0, 0.0], ["0.00", "0.00"]),
        ([1.0986123, 1.0986122], ["1.10", "1.10"]),
        ([1.0986123, 1.0986122, 1.0985], ["1.0986", "1.0986", "1.0985"]),
    ],
)
def test_entropies_have_the_digits_that_tell_them_apart(values: list[float], cells: list[str]) -> None:
    assert entropy_cells(values) == cells


def test_captions_of_the_picture_are_whole(found: Uncertainty) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    classes = [f"a class of a very long name, number {label}" for label in range(10)]
    named = dataclasses.replace(found, subject=dataclasses.replace(found.subject, classes=classes))
    for drawn in (found, named):
        figure = uncertainty_picture(drawn)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        for part in cast(Any, figure).subfigs[1:]:
            for ax in part.axes:
                box = ax.xaxis.label.get_window_extent()
                assert box.y0 >= part.bbox.y0
                assert ax.get_window_extent().width > 100


def test_names_in_any_script_raise_no_warning(found: Uncertainty, tmp_path: Path) -> None:
    subject = dataclasses.replace(found.subject, classes=["\u732b"] * 10)
    # Warnings are errors here.
    table, picture = write_uncertainty(dataclasses.replace(found, subject=subject), tmp_path / "out")
    assert "\u732b" in table.read_text(encoding="utf-8")
    assert picture.stat().st_size > 0


def test_a_later_call_leaves_no_subset_of_an_earlier_one(found: Uncertainty, tmp_path: Path) -> None:
    write_uncertainty(found, tmp_path / "out", keep=0.2)
    assert [file.name for file in write_uncertainty(found, tmp_path / "out")] == ["uncertainty.csv", "uncertainty.png"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["uncertainty.csv", "uncertainty.png"]


def test_folders_that_cannot_be_written_to_are_refused_and_nothing_is_left(found: Uncertainty, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "uncertainty.csv").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    for name in ("config.json", "subset.json"):
        (tmp_path / "run" / name).touch()
    before = sorted(tmp_path.rglob("*"))
    for folder, told in (
        (Path("/proc/self"), "cannot be written to"),
        (tmp_path / "file", "cannot be written to"),
        (tmp_path / "file" / "in", "cannot be written to"),
        (tmp_path / "taken", "uncertainty.csv is a folder, not a file. Choose another --output"),
        (tmp_path / "run", "is a run's folder"),
    ):
        for attempt in (check_output, lambda there: write_uncertainty(found, there)):
            with pytest.raises(UsageError, match=told):
                attempt(folder)
    check_output(tmp_path / "new" / "inner")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_is_told(found: Uncertainty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("augury_lab.evaluation.uncertainty_files._write_table", full)
    with pytest.raises(UsageError, match=r"out: cannot be written to \(No space left on device\)"):
        write_uncertainty(found, tmp_path / "out")


class Inside(augury.Method):
    """May mix inside the network."""

    mixes = True
    mixes_hidden = True

    @augury.hookimpl
    def augment_batch(self) -> None:
        pass


def test_what_mixes_inside_the_network_is_not_looked_at(run: Path) -> None:
    register = augury.Register.load().offering("inside", Inside)
    with pytest.raises(UsageError, match=r"^--with: inside mixes no images, or not only them\. Name one that does"):
        measure_uncertainty(run, methods=[("inside", {})], register=register)
