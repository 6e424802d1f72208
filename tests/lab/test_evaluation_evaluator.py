"""Evaluations as a whole: what is found, that it is the same for all runs, and what is written."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.lab.evaluated_runs import finished

from augury.errors import AuguryError, UsageError
from augury.randomness import generator
from augury_lab.evaluation import writing
from augury_lab.evaluation.attacks import ascent, pgd
from augury_lab.evaluation.evaluator import evaluate
from augury_lab.evaluation.pictures import Bins, reliability
from augury_lab.evaluation.results import Evaluation, Shifted
from augury_lab.evaluation.robustness import attacked_by_fgsm, attacked_by_pgd
from augury_lab.evaluation.subject import load_subject
from augury_train.measures import logits_of
from augury_train.training.result import Result
from augury_train.training.watch import Silent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return finished(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return finished(tmp_path_factory.mktemp("others") / "second", optim={"lr": 0.02})


@pytest.fixture(scope="module")
def both(run: Result, other: Result, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """All that there is, of two runs, with few images; the pictures are made but not rendered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b""))
        return evaluate(
            [run, other.folder],
            fgsm=[2, 8],
            pgd=[2],
            corruptions=True,
            shifts=True,
            ood=["synthetic:classes=2,images=20,size=8"],
            landscape=True,
            points=5,
            images=60,
            output=tmp_path_factory.mktemp("out") / "evaluation",
            device="cpu",
            progress=False,
        )


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest."""
    monkeypatch.setattr(writing, "drawn", lambda *_: iter(()))


def answers(run: Result) -> tuple[torch.Tensor, torch.Tensor]:
    subject = load_subject(run.folder, device="cpu")
    return logits_of(subject.network, subject.batches(), subject.normalise)


def test_the_measures_are_the_run_s_own(both: Evaluation, run: Result, other: Result) -> None:
    for found, expected in zip(both.runs, (run, other), strict=True):
        assert found.measures.top1 == expected.best["test"].top1
        assert found.measures.nll == pytest.approx(expected.best["test"].nll, rel=1e-5)
        assert found.images == 540
    assert [found.name for found in both.runs] == ["first", "second"]


def test_classes_and_mistakes_are_those_of_the_whole_split(both: Evaluation, run: Result) -> None:
    logits, labels = answers(run)
    found = both.runs[0]
    counts = torch.tensor(found.classes.confusion)
    assert counts.sum() == 540
    assert 100 * counts.diagonal().sum() / 540 == pytest.approx(found.measures.top1)
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    assert [mistake.image for mistake in found.worst] == losses.topk(32).indices.tolist()
    split = load_subject(run.folder, device="cpu").split
    assert found.worst[0].name == split.source.name(int(split.rows[found.worst[0].image]))


def test_attacks_begin_with_the_accuracy_of_the_same_images(both: Evaluation) -> None:
    for found in both.runs:
        fgsm, pgd = found.attacks
        assert (fgsm.attack, fgsm.epsilons, fgsm.images) == ("fgsm", [0, 2, 8], 60)
        assert (pgd.attack, pgd.epsilons, pgd.images) == ("pgd", [0, 2], 60)
        assert found.corruptions is not None
        clean = {fgsm.top1[0], pgd.top1[0], found.corruptions.clean, found.shifts["crop"].clean}
        assert len(clean) == 1
        assert fgsm.top1[0] >= fgsm.top1[1] >= fgsm.top1[2]
        assert fgsm.top1[0] > fgsm.top1[2]
        assert pgd.top1[1] <= fgsm.top1[1]


@pytest.mark.usefixtures("_undrawn")
def test_an_attack_of_0_alone_is_the_clean_accuracy(run: Result, tmp_path: Path) -> None:
    found = evaluate(run, fgsm=[0], pgd=[0], output=tmp_path / "out", device="cpu", progress=False).runs[0]
    assert [attack.epsilons for attack in found.attacks] == [[0], [0]]
    assert [attack.top1 for attack in found.attacks] == [[found.measures.top1]] * 2


def test_epsilons_are_in_units_of_1_255(run: Result) -> None:
    whole = load_subject(run.folder, device="cpu")
    few = replace(whole, split=whole.split.take(torch.arange(40)))
    images, labels = next(few.batches())
    found = attacked_by_pgd(few, [16], 5, Silent())
    _, right = pgd(few.logits, images, labels, 16 / 255, generator(5, "pgd", "16"))
    assert found.top1[1] == 100 * int(right.sum()) / 40
    signs, _ = ascent(few.logits, images, labels)
    answers = few.logits((images + 16 / 255 * signs).clamp(0, 1)).argmax(1)
    assert attacked_by_fgsm(few, [16], Silent()).top1[1] == 100 * int((answers == labels).sum()) / 40
    assert 0 < found.top1[1] < found.top1[0]


def test_corruptions_are_averaged_over_kinds_and_severities(both: Evaluation) -> None:
    found = both.runs[0].corruptions
    assert found is not None
    values = [value for accuracies in found.top1.values() for value in accuracies]
    assert found.mean == pytest.approx(sum(values) / len(values))
    noise = [v for name in found.top1 if name.endswith("_noise") for v in found.top1[name]]
    assert found.groups["noise"] == pytest.approx(sum(noise) / len(noise))
    assert all(len(accuracies) == 5 for accuracies in found.top1.values())
    # It changes nothing in grey images.
    assert "saturate" not in found.top1


@pytest.mark.usefixtures("_undrawn")
def test_the_landscape_s_centre_is_the_loss_of_its_images(both: Evaluation, run: Result, tmp_path: Path) -> None:
    found = both.runs[0].landscape
    assert found is not None
    assert found.images == 60
    assert found.loss[2][2] == found.centre
    logits, labels = answers(run)
    again = evaluate(run, landscape=True, points=5, images=540, output=tmp_path / "out", device="cpu", progress=False)
    assert again.runs[0].landscape is not None
    expected = torch.nn.functional.cross_entropy(logits.double(), labels)
    assert again.runs[0].landscape.centre == pytest.approx(float(expected), rel=1e-5)


def test_the_files_are_there_and_say_the_same(both: Evaluation) -> None:
    folder = Path(both.folder)
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == sorted(both.files)
    for name in ("confusion-first.png", "worst-second.png", "reliability.png", "attacks.png", "landscape.png"):
        assert name in both.files
    said = json.loads((folder / "evaluation.json").read_text())
    assert said == both.to_json()
    assert "confusion" not in said["runs"][0]["classes"]
    with (folder / "per_class.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert float(rows[3]["recall_percent"]) == pytest.approx(both.runs[0].classes.rows[3].recall, abs=1e-4)
    with (folder / "confusion-second.csv").open(newline="") as file:
        counts = list(csv.reader(file))
    assert [list(map(int, row[1:])) for row in counts[1:]] == both.runs[1].classes.confusion
    with (folder / "robustness.csv").open(newline="") as file:
        changes = {(r["run"], r["change"], float(r["level"])): float(r["top1_percent"]) for r in csv.DictReader(file)}
    assert changes["first", "fgsm", 8] == both.runs[0].attacks[0].top1[2]
    corruptions = both.runs[1].corruptions
    assert corruptions is not None
    assert changes["second", "fog", 0] == corruptions.clean
    assert changes["second", "fog", 5] == corruptions.top1["fog"][4]
    assert changes["first", "centre_crop", 1] == both.runs[0].shifts["centre_crop"].clean
    assert changes["first", "occlusion", 0] == both.runs[0].shifts["occlusion"].clean


def test_what_was_not_asked_for_is_absent_and_the_folder_is_the_run_s(
    run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).write_bytes(b""))
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    found = evaluate(folder, fgsm=[1], device="cpu", progress=False)
    assert Path(found.folder) == folder / "evaluation"
    assert "attacks.png" in found.files
    (folder / "evaluation" / "mine.txt").write_text("kept")
    again = evaluate(str(folder), device="cpu", progress=False)
    plain = again.runs[0]
    assert (plain.attacks, plain.corruptions, plain.shifts, plain.outliers, plain.landscape) == ([], None, {}, [], None)
    # What the earlier evaluation wrote is gone, what somebody else did is not.
    kept = {path.name for path in (folder / "evaluation").iterdir()}
    assert kept == {*again.files, "mine.txt"}
    assert kept >= {"confusion.png", "worst.png", "reliability.png", "per_class.csv", "confusion.csv"}
    assert "attacks.png" not in kept
    assert "robustness.csv" not in kept


@pytest.mark.usefixtures("_undrawn")
def test_the_same_seed_gives_the_same_numbers(run: Result, both: Evaluation, tmp_path: Path) -> None:
    again = evaluate(run, pgd=[2], shifts=True, images=60, output=tmp_path / "out", device="cpu", progress=False).runs[
        0
    ]
    assert again.attacks[0] == both.runs[0].attacks[1]
    assert again.shifts == both.runs[0].shifts


@pytest.mark.usefixtures("_undrawn")
def test_the_temperature_is_fitted_on_the_validation_split(run: Result, tmp_path: Path) -> None:
    test = evaluate(run, output=tmp_path / "test", device="cpu", progress=False).runs[0].calibration
    val = evaluate(run, split="val", output=tmp_path / "val", device="cpu", progress=False)
    assert test.temperature is not None
    assert val.runs[0].calibration.temperature is None
    assert any("would flatter there" in note for note in val.notes)
    subject = load_subject(run.folder, split="val", device="cpu")
    logits, labels = logits_of(subject.network, subject.batches(), subject.normalise)
    losses = [
        float(torch.nn.functional.cross_entropy(logits.double() / t, labels))
        for t in (test.temperature * 0.99, test.temperature, test.temperature * 1.01)
    ]
    assert losses[1] == min(losses)


@pytest.mark.usefixtures("_undrawn")
def test_under_the_papers_protocol_there_is_no_temperature(tmp_path: Path) -> None:
    result = finished(tmp_path / "run", data={"protocol": "paper"}, optim={"epochs": 1})
    found = evaluate(result, device="cpu", progress=False)
    assert found.runs[0].calibration.temperature is None
    assert any(note.startswith("run: data.protocol=paper") for note in found.notes)
    last = evaluate(result, weights="last", device="cpu", progress=False)
    assert not any("chosen on the test split" in note for note in last.notes)
    assert any("no validation split" in note for note in found.notes)


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.open, self.images = 0, 0

    def note(self, line: str) -> None:
        self.lines.append(line)

    def start(self, what: str, total_steps: int, done: int) -> None:
        self.open += 1

    def step(self, images: int) -> None:
        self.images += images

    def stop(self) -> None:
        self.open -= 1


@pytest.mark.usefixtures("_undrawn")
def test_who_watches_is_told(run: Result, tmp_path: Path) -> None:
    heard = Heard()
    evaluate(run, fgsm=[1], images=30, output=tmp_path / "out", device="cpu", progress=heard)
    assert heard.open == 0
    # The test split, the validation split, and 30 images three times: their gradient, as they are, attacked.
    assert heard.images == 540 + 126 + 3 * 30
    assert any("30 of the 540 images" in line for line in heard.lines)


def test_nothing_is_written_where_something_else_is(run: Result, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="holds other files than an evaluation's"):
        evaluate(run, output=tmp_path / "mine", progress=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        evaluate(run, output=tmp_path / "file", progress=False)
    heard = Heard()
    with pytest.raises(UsageError, match="file/below: cannot be written .* Choose another --output"):
        evaluate(run, output=tmp_path / "file" / "below", progress=heard)
    assert heard.images == 0
    assert not (Path(run.folder) / "evaluation").exists()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"fgsm": [-1]}, "--fgsm: an epsilon must be from 0 to 255"),
        ({"pgd": [300]}, "--pgd: an epsilon must be from 0 to 255"),
        ({"points": 4}, "--points must be an odd number of 5 or more, got 4"),
        ({"images": 0}, "--images must be 1 or more, got 0"),
        ({"batch_size": 0}, "--batch-size must be 1 or more, got 0"),
        ({"ood": ["nothere"]}, "unknown data set `nothere`"),
        ({"split": "train2"}, "split must be one of"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_measured(run: Result, how: dict[str, Any], told: str) -> None:
    heard = Heard()
    with pytest.raises(UsageError, match=told):
        evaluate(run, **how, progress=heard)
    assert heard.images == 0


def test_a_network_that_gives_no_numbers_is_refused(run: Result, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    weights = load_file(folder / "best.safetensors")
    save_file(
        {name: value * math.nan if name == "fc.bias" else value for name, value in weights.items()},
        folder / "best.safetensors",
    )
    with pytest.raises(AuguryError, match="not finite on 540 of 540 images"):
        evaluate(folder, device="cpu", progress=False)


def test_no_change_is_where_the_strengths_begin() -> None:
    assert Shifted(1, 90, "share kept", [0.9, 0.5], [80, 70]).unchanged == 1
    assert Shifted(1, 90, "share blanked", [0.1, 0.5], [80, 70]).unchanged == 0


def test_numbers_are_kept_where_a_picture_fails(run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def savefig(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no ink")

    monkeypatch.setattr(writing, "drawn", lambda *_: iter([("broken.png", Broken())]))
    with pytest.raises(RuntimeError, match="no ink"):
        evaluate(run, output=tmp_path / "out", device="cpu", progress=False)
    said = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert said["runs"][0]["images"] == 540
    assert sorted(said["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_names_of_files_are_short_and_no_two_runs_the_same(both: Evaluation) -> None:
    names = ["a/b-c", "a-b/c", "plain", "PLAIN", "x" * 250, "x" * 249 + "y", "\u65e5" * 80]
    runs = [replace(both.runs[0], name=name) for name in names]
    evaluation = replace(both, runs=runs)
    files = [evaluation.file("confusion", run, "png") for run in runs]
    assert len({file.casefold() for file in files}) == len(names)
    assert max(len(f"{file}.partial".encode()) for file in files) <= 255
    assert replace(both, runs=runs[1:3]).file("worst", runs[1], "png") == "worst-a-b-c.png"


def test_attacks_take_no_more_images_at_once_than_the_training(run: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = load_subject(run.folder, device="cpu")
    sizes: list[int] = []
    own = type(subject).logits

    def counted(self: Any, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return own(self, images)

    monkeypatch.setattr(type(subject), "logits", counted)
    few = replace(subject, split=subject.split.take(torch.arange(60)))
    attacked_by_fgsm(few, [1], Silent())
    attacked_by_pgd(few, [1], 0, Silent())
    assert max(sizes) == subject.config.optim.batch_size == 25
    assert replace(subject, batch_size=10).attacked_at_once == 10
    optim = subject.config.optim.model_copy(update={"accumulation": 5})
    subject.config = subject.config.model_copy(update={"optim": optim})
    assert subject.attacked_at_once == 5


def test_too_little_memory_says_what_to_do(run: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("augury_lab.evaluation.evaluator.attacked_by_fgsm", full)
    with pytest.raises(AuguryError, match="batches of 64 images. Take fewer: --batch-size 16"):
        evaluate(run, fgsm=[1], batch_size=64, output=tmp_path / "out", device="cpu", progress=False)


@pytest.mark.usefixtures("_undrawn")
def test_unreadable_images_of_others_are_noted(run: Result, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("L", (9, 9)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_bytes(b"no image")
    others = str(tmp_path / "photos")
    found = evaluate(run, ood=[others], output=tmp_path / "out", device="cpu", progress=False)
    assert found.runs[0].outliers[0].images == 1
    assert any("1 of its images cannot be read" in note and "b.png" in note for note in found.notes)


def test_letters_that_no_font_has_are_drawn_in_silence(tmp_path: Path) -> None:
    # Warnings are errors here.
    bins = Bins([0.5], [0.5], [3], 0.0)
    writing.save_picture(reliability({"\u65e5\u672c \u0985": bins}), tmp_path / "one.png")
    assert [path.name for path in tmp_path.iterdir()] == ["one.png"]
