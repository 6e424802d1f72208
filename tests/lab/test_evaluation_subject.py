"""A run's network and images as an evaluation gets them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lab.evaluated_runs import finished

from augury.errors import UsageError
from augury_lab.evaluation import subject as module
from augury_lab.evaluation.subject import load_subject, load_subjects, short_names
from augury_train.data.splits import Split
from augury_train.measures import logits_of, measure
from augury_train.training.plan import make_plan
from augury_train.training.result import Result
from augury_train.training.trainer import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return finished(tmp_path_factory.mktemp("runs") / "first")


def copy_of(run: Result, folder: Path) -> Path:
    shutil.copytree(run.folder, folder)
    return folder


def changed(run: Result, folder: Path, name: str, *keys: str, value: Any) -> Path:
    """A copy of a run with another value in one of its JSON files."""
    copy_of(run, folder)
    said = json.loads((folder / name).read_text())
    inner = said
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / name).write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("split", ["test", "val"])
@pytest.mark.parametrize("weights", ["best", "last"])
def test_it_measures_what_the_run_measured(run: Result, weights: Any, split: Any) -> None:
    subject = load_subject(run.folder, weights, split, "cpu")
    found = measure(*logits_of(subject.network, subject.batches(), subject.normalise))
    expected = getattr(run, weights)[split]
    assert found.top1 == expected.top1
    assert found.nll == pytest.approx(expected.nll, rel=1e-5)


def test_images_are_those_of_the_training_s_own_evaluation(run: Result) -> None:
    subject = load_subject(run.folder, device="cpu")
    trainer = Trainer(make_plan(subject.config))
    assert trainer.data.splits.test is not None
    theirs = [trainer._shown.normalise(p) for p, _ in trainer.feed.held_out(trainer.data.splits.test)]
    ours, labels = zip(*subject.batches(100), strict=True)
    assert [len(part) for part in ours] == [100, 100, 100, 100, 100, 40]
    assert torch.cat(ours).amin() >= 0
    assert torch.cat(ours).amax() <= 1
    torch.testing.assert_close(subject.normalise(torch.cat(ours)), torch.cat(theirs), atol=1e-5, rtol=0)
    assert torch.equal(torch.cat(labels), trainer.data.splits.test.labels)
    assert torch.equal(subject.images(torch.tensor([7, 3])), torch.cat(ours)[[7, 3]])


def test_loaders_give_the_same_images(run: Result, tmp_path: Path) -> None:
    streams = changed(run, tmp_path / "streams", "data.json", "loader", value="stream")
    config = json.loads((streams / "config.json").read_text())
    config["data"]["workers"] = 0
    (streams / "config.json").write_text(json.dumps(config))
    one, other = (list(load_subject(place, device="cpu").batches(64)) for place in (run.folder, streams))
    for (images, labels), (theirs, their_labels) in zip(one, other, strict=True):
        assert torch.equal(images, theirs)
        assert torch.equal(labels, their_labels)


def test_photographs_are_cropped_to_the_test_size(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = draw.integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    data = {"dataset": str(tmp_path / "photos"), "image_size": 16, "test_size": 24, "crop_pct": 0.75}
    shown = {"augmented": None, "images_per_class": 4, "val_fraction": 0.3}
    result = finished(tmp_path / "run", data=data | shown, optim={"batch_size": 4, "epochs": 1})
    subject = load_subject(result.folder, device="cpu")
    images = torch.cat([images for images, _ in subject.batches()])
    assert images.shape == (8, 3, 24, 24)
    assert measure(*logits_of(subject.network, subject.batches(), subject.normalise)).top1 == result.best["test"].top1
    # Of a square of 32 pixels, the middle 24, for training images too.
    train = load_subject(result.folder, split="train", device="cpu")
    source = train.split.source.read(int(train.split.rows[0]))
    square = source.crop((5, 0, 45, 40)).resize((32, 32), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[:, 4:28, 4:28] / 255
    assert (next(train.batches())[0][0] - expected).abs().max() <= 1.5 / 255


def test_a_network_asks_for_no_gradient_but_its_images_may(run: Result) -> None:
    subject = load_subject(run.folder, device="cpu")
    assert not subject.network.training
    assert not any(p.requires_grad for p in subject.network.parameters())
    images = subject.images(torch.arange(2)).requires_grad_()
    subject.logits(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_loading_draws_from_no_generator(run: Result) -> None:
    before = torch.random.get_rng_state()
    load_subject(run.folder, device="cpu")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_split_and_fewer_images(run: Result) -> None:
    subject = load_subject(run.folder, device="cpu")
    val = subject.on("val")
    assert val is not None
    assert len(val) == 126
    few = dataclasses.replace(subject, split=subject.split.take(torch.tensor([5, 2])))
    assert torch.equal(next(few.batches())[0], subject.images(torch.tensor([5, 2])))


def test_runs_of_the_same_data_share_them(run: Result, tmp_path: Path) -> None:
    other = copy_of(run, tmp_path / "other")
    one, two = load_subjects([run.folder, other], device="cpu")
    assert (one.name, two.name) == ("first", "other")
    assert one.split is two.split


def test_names_are_as_long_as_it_takes(tmp_path: Path) -> None:
    folders = [tmp_path / "isda" / "seed-0", tmp_path / "baseline" / "seed-0"]
    assert short_names(folders) == ["isda/seed-0", "baseline/seed-0"]
    assert short_names(folders[:1]) == ["seed-0"]


def test_a_run_without_its_methods_package_is_evaluated_all_the_same(run: Result, tmp_path: Path) -> None:
    methods = [{"name": "gone", "options": {"x": 1}}]
    folder = changed(run, tmp_path / "run", "config.json", "methods", value=methods)
    assert len(load_subject(folder, device="cpu")) == 540


def test_an_unfinished_run_has_best_weights_at_most(run: Result, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path / "run")
    (folder / "result.json").unlink()
    (folder / "last.safetensors").unlink()
    with pytest.raises(UsageError, match=r"not finished: last.safetensors .* resume .* or take --weights best"):
        load_subject(folder, "last")
    assert "not finished" in load_subject(folder, "best", device="cpu").notes[0]
    (folder / "best.safetensors").unlink()
    with pytest.raises(UsageError, match="not finished: best.safetensors"):
        load_subject(folder)


def test_what_is_no_run_is_refused(run: Result, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder, it has no config.json"):
        load_subject(tmp_path / "nowhere")
    folder = copy_of(run, tmp_path / "run")
    (folder / "data.json").unlink()
    with pytest.raises(UsageError, match=r"data\.json: cannot be read"):
        load_subject(folder)


def test_damaged_weights_and_those_of_another_network_are_refused(run: Result, tmp_path: Path) -> None:
    folder = copy_of(run, tmp_path / "run")
    (folder / "best.safetensors").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="best.safetensors: cannot be read"):
        load_subject(folder)
    other = changed(run, tmp_path / "other", "config.json", "model", "name", value="resnet32_cifar")
    with pytest.raises(UsageError, match="holds a `resnet20_cifar`"):
        load_subject(other)


def test_data_that_are_gone_or_changed_are_refused(run: Result, tmp_path: Path) -> None:
    gone = changed(run, tmp_path / "gone", "config.json", "data", "dataset", value=str(tmp_path / "photos"))
    with pytest.raises(UsageError, match="gone: its images cannot be had: unknown data set"):
        load_subject(gone)
    fewer = changed(run, tmp_path / "fewer", "data.json", "images", "test", value=541)
    with pytest.raises(UsageError, match="the images are not those that the run began with"):
        load_subject(fewer)
    renamed = changed(run, tmp_path / "renamed", "data.json", "classes", 3, value="three")
    with pytest.raises(UsageError, match="the classes are not those that the run began with"):
        load_subject(renamed)


def test_runs_of_other_splits_or_data_are_refused_by_name(run: Result, tmp_path: Path) -> None:
    other = changed(run, tmp_path / "other", "config.json", "data", "split_seed", value=1)
    with pytest.raises(UsageError, match=r"other cannot be set beside .*first: .*data.split_seed is 1, not 0"):
        load_subjects([run.folder, other], device="cpu")
    # The same test images, though others were held out to choose on.
    held = changed(run, tmp_path / "held", "config.json", "data", "val_fraction", value=0.2)
    said = json.loads((held / "data.json").read_text())
    said["images"]["val"] = 252
    (held / "data.json").write_text(json.dumps(said))
    assert len(load_subjects([run.folder, held], device="cpu")) == 2
    with pytest.raises(UsageError, match="data.val_fraction is 0.2, not 0.1"):
        load_subjects([run.folder, held], split="val", device="cpu")


def test_a_split_that_is_not_there_is_refused(tmp_path: Path) -> None:
    result = finished(tmp_path / "run", data={"protocol": "paper"}, optim={"epochs": 1})
    with pytest.raises(UsageError, match="no val split. Set it with --split; there are test and train"):
        load_subject(result.folder, split="val")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"weights": "worst"}, "weights must be one of best, last, got `worst`"),
        ({"split": "all"}, "split must be one of test, val, train, got `all`"),
        ({"device": "tpu"}, "--device must be one of auto, cpu, cuda, cuda:N, got `tpu`"),
        ({"device": "cuda:99"}, "--device cuda:99: torch sees"),
    ],
)
def test_bad_requests_are_refused(run: Result, how: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load_subject(run.folder, **how)


def test_a_run_is_named_once(run: Result) -> None:
    with pytest.raises(UsageError, match="is named twice"):
        load_subjects([run.folder, run.folder])
    with pytest.raises(UsageError, match="no run to evaluate"):
        load_subjects([])


def test_other_images_of_the_same_classes_are_no_same_split(run: Result) -> None:
    one = load_subject(run.folder, device="cpu")
    rows, labels = one.split.rows.clone(), one.split.labels
    two = (labels == 3).nonzero().flatten()[:2]
    rows[two] = rows[two.flip(0)]
    other = dataclasses.replace(one, split=Split(one.split.source, rows))
    assert torch.equal(other.split.labels, labels)
    with pytest.raises(UsageError, match="splits are not the same"):
        module._refuse_other(one, other)
