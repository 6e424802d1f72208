"""Other data, and what AUROC and the false positive rate come to on planted confidences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.lab.evaluated_runs import finished

from augury.errors import UsageError
from augury_lab.evaluation.outliers import open_outliers, separate, shown
from augury_lab.evaluation.subject import load_subject
from augury_train.config import DataConfig
from augury_train.training.watch import Silent


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_planted_confidences() -> None:
    # Of 4 x 3 pairs 0.9 wins 3, 0.8 wins 3, 0.5 wins 1 and ties 1, 0.3 wins 1.
    found = separate(scores(0.5, 0.9, 0.3, 0.8), scores(0.5, 0.2, 0.6), "others")
    assert found.auroc == pytest.approx(100 * (3 + 3 + 1.5 + 1) / 12)
    # 95 % of four are all four, so the threshold is 0.3.
    assert found.fpr95 == pytest.approx(100 * 2 / 3)
    assert found.confidence == pytest.approx(1.3 / 3)
    assert (found.name, found.images) == ("others", 3)


def test_every_own_image_above_every_other_and_the_other_way_round() -> None:
    high, low = scores(0.8, 0.9, 0.99), scores(0.1, 0.5)
    assert (separate(high, low, "").auroc, separate(high, low, "").fpr95) == (100, 0)
    assert (separate(low, high, "").auroc, separate(low, high, "").fpr95) == (0, 100)


def test_equal_confidences_are_no_better_than_guessing() -> None:
    assert separate(scores(0.5, 0.5), scores(0.5, 0.5, 0.5), "").auroc == 50


def test_what_float32_calls_1_is_still_told_apart() -> None:
    own, others = 1 - scores(1e-12, 1e-13, 1e-14), 1 - scores(1e-9, 1e-10, 1e-11)
    assert separate(own, others, "").auroc == 100


def test_the_threshold_lets_95_percent_pass() -> None:
    own = torch.arange(100, dtype=torch.float64) / 100
    # The 95 largest are 0.05 and above.
    assert separate(own, scores(0.049, 0.05, 0.5, 0.01), "").fpr95 == 50


def photographs(folder: Path, mode: str = "RGB") -> Path:
    draw = np.random.default_rng(0)
    (folder / "deep" / "deeper").mkdir(parents=True)
    for path in ("a.png", "deep/b.jpg", "deep/deeper/c.png", ".hidden.png"):
        Image.fromarray(draw.integers(0, 255, (20, 30, 3), np.uint8)).convert(mode).save(folder / path)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_of_images_in_any_arrangement(tmp_path: Path) -> None:
    split = open_outliers(str(photographs(tmp_path / "photos")), DataConfig(), 1)
    names = [Path(split.source.name(number)).name for number in range(len(split))]
    assert names == ["a.png", "b.jpg", "c.png"]
    assert [split.source.read(number).mode for number in range(3)] == ["L"] * 3
    assert open_outliers(str(tmp_path / "photos"), DataConfig(), 3).source.read(0).mode == "RGB"


def test_a_named_data_set_gives_its_test_images_where_it_has_some() -> None:
    grey = open_outliers("digits", DataConfig(dataset="other"), 3)
    assert len(grey) == 1797
    assert grey.source.read(0).mode == "RGB"


def test_they_are_shown_as_the_network_s_own(tmp_path: Path) -> None:
    subject = load_subject(finished(tmp_path / "run", optim={"epochs": 1}).folder, device="cpu")
    split = open_outliers(str(photographs(tmp_path / "photos")), subject.config.data, subject.channels)
    shown = subject.show(split)
    assert shown.shape == (3, 1, 8, 8)
    image = Image.open(tmp_path / "photos" / "a.png").convert("L")
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    expected = np.asarray(image.resize((8, 8), method[subject.data.format.interpolation], box=(5, 0, 25, 20))) / 255
    assert np.abs(shown[0, 0].numpy() - expected).max() <= 1.5 / 255


def test_what_cannot_serve_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no image in this folder or below it"):
        open_outliers(str(tmp_path / "empty"), DataConfig(), 3)
    with pytest.raises(UsageError, match="unknown data set `nothere`"):
        open_outliers("nothere", DataConfig(), 3)
    with pytest.raises(UsageError, match="the run's own images"):
        open_outliers("digits", DataConfig(dataset="digits"), 1)
    own = str(photographs(tmp_path / "photos").resolve())
    with pytest.raises(UsageError, match="the run's own images"):
        open_outliers(own + "/", DataConfig(dataset=own), 1)


def test_what_cannot_be_read_is_left_out_and_named(tmp_path: Path) -> None:
    subject = load_subject(finished(tmp_path / "run", optim={"epochs": 1}).folder, device="cpu")
    folder = photographs(tmp_path / "photos")
    split = open_outliers(str(folder), subject.config.data, subject.channels)
    with torch.no_grad():
        expected = subject.logits(subject.show(split)).double().softmax(1).amax(1)
    assert torch.equal(shown(subject, split, "photos", Silent())[0], expected)
    (folder / "deep" / "b.jpg").write_bytes(b"no image")
    scores, unread = shown(subject, split, "photos", Silent())
    assert torch.allclose(scores, expected[[0, 2]])
    assert [Path(name).name for name in unread] == ["b.jpg"]
    # Batches of which nothing is left as well.
    subject.batch_size = 1
    assert torch.allclose(shown(subject, split, "photos", Silent())[0], expected[[0, 2]])
    for name in ("a.png", "deep/deeper/c.png"):
        (folder / name).write_bytes(b"")
    with pytest.raises(UsageError, match="none of 3 images can be read"):
        shown(subject, split, "photos", Silent())
