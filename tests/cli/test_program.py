"""The `augury` command as its user meets it: what it prints, writes and returns, with good input and bad."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from PIL import Image
from tests.cli.in_process import augury

AUGURY = str(Path(sys.executable).with_name("augury"))
QUICK = ["--set", "data.images_per_class=5", "--set", "optim.batch_size=25", "--set", "optim.epochs=2"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def photographs(folder: Path, count: int = 12) -> Path:
    draw = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


BAD = {
    "method": (["--with", "cutmux"], "unknown method `cutmux`. Installed and listed: agmax, "),
    "near method": (["--with", "cutmux"], "Did you mean `cutmix`?"),
    "model": (["--model", "resnet20cifar"], "Did you mean `resnet20_cifar`"),
    "data set": (["--dataset", "nothere"], "unknown data set `nothere`. Known: cifar10, cifar100, digits,"),
    "option": (["--with", "isda:lamda_0=1"], "isda: unknown option `lamda_0`."),
    "near option": (["--with", "isda:lamda_0=1"], "Did you mean `lambda_0`?"),
    "option's range": (
        ["--with", "isda:lambda_0=-1"],
        "isda: option `lambda_0` must be >= 0, got -1. Set it with --with isda:lambda_0=0.5.",
    ),
    "option's type": (["--with", "dcutmix:k=many"], "dcutmix: option `k` must be a whole number, got 'many'."),
    "option's form": (["--with", "dcutmix:k"], "`k` must be option=value"),
    "option of no method": (
        ["--recipe", "resmooth/digits", "--set", "methods.isda.lambda_0=1"],
        "methods.isda.lambda_0 must be methods.NAME.OPTION, NAME a method of the run, resmooth here. Example: "
        "--set methods.resmooth.lambda_0=1.",
    ),
    "option without a method": (["--set", "methods.isda.lambda_0=1"], "and none is used here. Example: --with NAME"),
    "option of a number": (
        ["--with", "isda", "--set", "methods.0.options.lambda_0=1"],
        "methods.0.options.lambda_0 must be methods.NAME.OPTION, NAME a method of the run, isda here.",
    ),
    "option's value by --set": (
        ["--with", "isda", "--set", "methods.isda.lambda_0=-1"],
        "isda: option `lambda_0` must be >= 0, got -1.",
    ),
    "option that has no say": (
        ["--with", "resmooth:loss=distill,weighting=random"],
        "option `weighting` must be left out with loss=distill, where it has no say, got 'random'.\n",
    ),
    "key": (["--set", "optim.epoch=5"], "Did you mean `epochs`?"),
    "key's type": (["--set", "optim.epochs=few"], "key `optim.epochs` must be a whole number, got 'few'."),
    "key's range": (["--set", "optim.epochs=0"], "key `optim.epochs` must be >= 1, got 0."),
    "key's form": (["--set", "optim.epochs"], "--set takes key=value"),
    "section": (["--set", "seed.x=1", "--set", "seed=1", "--set", "seed.y=1"], "`seed` is a value, no section"),
    "batch": (["--set", "optim.batch_size=5000"], "optim.batch_size=5000 is more than the 1131 training images."),
    "transform": (
        ["--set", "data.base=crop:4 flop"],
        "unknown transform `flop`. Known: augmix, autoaugment, blur, color_jitter, crop,",
    ),
    "order": (["--with", "dcutmix", "--with", "resmooth"], "Name resmooth before dcutmix."),
    "twice": (["--with", "isda", "--with", "isda"], "isda is named 2 times"),
    "device": (["--set", "device=tpu"], "must be one of auto, cpu, cuda, got 'tpu'"),
    "optimiser": (["--set", "optim.name=sgdd"], "unknown optimiser `sgdd`."),
    "recipe": (["--recipe", "nothere.toml"], "no such file"),
    "trust": (["--trust", "nothere"], "unknown method `nothere`"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_a_line_or_two(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD[case]
    code, out, err = augury(capsys, "run", *arguments, "--output", "run")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) <= 2
    assert "Traceback" not in err
    assert out == ""
    assert not Path("run").exists()


def test_all_that_is_wrong_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = augury(
        capsys, "run", "--with", "cutmux", "--with", "isda:lambda_0=-1", "--model", "resnet20x", "--dataset", "nothere"
    )
    assert code == 2
    assert [line.split("`")[1] for line in err.strip().splitlines()] == ["cutmux", "lambda_0", "resnet20x", "nothere"]


SMALL = ["--set", "optim.batch_size=4", "--set", "optim.epochs=1", "--set", "data.image_size=16"]


def test_bad_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = photographs(tmp_path / "photographs")
    (folder / "owls").mkdir()
    code, _, err = augury(capsys, "run", "--dataset", str(folder))
    assert (code, str(folder / "owls") in err, "no images of this class" in err) == (2, True, True)
    (folder / "owls" / "broken.jpg").write_bytes(b"no image")
    code, _, err = augury(capsys, "run", "--dataset", str(folder))
    assert (code, "broken.jpg: not a readable image" in err) == (2, True)
    whole = (folder / "cats" / "0.png").read_bytes()
    (folder / "owls" / "broken.jpg").write_bytes(whole)
    code, _, err = augury(capsys, "run", "--dataset", str(folder))
    assert (code, "class `owls` has 1 image(s)" in err) == (2, True)
    shutil.rmtree(folder / "owls")
    (folder / "cats" / "cut.png").write_bytes(whole[: len(whole) // 2])
    code, _, err = augury(capsys, "run", "--dataset", str(folder), *SMALL)
    assert (code, "cut.png: not a readable image" in err) == (2, True)
    # Which of the splits it would have been in does not matter: it is left out before they are made.
    code, _, err = augury(capsys, "run", "--dataset", str(folder), "--skip-bad-images", *SMALL, "-o", "run")
    assert (code, "1 image(s) cannot be read and are left out" in err) == (0, True), err
    (skipped,) = json.loads(Path("run/data.json").read_text())["skipped"]
    assert str(folder / "cats" / "cut.png") in skipped


def test_labels_that_training_does_not_have_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "data" / "train")
    photographs(tmp_path / "data" / "test")
    (tmp_path / "data" / "test" / "owls").mkdir()
    code, _, err = augury(capsys, "run", "--dataset", "data")
    assert (code, "test/owls: a class that training does not have" in err) == (2, True)


def test_a_run_on_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "data")
    code, out, err = augury(
        capsys, "run", "--dataset", "data", "--with", "dcutmix", "--set", "optim.batch_size=4", *QUICK[4:], "-o", "run"
    )
    assert code == 0, err
    assert "test top-1" in out
    assert sum(line.startswith("epoch") for line in err.splitlines()) == 2
    assert "\x1b" not in out + err
    config = json.loads(Path("run/config.json").read_text())
    assert config["data"]["dataset"] == str(tmp_path / "data"), "a run is resumed from any folder"
    picture = imread("run/figures/batch.png")
    assert picture.shape[0] > 200
    assert picture.std() > 0.05
    code, _, err = augury(capsys, "run", "--output", "run")
    assert (code, "run exists. Continue it with `augury resume run`" in err) == (2, True)
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 2


def test_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *QUICK, "--with-each", "isda", "--with", "dcutmix:k=2+agmax", "--seeds", "2", "-o", "out"]
    code, out, err = augury(capsys, *command)
    assert code == 0, err
    table = [line.split() for line in out.splitlines() if line.strip().startswith(("baseline", "isda", "dcutmix"))]
    # How good they are, and then what they cost.
    assert [row[0] for row in table] == 2 * ["baseline", "isda", "dcutmix:k=2+agmax"]
    written = json.loads(Path("out/comparison.json").read_text())
    for row, shown in zip(written["rows"], table[:3], strict=True):
        runs = [run["best"]["test"]["top1"] for run in written["runs"][row["composition"]]]
        assert row["best_top1"]["mean"] == pytest.approx(np.mean(runs))
        assert row["best_top1"]["std"] == pytest.approx(np.std(runs, ddof=1))
        assert shown[1:4] == [f"{np.mean(runs):.2f}", "±", f"{np.std(runs, ddof=1):.2f}"]
    for name in ("curves.png", "batch.png"):
        assert imread(f"out/{name}").std() > 0.02
    stamps = {p: p.stat().st_mtime_ns for p in Path("out").rglob("last.safetensors")}
    assert len(stamps) == 6
    code, out, _ = augury(capsys, *command, "--json")
    assert (code, json.loads(out)) == (0, written)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps, "finished runs are not repeated"
    code, _, err = augury(capsys, *command, "--set", "optim.lr=0.01")
    assert (code, "holds a run with other settings" in err) == (2, True)


def test_a_comparison_is_checked_before_the_first_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = augury(capsys, "compare", "--with", "isda+cutmux", "--with", "dcutmix+resmooth", "-o", "out")
    assert code == 2
    assert "unknown method `cutmux`" in err
    assert "Name resmooth before dcutmix." in err
    assert not Path("out").exists()


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("agmax", "cutmix", "focal", "mixup", "resmooth")]


@pytest.mark.parametrize("method", ["isda", "dcutmix", *SLOW])
def test_the_recipes_that_methods_bring_can_be_run(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path(__file__).parents[2] / f"plugins/{method}/src/augury_{method}/recipes/digits.toml"
    code, _, err = augury(capsys, "run", "--recipe", str(recipe), *QUICK, "--output", "run")
    assert code == 0, err
    assert [m["name"] for m in json.loads(Path("run/config.json").read_text())["methods"]] == [method]


def test_resume_of_what_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = augury(capsys, "resume", "nothere")
    assert (code, "nothere: no run folder" in err) == (2, True)


def test_debug_shows_the_traceback() -> None:
    command = [AUGURY, "resume", "nothere", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "no run folder" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "list"], ["run", "--help"]])
def test_what_needs_no_torch_imports_none(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", AUGURY, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    assert not imported & {
        "torch",
        "timm",
        "numpy",
        "pydantic",
        "pluggy",
        "augury.registry" if "--help" in arguments else "",
    }


def test_nothing_is_written_among_the_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photographs(tmp_path / "data")
    for command in (["run"], ["compare", "--with", "isda"]):
        code, _, err = augury(capsys, *command, "--dataset", "data", *SMALL, "-o", "data/out")
        assert (code, "data/out is inside the images' folder" in err) == (2, True), err
    assert not Path("data/out").exists()
    code, _, err = augury(capsys, "preview", "--dataset", "data", "-o", "data")
    assert (code, "data is a folder" in err) == (2, True)


def test_a_split_of_another_name_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train", "vali", "test"):
        photographs(tmp_path / "data" / name)
    code, _, err = augury(capsys, "run", "--dataset", "data", *SMALL, "-o", "run")
    assert code == 0
    assert "vali: not used; splits are called train, val and test. Did you mean `val`?" in err


def test_a_training_that_diverges_fails(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = augury(capsys, "run", *QUICK, "--set", "optim.lr=1e30", "-o", "run")
    assert (code, "is no longer finite" in err) == (1, True), err
    code, _, err = augury(capsys, "run", *QUICK, "--set", "optim.lr=inf")
    assert (code, "must be a finite number" in err) == (2, True), err


def test_stopping_early_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--set", "train.patience=1", "--set", "optim.epochs=6", "--set", "optim.lr=1e-9"]
    code, _, err = augury(capsys, "run", *QUICK, *settings, "-o", "run")
    assert (code, "1 epochs without a better accuracy" in err) == (0, True), err


def test_a_finished_run_names_its_folder_as_it_is_given_now(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert augury(capsys, "run", *QUICK, "-o", "run")[0] == 0
    Path("else").mkdir()
    monkeypatch.chdir("else")
    code, out, _ = augury(capsys, "resume", "../run", "--json")
    assert (code, json.loads(out)["folder"]) == (0, "../run")


@pytest.mark.slow
def test_a_run_starts_from_another_with_its_network_and_its_input(capsys: pytest.CaptureFixture[str]) -> None:
    network = ["--model", "test_resnet", "--set", "model.kwargs={drop_rate=0.25}", "--set", "data.mean=[0.25]"]
    code, out, _ = augury(capsys, "run", *QUICK, *network, "-o", "run")
    assert code == 0
    assert "train on from these weights: augury run --recipe run/config.json --init-from run --output run-2\n" in out
    settings = [*QUICK, "--set", "train.trackers=none"]
    code, out, err = augury(capsys, "run", *settings, "--init-from", "run", "-o", "again", "--json")
    assert code == 0, err
    (line,) = [note for note in json.loads(out)["notes"] if note.startswith("starts from")]
    assert line == (
        "starts from the weights in run/best.safetensors, those of a `test_resnet`: the classifier of 10 classes is "
        "kept."
    )
    assert line in err
    model = json.loads(Path("again/config.json").read_text())["model"]
    assert (model["name"], model["kwargs"]) == ("test_resnet", {"drop_rate": 0.25})
    assert model["init_from"] == str(Path("run").resolve())
    one, two = (json.loads(Path(name, "data.json").read_text()) for name in ("run", "again"))
    assert one == two
    assert not Path("again/tensorboard").exists()
    # The settings of a run that has ended take another start as well.
    code, _, err = augury(capsys, "preview", "--recipe", "again/config.json", "--init-from", "run/last.safetensors")
    assert code == 0, err
    assert "starts from the weights in run/last.safetensors" in err
    told = "--pretrained and --init-from are two sets of weights to start from. Leave out one of them.\n"
    for command in ("run", "preview", "compare"):
        assert augury(capsys, command, "--pretrained", "--init-from", "run")[::2] == (2, told)


@pytest.mark.slow
def test_a_folder_called_like_a_data_set_is_no_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert augury(capsys, "run", *QUICK, "--dataset", "digits", "-o", "digits/first")[0] == 0
    assert augury(capsys, "run", *QUICK, "--dataset", "digits", "-o", "digits/second")[0] == 0


@pytest.mark.parametrize("method", ["agmax", pytest.param("resmooth", marks=pytest.mark.slow)])
def test_a_recipe_is_run_and_one_of_its_methods_options_changed(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option, value = {"resmooth": ("smooth_aug", 0.7), "agmax": ("dl_weight", 1.0)}[method]
    changed = ["--set", "optim.epochs=2", "--set", f"methods.{method}.{option}={value}"]
    code, out, err = augury(capsys, "run", "--recipe", f"{method}/digits", *changed, "--output", "run")
    assert code == 0, err
    ((name, options),) = [(m["name"], m["options"]) for m in json.loads(Path("run/config.json").read_text())["methods"]]
    assert (name, options[option]) == (method, value)
    assert options.get("prob", 0.2) == 0.2, "the recipe's others stay"
    assert "test top-1" in out
    # What trains before the training says so.
    assert ("resmooth: pre-train stage, epoch   1" in err) == (method == "resmooth")
    assert "\nepoch   1" in "\n" + err


def test_a_method_named_anew_tells_what_the_recipe_loses(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--recipe", "resmooth/digits", "--with", "resmooth:loss=smooth", *QUICK, "--output", "run"]
    code, _, err = augury(capsys, "run", *arguments)
    assert code == 0
    assert (
        "--with resmooth takes the place of the recipe's, whose options (prob=0.2, smooth_aug=0.4) do not count." in err
    )
    assert "--set methods.resmooth.OPTION=VALUE" in err
