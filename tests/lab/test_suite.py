"""What a suite is made of: compositions, seeds, their settings, and the file that says so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.train.small_runs import small

from augury.errors import UsageError
from augury_lab.experiment.suite import (
    Composition,
    folder_of,
    make_suite,
    parse_compositions,
    read_suite,
)
from augury_train.config import read_config


def test_the_base_comes_first_and_is_no_method_unless_one_is_named() -> None:
    compositions = parse_compositions(["isda", "dcutmix:k=3+isda"])
    suite = make_suite(small(), compositions)
    assert list(suite.compositions) == ["baseline", "isda", "dcutmix:k=3+isda"]
    assert suite.base == "baseline"
    assert suite.run_config("baseline", 4).methods == []
    both = suite.run_config("dcutmix:k=3+isda", 4)
    assert both.named_methods() == [("dcutmix", {"k": 3}), ("isda", {})]
    assert both.seed == 4
    other = make_suite(small(), compositions, base="dcutmix:k=3+isda")
    assert list(other.compositions) == ["dcutmix:k=3+isda", "isda"]
    assert list(make_suite(small(), parse_compositions(["baseline", "isda"])).compositions) == ["baseline", "isda"]


def test_seeds_count_up_from_the_settings() -> None:
    assert list(make_suite(small(), {}, seeds=3).all_seeds) == [3, 4, 5]


def test_a_composition_changes_settings_of_its_own_and_no_other_key() -> None:
    smoothed = Composition(settings={"train": {"label_smoothing": 0.1}, "optim": {"lr": 0.2}})
    suite = make_suite(small(), {"smoothed": smoothed})
    config, plain = suite.run_config("smoothed", 3), suite.run_config("baseline", 3)
    assert (config.train.label_smoothing, config.optim.lr) == (0.1, 0.2)
    changed = config.model_copy(update={"train": plain.train, "optim": plain.optim})
    assert changed == plain
    assert config.optim.model_copy(update={"lr": plain.optim.lr}) == plain.optim


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"data": {"val_fraction": 0.2}}, "data.val_fraction"),
        ({"data": {"augmented": "crop:1", "dataset": "cifar10"}}, "data.dataset"),
        ({"seed": 4}, "seed"),
        ({"methods": []}, "methods"),
    ],
)
def test_what_must_be_alike_in_all_runs_cannot_be_changed(settings: dict[str, object], key: str) -> None:
    with pytest.raises(UsageError, match=rf"composition x: `{key}` must be alike"):
        make_suite(small(), {"x": Composition(settings=settings)})
    make_suite(small(), {"x": Composition(settings={"data": {"augmented": "crop:1"}})})


def test_a_setting_that_does_not_exist_is_told_with_the_compositions_name() -> None:
    suite = make_suite(small(), {"x": Composition(settings={"optim": {"lrr": 1}})})
    with pytest.raises(UsageError, match="composition x: optim: unknown key `lrr`"):
        suite.run_config("x", 3)


def test_an_unknown_base_is_refused() -> None:
    with pytest.raises(UsageError, match="the base `dcutmix` must be `baseline` or one of the compositions: isda"):
        make_suite(small(), parse_compositions(["isda"]), base="dcutmix")


def test_what_is_counted_in_epochs_follows_their_number() -> None:
    schedule = {"name": "multistep", "milestones": [60, 120], "warmup_epochs": 10, "decay_epochs": 30.0}
    config = read_config({"optim": {"epochs": 200}, "schedule": schedule})
    suite = dataclasses.replace(make_suite(config, parse_compositions(["isda"])), epochs={"isda": 100})
    assert suite.run_config("baseline", 0).schedule == config.schedule
    scaled = suite.run_config("isda", 0)
    assert (scaled.optim.epochs, scaled.schedule.milestones) == (100, [30, 60])
    assert (scaled.schedule.warmup_epochs, scaled.schedule.decay_epochs) == (5, 15.0)
    once = dataclasses.replace(suite, epochs={"isda": 1}).run_config("isda", 0)
    assert once.schedule.warmup_epochs == 0, "a warm-up is shorter than the training"


def test_folders_hold_any_name(tmp_path: Path) -> None:
    for name in ("isda:lambda_0=0.5", "../up", "a/b", "resmooth:pretrained=/x/y+isda"):
        place = folder_of(tmp_path, name, 3)
        assert place.parent.parent == tmp_path
        assert place.name == "seed-3"


@pytest.mark.parametrize("names", [("λ", "μ"), ("a/b", "a_b"), ("x" * 300, "x" * 301), ("..", "."), ("a:b", "A/b")])
def test_no_two_compositions_share_a_folder(tmp_path: Path, names: tuple[str, str]) -> None:
    one, other = (folder_of(tmp_path, name, 0) for name in names)
    assert str(one).casefold() != str(other).casefold()
    one.mkdir(parents=True)


@pytest.mark.parametrize("names", [["ISDA", "isda"], ["a:b", "a_b"], [""], ["comparison.json"]])
def test_names_that_would_share_a_folder_are_refused(names: list[str]) -> None:
    with pytest.raises(UsageError, match="cannot be a folder's, or is too much like another's"):
        make_suite(small(), {name: Composition() for name in names})


def test_files_of_a_composition_are_found_from_any_folder() -> None:
    suite = make_suite(small(), {"x": Composition(settings={"model": {"init_from": "w.safetensors"}})})
    start = suite.run_config("x", 3).model.init_from
    assert start is not None
    assert Path(start).is_absolute()


FILE = """
title = "what helps on digits"

[data]
dataset = "digits"

[optim]
epochs = 5

[suite]
seeds = 4
base = "smoothed"
equal = "compute"

[suite.compositions]
both = "dcutmix:k=3+isda"
smoothed = { settings = { train = { label_smoothing = 0.1 } } }
strong = { methods = "isda", settings = { data = { augmented = "crop:1 cutout:3" } } }
"""


def test_a_suites_file(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(FILE)
    values, said = read_suite(path)
    config = read_config(values)
    assert config.optim.epochs == 5
    suite = make_suite(config, **said)
    assert list(suite.compositions) == ["smoothed", "both", "strong"]
    assert (suite.seeds, suite.equal) == (4, "compute")
    assert suite.run_config("both", 0).named_methods() == [("dcutmix", {"k": 3}), ("isda", {})]
    assert suite.run_config("strong", 0).data.augmented == ["crop:1", "cutout:3"]
    path.write_text('[suite]\ncompositions = ["baseline", "isda+agmax"]\n')
    assert list(read_suite(path)[1]["compositions"]) == ["baseline", "isda+agmax"]
    assert read_suite(path)[1]["seeds"] == 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[optim]\nepochs = 5\n", "has no section"),
        ("suite = 3\n", "must be a table, got 3"),
        ("[suite]\nseeds = 3\n", "`compositions` must be given|suite.compositions must be a list"),
        ("[suite]\nseeds = 0\ncompositions = []\n", "key `seeds` must be >= 1, got 0"),
        ("[suite]\ncompositions = []\nequal = 'time'\n", "must be one of 'epochs' or 'compute'"),
        ("[suite]\ncompositions = []\nsedes = 3\n", "unknown key `sedes`.*Did you mean `seeds`"),
        ("[suite.compositions]\nx = 3\n", "suite.compositions `x` must be"),
        ("[suite.compositions]\nx = { method = 'isda' }\n", "suite.compositions `x` must be"),
        ("[suite\n", "cannot be read"),
        ("[suite]\ncompositions = ['isda:lambda_0']\n", "must be option=value"),
    ],
)
def test_what_is_wrong_in_a_suites_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=told) as error:
        read_suite(path)
    assert len(str(error.value).splitlines()) == 1


def test_methods_with_commas_between_are_refused_with_what_was_meant() -> None:
    with pytest.raises(
        UsageError, match=r"join them with \+ \(isda\+agmax\), or compare each alone with --with-each isda,agmax"
    ):
        parse_compositions(["isda,agmax"])


def test_a_suites_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="suite .*none.toml: no such file"):
        read_suite(tmp_path / "none.toml")
