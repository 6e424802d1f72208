"""Every pair of the listed methods trains, or is refused for a reason that docs/composition.md gives; and each package,
alone and with dcutmix+isda, goes on exactly after a kill, on two processes."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tests.system.test_many_processes import AUGURY, begun, call, ended, same, words
from tests.train.small_runs import rows_of, small

import augury
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer

PAGE = Path(__file__).parents[2] / "docs" / "composition.md"
METHODS = sorted(
    found.name for found in augury.Register.load().methods() if found.entry and found.entry.layer == "built-in"
)
NEW = ("mixup", "cutmix", "augmix", "distill", "supcon", "swa", "focal")
BESIDE = ("dcutmix", "isda")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that others learn from."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    Trainer(make_plan(small(optim={"epochs": 1}))).run(folder)
    return folder


def named(names: tuple[str, ...], teacher: Path) -> list[tuple[str, dict[str, Any]]]:
    given = {"distill": {"teacher": str(teacher)}, "swa": {"start": 0.5}, "supcon": {"queue": 64}}
    return [(name, given.get(name, {})) for name in names]


def reasons() -> list[str]:
    """What the page says that the lines of refusals say."""
    section = PAGE.read_text(encoding="utf-8").partition("## What is refused")[2].partition("\n## ")[0]
    return re.findall(r"\| `([^`|]+)` \|$", section, re.MULTILINE)


def refusal(names: tuple[str, ...], teacher: Path) -> list[str]:
    try:
        make_plan(small(*named(names, teacher), optim={"epochs": 1}))
    except augury.UsageError as error:
        return str(error).splitlines()
    return []


def test_the_new_packages_are_listed_and_the_page_gives_reasons() -> None:
    assert set(NEW) < set(METHODS)
    assert len(METHODS) == 11
    assert len(reasons()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("pair", [*itertools.combinations(METHODS, 2)], ids="+".join)
def test_a_pair_trains_or_is_refused_for_a_reason_that_the_page_gives(
    pair: tuple[str, str], teacher: Path, tmp_path: Path
) -> None:
    orders = {names: refusal(names, teacher) for names in (pair, pair[::-1])}
    for lines in orders.values():
        for line in lines:
            assert any(reason in line for reason in reasons()), line
    fitting = [names for names, lines in orders.items() if not lines]
    if fitting:
        Trainer(make_plan(small(*named(fitting[0], teacher), optim={"epochs": 1}))).run(tmp_path / "run")
        (row,) = rows_of(tmp_path / "run")
        assert math.isfinite(row["train_loss"])


@pytest.mark.slow
def test_most_pairs_train(teacher: Path) -> None:
    """What is refused is listed here, so that a rule that refuses too much is seen."""
    refused = {
        "+".join(pair)
        for pair in itertools.combinations(METHODS, 2)
        if refusal(pair, teacher) and refusal(pair[::-1], teacher)
    }
    assert refused == {
        # The views of an image would be mixed with other images.
        "augmix+cutmix",
        "augmix+dcutmix",
        "augmix+mixup",
        # A row is made by one pipeline.
        "augmix+resmooth",
    }


@pytest.mark.slow
@pytest.mark.parametrize("beside", [(), BESIDE], ids=["alone", "with dcutmix and isda"])
@pytest.mark.parametrize("name", NEW)
def test_two_processes_that_are_killed_go_on_exactly(
    name: str, beside: tuple[str, ...], teacher: Path, tmp_path: Path
) -> None:
    if name == "augmix" and beside:
        (line,) = refusal(("augmix", *beside), teacher)
        assert line.startswith("augmix compares the views of an image, and dcutmix mixes each view with other images")
        return
    given = {"distill": f"distill:teacher={teacher}", "swa": "swa:start=0.5", "supcon": "supcon:queue=64"}
    methods = given.get(name, name), *beside
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    epochs = 4
    done = call(AUGURY, *words(whole, epochs, methods), "--processes", "2")
    assert done.returncode == 0, done.stderr
    process, members = begun(killed, AUGURY, *words(killed, epochs, methods), "--processes", "2")
    for member in members.values():
        member.kill()
    ended(process, members)
    done = call(AUGURY, "resume", str(killed), "--processes", "2")
    assert done.returncode == 0, done.stderr
    same(whole, killed)


@pytest.mark.slow
def test_with_each_all_compares_every_method(tmp_path: Path) -> None:
    sets = "data.images_per_class=5", "optim.batch_size=25", "optim.epochs=1", "train.trackers=[]"
    settings = [part for setting in sets for part in ("--set", setting)]
    where = "--output", str(tmp_path / "compared")
    done = call(AUGURY, "compare", "--dataset", "digits", "--with-each", "all", "--seeds", "1", *settings, *where)
    assert done.returncode == 0, done.stderr
    assert "distill is left out: its option `teacher` must be given. Name it: --with distill:teacher=..." in done.stderr
    compared = {row.split()[0] for row in done.stdout.splitlines() if row.split()[:1] and row.split()[0] in METHODS}
    assert compared == set(METHODS) - {"distill"}
