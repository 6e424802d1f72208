"""The recipes of published runs: all that the papers' tables hold, with their numbers and settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tests.system.published import DCUTMIX, FILES, ISDA_SETTINGS, PUBLISHED, RESMOOTH, ROOT, numbers

from augury_train.config import read_recipe


def settings(name: str) -> dict[str, Any]:
    """What a recipe sets."""
    return read_recipe(PUBLISHED[name].path)


# What there is


def test_the_files_are_what_the_tables_write(tmp_path: Path) -> None:
    command = [sys.executable, "-B", str(ROOT / "plugins/write_recipes.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.toml")}
    there = {FILES[name].relative_to(ROOT / "plugins"): FILES[name].read_text() for name in PUBLISHED}
    assert written == there, "write them anew: make recipes"


def test_what_no_table_has_any_longer_is_removed_and_what_is_written_by_hand_stays(tmp_path: Path) -> None:
    folder = tmp_path / "isda/src/augury_isda/recipes"
    folder.mkdir(parents=True)
    (folder / "old.toml").write_text("# Written by `make recipes` from somewhere.\n")
    (folder / "own.toml").write_text('title = "mine"\n')
    command = [sys.executable, "-B", str(ROOT / "plugins/write_recipes.py"), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    assert not (folder / "old.toml").exists()
    assert (folder / "own.toml").read_text() == 'title = "mine"\n'


def test_every_published_number_is_told_and_no_other() -> None:
    told = {name: recipe.published for name, recipe in PUBLISHED.items() if recipe.published is not None}
    assert told == numbers()


def test_every_run_has_its_recipe_title_and_source() -> None:
    kinds = ("standard", "cutout", "mixup", "cutmix", "autoaugment")
    kinds += tuple(f"{kind}-autoaugment" for kind in ("cutout", "mixup", "cutmix"))
    expected = set(numbers()) | {f"resmooth/{name}" for name in RESMOOTH}
    for dataset in ("cifar10", "cifar100"):
        expected |= {f"isda/{dataset}-shakepyramidnet110{kind}" for kind in ("", "-baseline")}
        for network in ("wrn28_10", "wrn40_2"):
            for kind in kinds:
                name = f"agmax/{dataset}-{network}-{kind}"
                expected |= {name, f"{name}-baseline", f"{name}-label_smoothing"}
    for dataset in ("cifar10", "cifar100", "svhn"):
        expected |= {f"resmooth/{dataset}-{network}-baseline" for network in ("resnet18", "wrn28_10")}
    assert expected <= PUBLISHED.keys()
    others = [
        name for name in PUBLISHED.keys() - expected if not re.match(r"agmax/imagenet-(regnet|efficientnet)", name)
    ]
    assert others == []
    for name, recipe in PUBLISHED.items():
        assert recipe.problem == "", name
        assert recipe.title, name
        assert recipe.source, name
        assert recipe.dataset == name.split("/")[1].split("-")[0], name
        assert ("No published number" in recipe.source) == (recipe.published is None), name
        uses_none = name.endswith(("-baseline", "-label_smoothing", "-mixup-baseline", "-cutmix-baseline"))
        assert (recipe.owner not in recipe.methods) == uses_none, name


def test_the_guides_and_cards_name_recipes_that_exist() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("plugins/*/README.md")]
    owners = "|".join(sorted({name.split("/")[0] for name in FILES}))
    named = {
        name
        for page in pages
        for name in re.findall(rf"\b(?:{owners})/(?:cifar|imagenet|svhn|digits)[\w-]*(?![\w*-])", page.read_text())
    }
    assert len(named) >= 10
    assert named <= FILES.keys()


# Their settings


def test_isda_settings() -> None:
    rows = {name for name in PUBLISHED if name.startswith("isda/cifar")}
    assert len(rows) == 4 * (len(ISDA_SETTINGS) + 3 * 3)
    for name in rows:
        network = name.split("-")[1]
        values = settings(name)
        optim, schedule = values["optim"], values["schedule"]
        found = [
            optim["epochs"],
            schedule.get("milestones", []),
            optim["lr"],
            optim["batch_size"],
            optim["weight_decay"],
        ]
        assert found == list(ISDA_SETTINGS[network]), name
        assert (optim["name"], optim["momentum"]) == ("sgd", 0.9)
        assert schedule["name"] == ("multistep" if found[1] else "cosine")
        assert schedule.get("decay_rate", 0.1) == (0.2 if "wrn" in network else 0.1)
        assert values["model"].get("kwargs", {}) == ({"drop_rate": 0.3} if "wrn" in network else {})
        np.testing.assert_allclose(np.array(values["data"]["mean"]) * 255, [125.3, 123.0, 113.9], atol=0.01)
        np.testing.assert_allclose(np.array(values["data"]["std"]) * 255, [63.0, 62.1, 66.7], atol=0.01)
        assert values["data"]["base"] == "reflect_crop:4 flip"
        kind = name.removesuffix("-baseline").split("-")[2:]
        ends = {"cutout": " cutout:16", "autoaugment": " autoaugment:cifar10 cutout:16", "randaugment": ""}
        assert (values["data"].get("augmented") is None) == (not kind)
        assert values["data"].get("augmented", "").endswith(ends[kind[0]] if kind else "")
        options = [{"name": "isda", "options": {"lambda_0": 0.5, "covariance": "full"}}]
        assert values.get("methods", []) == ([] if name.endswith("-baseline") else options)


def test_isda_settings_on_imagenet() -> None:
    for network, strength in (("resnet50", 7.5), ("resnet101", 7.5), ("densenet121", 1), ("resnext50", 7.5)):
        values = settings(f"isda/imagenet-{network}")
        optim = values["optim"]
        assert [optim[key] for key in ("name", "lr", "batch_size", "epochs", "weight_decay")] == [
            "momentum", 0.2, 512, 300, 1e-4
        ]  # fmt: skip
        assert values["schedule"]["name"] == "cosine"
        assert values["methods"][0]["options"] == {"lambda_0": strength, "covariance": "diagonal"}
        assert settings(f"isda/imagenet-{network}-baseline") == {k: v for k, v in values.items() if k != "methods"}


def test_agmax_settings() -> None:
    for name in (name for name in PUBLISHED if name.startswith("agmax/")):
        values = settings(name)
        data, optim, schedule = values["data"], values["optim"], values["schedule"]
        words = data.get("augmented", data["base"]).split()
        methods = {method["name"]: method.get("options", {}) for method in values.get("methods", [])}
        on_imagenet = data["dataset"] == "imagenet"
        policy = "autoaugment:imagenet" if on_imagenet else "autoaugment:cifar10"
        assert (policy in words) == ("-autoaugment" in name), name
        assert (words[-1] == ("cutout:112" if on_imagenet else "cutout:16")) == ("-cutout" in name), name
        mixed = {"k": 2, "alpha": 1, "prob": 1 if on_imagenet else 0.5} if "-cutmix" in name else None
        mixed = {"k": 2, "alpha": 0.2 if on_imagenet else 1, "mode": "dmixup"} if "-mixup" in name else mixed
        assert methods.get("dcutmix") == mixed, name
        assert list(methods) == [m for m in ("dcutmix", "agmax") if m in methods], "views are mixed before they agree"
        assert values["train"].get("label_smoothing", 0) == (0.1 if name.endswith("-label_smoothing") else 0), name
        assert (optim["name"], optim["momentum"], optim["lr"]) == ("sgd", 0.9, 0.1)
        length = (optim["epochs"], optim["batch_size"], optim["weight_decay"])
        if not on_imagenet:
            assert (length, schedule) == ((200, 128, 5e-4), {"name": "cosine"}), name
            continue
        assert words[-3:-1] == ["color_jitter:0.4", "lighting:0.1"] or words[-2:] == [
            "color_jitter:0.4",
            "lighting:0.1",
        ]
        if "-resnet" in name:
            long = "-270epochs-" in name
            assert length == (270 if long else 90, 256, 1e-4), name
            assert schedule["milestones"] == ([75, 150, 225] if long else [30, 60, 80]), name
            wide = 2048 if long and "resnet50" in name else None
        else:
            assert length == (100, 128, 5e-5), name
            # The official program's cosine spans 100 epochs after the warm-up, and is cut.
            assert schedule == {"name": "cosine", "every": "epoch", "warmup_epochs": 5, "length": 105}, name
            assert data["test_size"] == 256
            wide = 2048
        if "agmax" in methods:
            assert methods["agmax"].get("n_units") == wide, name
            assert methods["agmax"]["q_init_std"] == 0.2, name


def test_dcutmix_settings() -> None:
    for name, (_, (k, alpha, prob), (dmixup_k, dmixup_alpha)) in DCUTMIX.items():
        for kind, options in {
            "": {"k": k, "alpha": alpha, "prob": prob},
            "-dmixup": {"k": dmixup_k, "alpha": dmixup_alpha, "prob": prob, "mode": "dmixup"},
            "-cutmix": {"k": 2, "alpha": 1, "prob": prob},
            "-mixup": {"k": 2, "alpha": 1, "prob": prob, "mode": "dmixup"},
        }.items():
            values = settings(f"dcutmix/{name}{kind}")
            assert values["methods"] == [{"name": "dcutmix", "options": options}]
            assert values["optim"] == {
                "name": "sgd", "lr": 0.25, "momentum": 0.9, "weight_decay": 4e-5, "batch_size": 64, "epochs": 300
            }  # fmt: skip
            assert values["schedule"] == {"name": "multistep", "milestones": [225, 270], "decay_rate": 0.1}
            data = values["data"]
            assert (data["mean"], data["std"]) == ([0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010])
        assert "methods" not in settings(f"dcutmix/{name}-baseline")


def test_resmooth_settings() -> None:
    for name in (name for name in PUBLISHED if name.startswith("resmooth/")):
        values = settings(name)
        assert values["optim"] == {
            "name": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 256, "epochs": 200
        }  # fmt: skip
        assert values["schedule"] == {"name": "cosine", "warmup_epochs": 5, "warmup_lr": 0.1}
        assert values["data"]["base"] == "crop:4 flip"
        if name.endswith("-baseline"):
            assert "augmented" not in values["data"]
            continue
        prob, first, last, smooth_aug = RESMOOTH[name.removeprefix("resmooth/")]
        words = values["data"]["augmented"].split()
        assert (words[0], words[-1]) == (first, last), name
        assert {"crop:4", "flip"} <= set(words), name
        options = values["methods"][0]["options"]
        assert (options["prob"], options["smooth_aug"]) == (prob, smooth_aug), name
        assert options.get("loss") == (None if "randaugment" in name else "smooth"), name
