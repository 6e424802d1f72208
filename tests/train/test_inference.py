"""A trained network in use, without its data: it says of files what its run's evaluation said of them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.train.small_runs import small

import augury
import augury_train.inference.predict
from augury.errors import UsageError
from augury_train.backbones.weights import EXPORTED, save_weights
from augury_train.inference.classifier import load_classifier
from augury_train.inference.predict import Prediction, find_images, predict
from augury_train.training.trainer import train

CLASSES = ["bus", "car", "tram"]
NETWORK = {"name": "resnet20_cifar", "kwargs": {"depth": 8}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several kinds and sizes, none of them square, in train/ and test/."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 5)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                shape = (int(generator.integers(30, 60)), int(generator.integers(20, 90)), 3)
                pixels = generator.integers(0, 256, shape) // (label + 1)
                suffix = ("png", "jpg", "webp")[number % 3]
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.{suffix}")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tested on larger images than it is trained on, both cropped from still larger ones."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = {"dataset": str(photos), "image_size": 16, "test_size": 24, "crop_pct": 0.78, "images_per_class": None}
    train(small(data={**data, "augmented": "flip"}, optim={"epochs": 1, "batch_size": 6}, model=NETWORK), folder)
    return folder


def changed(run: Path, place: Path, **said: Any) -> Path:
    """A file of the run's weights that says other things; None for what it does not say."""
    with safe_open(str(run / "best.safetensors"), "pt") as file:
        before = file.metadata()
    after = {key: value for key, value in {**before, **said}.items() if value is not None}
    save_file(load_file(run / "best.safetensors"), place, after)
    return place


def test_neither_data_nor_methods_are_needed(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    config = small(
        "agmax",
        data={"dataset": str(data), "image_size": 16, "images_per_class": None},
        optim={"epochs": 1, "batch_size": 6},
        model=NETWORK,
    )
    train(config, tmp_path / "run")
    shutil.rmtree(data)
    (tmp_path / "run/config.json").write_text("{}")
    (row,) = predict(load_classifier(tmp_path / "run", device="cpu"), [photos / "test/bus/0.png"])
    assert set(row.classes) == set(CLASSES)


def test_grey_networks_see_colours_as_grey(tmp_path: Path) -> None:
    train(small(optim={"epochs": 1}, model=NETWORK), tmp_path / "run")
    classifier = augury.load_classifier(tmp_path / "run", device="cpu")
    pixels = torch.randint(0, 256, (8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    grey = Image.fromarray(pixels.numpy())
    for image in (grey, grey.convert("RGB")):
        assert torch.equal(classifier.prepare(image), pixels[None])


# Files.


def test_files_that_cannot_be_read_are_marked_among_the_others(run: Path, photos: Path, tmp_path: Path) -> None:
    classifier = load_classifier(run, device="cpu")
    good = [photos / "test/bus/0.png", photos / "test/car/1.jpg", photos / "test/tram/2.webp"]
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.jpg").write_text("no image")
    (tmp_path / "loop.png").symlink_to("loop.png")
    bad = [tmp_path / name for name in ("empty.png", "words.jpg", "missing.png", f"{'x' * 300}.png", "loop.png")]
    places = [bad[0], good[0], *bad[1:], good[1], good[2]]
    alone = {path: next(predict(classifier, [path])) for path in good}
    for size in (1, 2, 7, 8, 100):
        found = list(predict(classifier, places, batch_size=size))
        assert [row.file for row in found] == [str(path) for path in places]
        for place, row in zip(places, found, strict=True):
            assert (row.error is None) == (place in good)
            assert row.classes == (alone[place].classes if place in good else ())
            if place in good:
                assert row.probabilities == pytest.approx(alone[place].probabilities, abs=1e-5)
    assert [row.error for row in predict(classifier, bad)] == [
        "no image format that Pillow knows",
        "no image format that Pillow knows",
        "No such file or directory",
        "File name too long",
        "Too many levels of symbolic links",
    ]


def test_no_more_is_read_ahead_than_one_batch(run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    decode = augury_train.inference.predict.decode_rgb
    monkeypatch.setattr("augury_train.inference.predict.decode_rgb", lambda path: (read.append(path), decode(path))[1])
    found = predict(load_classifier(run, device="cpu"), [photos / "test"], batch_size=2)
    assert len(list(itertools.islice(found, 3))) == 3
    found.close()  # type: ignore[attr-defined]
    assert len(read) <= 6
    assert len(set(read)) == len(read)


def test_folders_are_searched_at_any_depth_in_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.JPG", "a.jpeg", ".hidden/x.png", "b/.x.png", "b/notes.txt", "c/d/e.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "c/loop").symlink_to(tmp_path)
    for name in ("round", "round.png"):
        (tmp_path / "c" / name).symlink_to(name)
    found = [str(path.relative_to(tmp_path)) for path in find_images([tmp_path])]
    assert found == ["a.jpeg", "b/10.JPG", "b/2.png", "c/d/e.webp", "c/round.png"]
    notes = tmp_path / "b/notes.txt"
    assert find_images([notes, tmp_path / "c/d", notes]) == [notes, tmp_path / "c/d/e.webp", notes]
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"none: no images in it\. Name files, or another folder\."):
        find_images([tmp_path / "none"])


@pytest.mark.parametrize(("what", "value"), [("top", 0), ("batch_size", -1)])
def test_numbers_below_one_are_refused_at_once(run: Path, photos: Path, what: str, value: int) -> None:
    with pytest.raises(UsageError, match=rf"{what} must be at least 1, got {value}\."):
        predict(load_classifier(run, device="cpu"), [photos], **{what: value})


def test_no_more_classes_are_told_than_there_are(run: Path, photos: Path) -> None:
    classifier = load_classifier(run, device="cpu")
    image = photos / "test/bus/0.png"
    assert [len(next(predict(classifier, [image], top=top)).classes) for top in (1, 2, 1000)] == [1, 2, 3]
    assert isinstance(next(predict(classifier, [image])), Prediction)


# Places.


def test_a_file_and_an_exported_folder_are_as_good_as_the_run(run: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(run / "best.safetensors", tmp_path / EXPORTED)
    image = [photos / "test/bus/0.png"]
    whole = list(predict(load_classifier(run, device="cpu"), image))
    for place in (tmp_path, tmp_path / EXPORTED, run / "best.safetensors", str(run)):
        classifier = load_classifier(place, device="cpu")
        assert classifier.notes == []
        assert list(predict(classifier, image)) == whole


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / "result.json").unlink()
    assert load_classifier(folder, device="cpu").notes == [
        f"{folder} is not finished: these are its best weights so far."
    ]
    (folder / "last.safetensors").unlink()
    with pytest.raises(UsageError, match=r"is not finished: last\.safetensors .* resume .*, or take --weights best"):
        load_classifier(folder, "last", "cpu")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"classes": None}, "does not say its classes, as weights"),
        ({"model": None, "mean": None}, "does not say its model and mean, as weights"),
        ({"classes": "[1"}, "does not say its model, classes and preprocessing, as weights"),
        ({"test_kept_size": "20"}, "its image sizes, channels and normalisation do not fit each other"),
        ({"test_kept_size": "99999999"}, "its image sizes, channels and normalisation do not fit each other"),
        ({"test_input_size": "[3, 24, 25]"}, "its image sizes, channels and normalisation do not fit each other"),
        ({"test_input_size": "[1, 24, 24]"}, "its image sizes, channels and normalisation do not fit each other"),
        ({"mean": "[0.5]"}, "its image sizes, channels and normalisation do not fit each other"),
        ({"classes": '["bus", "car"]'}, "its weights are not those of a `resnet20_cifar` of 2 classes"),
        ({"model": "resnet20_cifra"}, "unknown model `resnet20_cifra`"),
        ({"model_args": '{"pretrained_cfg": {"file": "x"}}'}, "must not have `pretrained_cfg`"),
        ({"model_args": '{"depth": 9}'}, "cannot be built with"),
    ],
)
def test_files_that_say_too_little_or_what_cannot_be(
    run: Path, tmp_path: Path, said: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as error:
        load_classifier(changed(run, tmp_path / "x.safetensors", **said), device="cpu")
    assert told in str(error.value)


def test_places_without_a_network_are_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("words")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    for place, told in (
        ("missing", "missing: no such file or folder. Give a run's folder"),
        ("empty", f"empty: neither run nor {EXPORTED}. Give a run's folder"),
        ("words.txt", "words.txt: cannot be read ("),
        ("foreign.safetensors", "foreign.safetensors: does not say its model, classes and preprocessing"),
        ("x" * 300, "cannot be used (File name too long)"),
    ):
        with pytest.raises(UsageError) as error:
            load_classifier(tmp_path / place, device="cpu")
        assert told in str(error.value)
    with pytest.raises(UsageError, match="weights must be one of best, last, got `first`"):
        load_classifier(run, "first", "cpu")  # type: ignore[arg-type]
    for name in ("tpu", "cuda:", "cuda:\u00b2", "cuda:01", "cpu:0"):
        with pytest.raises(UsageError, match=f"--device must be one of auto, cpu, cuda, cuda:N, got `{name}`"):
            load_classifier(run, device=name)


def test_damaged_weights_are_told_apart_from_those_of_others(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    whole = (folder / "best.safetensors").read_bytes()
    for content in (b"", whole[:1000], whole[:-1]):
        (folder / "best.safetensors").write_bytes(content)
        with pytest.raises(UsageError, match=r"best\.safetensors: cannot be read \(\w+\)"):
            load_classifier(folder, device="cpu")


def test_a_folder_of_other_things_is_not_searched_for_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(UsageError, match="neither run nor"):
        load_classifier(tmp_path, device="cpu")


def test_weights_that_give_no_numbers_are_told(run: Path, photos: Path, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "x.safetensors")
    with safe_open(str(path), "pt") as file:
        said = file.metadata()
    weights = load_file(path)
    weights["fc.bias"][1] = float("nan")
    save_weights(path, weights, said)
    with pytest.raises(UsageError, match=r"x\.safetensors: its network gives no numbers"):
        list(predict(load_classifier(path, device="cpu"), [photos / "test/bus/0.png"]))


def test_a_flipped_bit_is_found(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    content = bytearray((run / "best.safetensors").read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.safetensors: damaged: .* Bring a copy back"):
        load_classifier(path, device="cpu")


def test_a_network_larger_than_its_file_is_refused_before_it_takes_memory(run: Path, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "x.safetensors", model="vit_giant_patch14_224", model_args="{}")
    with pytest.raises(
        UsageError, match="are not those of a `vit_giant_patch14_224` of 3 classes: `cls_token` is miss"
    ):
        load_classifier(path, device="cpu")


def test_what_has_one_set_of_weights_has_no_last_one(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "best.safetensors", tmp_path / EXPORTED)
    for place in (run / "best.safetensors", tmp_path):
        with pytest.raises(UsageError, match="has one set of weights. Leave out --weights, or give a run's folder"):
            load_classifier(place, "last", "cpu")


def test_onnx_is_told_to_be_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UsageError, match="is ONNX, which onnxruntime runs. Give its run's folder"):
        load_classifier(tmp_path / "model.onnx", device="cpu")


def test_what_a_run_says_is_whole(run: Path) -> None:
    with safe_open(str(run / "best.safetensors"), "pt") as file:
        said = file.metadata()
    assert json.loads(said["classes"]) == CLASSES
    assert [json.loads(said[key]) for key in ("input_size", "test_input_size", "test_kept_size", "crop_pct")] == [
        [3, 16, 16],
        [3, 24, 24],
        30,
        0.8,
    ]
