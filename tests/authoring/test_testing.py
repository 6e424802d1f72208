"""The contract suite: it passes sound methods, and catches each of many planted faults by the right check alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from tests.authoring import faulty_declarations as said_wrong
from tests.authoring import faulty_in_runs as later
from tests.authoring import faulty_methods as planted
from tests.authoring import faulty_with_networks as networks

import augury
from augury.method import hook_implementations
from augury_authoring.testing import MethodContract
from augury_authoring.testing.bench import Bench
from augury_authoring.testing.candidate import find
from augury_authoring.testing.workers import Workers

SKIPPED = "skipped"
STAGE, CRITERION = "test_pre_train_stage", "test_own_criterion_heeds_the_batch"
OWN = "test_class_logits_are_declared"
LOSS = {"test_images_are_declared", "test_a_loss_computed_again"}
"""Of methods with a compute_loss."""
DRAWS, SIZES = "test_other_seed_other_draws", "test_batches_of_any_size"
OTHERS = ["dcutmix"]
"""What is composed with here: a method that mixes rows asks most of another."""

EIGHT = {
    planted.SharesOff: "test_labels_stay_shares",
    planted.DrawsGlobally: "test_same_seed_same_draws",
    planted.Detaches: "test_gradients_arrive",
    planted.Forgets: "test_state_survives",
    planted.LeavesHook: "test_evaluation_is_untouched",
    planted.OwnStatistic: "test_two_processes_agree",
    planted.BoundInTheTest: "test_options",
    planted.EvenOnly: "test_batches_of_any_size",
    networks.SetsRowWeights: "test_settings_of_rows_are_kept",
    networks.TeacherInAList: "test_state_survives",
    networks.ExtraPass: "test_network_is_left_alone",
    networks.ChangesWeights: "test_network_is_left_alone",
    said_wrong.CountsTwice: "test_a_loss_computed_again",
}
MORE = {
    planted.SmoothsTwice: "test_labels_stay_shares",
    planted.DrawsGloballyInTheLoss: "test_same_seed_same_draws",
    planted.Reseeds: "test_draws_of_others_are_left_alone",
    planted.OwnGenerator: "test_other_seed_other_draws",
    planted.UnusedParameter: "test_gradients_arrive",
    planted.ForgetsItsStage: "test_state_survives",
    planted.StageOfChance: "test_pre_train_stage",
    planted.LeavesEvalMode: "test_evaluation_is_untouched",
    planted.OwnEntropy: "test_two_processes_agree",
    planted.OwnCoin: "test_two_processes_agree",
    planted.BoundInWords: "test_options",
    planted.TakesAnything: "test_options",
    planted.Undescribed: "test_options",
    planted.NotAlone: "test_batches_of_any_size",
    planted.ColourOnly: "test_channels",
    planted.ManyDigits: "test_bfloat16",
    planted.DoubleLoss: "test_loss_is_one_number",
    planted.DropsRows: "test_batch_keeps_its_form",
    planted.MixesUndeclared: "test_batch_keeps_its_form",
    planted.LongRunsOnly: "test_trains",
    planted.OneLabelOnly: "test_composes",
    planted.OverwritesShares: "test_composes",
    planted.UnknownParameter: "test_hooks_and_declarations",
    planted.Raises: "test_a_step_works",
    later.LeavesGradients: "test_gradients_arrive",
    later.DetachedTerm: "test_gradients_arrive",
    later.ForgetsItsEpoch: "test_state_survives",
    later.FreezesLate: "test_evaluation_is_untouched",
    later.FirstLabelOnly: "test_own_criterion_heeds_the_batch",
    later.RowsAlike: "test_own_criterion_heeds_the_batch",
    later.MixesOthersInside: "test_batch_keeps_its_form",
    later.MixesInsideUndeclared: "test_batch_keeps_its_form",
    later.SwapsUndeclared: "test_batch_keeps_its_form",
    later.OwnCollective: "test_two_processes_agree",
    networks.SetsRowWeightsInTheLoss: "test_settings_of_rows_are_kept",
    networks.SetsSmoothing: "test_settings_of_rows_are_kept",
    networks.TeacherOfTheStage: "test_state_survives",
    networks.ExtraPassInTheLoss: "test_network_is_left_alone",
    networks.ResetsTheClassifier: "test_network_is_left_alone",
    said_wrong.LooksAtImages: "test_images_are_declared",
    said_wrong.SaysNothingOfViews: "test_declarations",
    said_wrong.DeclaresTheUnknown: "test_declarations",
    said_wrong.ReadsUndeclared: "test_class_logits_are_declared",
    said_wrong.ClaimsToRead: "test_class_logits_are_declared",
    said_wrong.TwoViewsExactly: "test_more_views_than_asked_for",
    said_wrong.SetsUndeclared: "test_a_step_works",
    said_wrong.RetellsARow: "test_a_step_works",
    networks.StepsApart: "test_two_processes_agree",
}
CAUGHT_BY = EIGHT | MORE


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planted is not made for one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def cases(test: str) -> list[dict[str, Any]]:
    """The arguments that a test of the suite is called with, beside the fixtures."""
    if test == "test_composes":
        return [{"other": name, "first": first} for name in OTHERS for first in (True, False)]
    found: list[dict[str, Any]] = []
    for mark in getattr(getattr(MethodContract, test), "pytestmark", []):
        names, values = mark.args
        for value in values:
            given = getattr(value, "values", (value,))
            found.append(dict(zip([names] if isinstance(names, str) else names, given, strict=True)))
    return found or [{}]


def outcomes(method: object, workers: Workers, **attributes: Any) -> dict[str, str]:
    """What each test of the suite says: "" where it passes, SKIPPED, or why it fails."""
    suite = type("Suite", (MethodContract,), {"method": method, **attributes})()
    bench = Bench(find(suite.method, suite.options))
    found: dict[str, str] = {}
    for test in [name for name in dir(MethodContract) if name.startswith("test_")]:
        given = {"augury_workers": workers} if test == "test_two_processes_agree" else {}
        for case in cases(test):
            outcome = said(partial(getattr(suite, test), bench, **given, **case))
            found[test] = max(found.get(test, ""), outcome, key=lambda text: (text not in ("", SKIPPED), text))
    return found


def said(call: Any) -> str:
    try:
        call()
    except pytest.fail.Exception as failure:
        return str(failure)
    except pytest.skip.Exception:
        return SKIPPED
    return ""


def failing(found: Mapping[str, str]) -> Sequence[str]:
    return [test for test, text in found.items() if text not in ("", SKIPPED)]


@pytest.mark.parametrize(
    "method",
    [*EIGHT, *(pytest.param(method, marks=pytest.mark.slow) for method in MORE)],
    ids=lambda method: method.__name__,
)
def test_a_fault_is_caught_by_its_check_and_by_no_other(method: type[augury.Method], augury_workers: Workers) -> None:
    rejects = [{"strength": -1}] if method is planted.BoundInTheTest else []
    found = outcomes(method, augury_workers, rejects=rejects)
    assert failing(found) == [CAUGHT_BY[method]], "\n".join(f"{test}: {text}" for test, text in found.items())
    assert method.__name__.lower() in found[CAUGHT_BY[method]]


@pytest.mark.parametrize(
    ("method", "skipped"),
    [
        pytest.param(planted.Noise, {STAGE, CRITERION}, marks=pytest.mark.slow),
        (planted.Whole, {SIZES, CRITERION}),
        pytest.param(planted.MixesInside, {STAGE, CRITERION}, marks=pytest.mark.slow),
        pytest.param(planted.HardestHalf, {STAGE, DRAWS, SIZES, CRITERION}, marks=pytest.mark.slow),
        pytest.param(later.Demanding, {STAGE, SIZES, CRITERION}, marks=pytest.mark.slow),
        pytest.param(later.Bce, {STAGE, DRAWS}, marks=pytest.mark.slow),
        (networks.GradientPenalty, {STAGE, DRAWS, CRITERION}),
        pytest.param(networks.UsesUpTheGraph, {STAGE, DRAWS, CRITERION}, marks=pytest.mark.slow),
        pytest.param(networks.MultipliesRowWeights, {STAGE, DRAWS, CRITERION}, marks=pytest.mark.slow),
        pytest.param(networks.Distils, {STAGE, CRITERION}, marks=pytest.mark.slow),
        pytest.param(networks.ExtraPasses, {STAGE, DRAWS, CRITERION}, marks=pytest.mark.slow),
        pytest.param(networks.LooksAround, {DRAWS, CRITERION}, marks=pytest.mark.slow),
        pytest.param(networks.Ends, {STAGE, DRAWS, CRITERION}, marks=pytest.mark.slow),
        pytest.param(networks.ReadsTheRow, {STAGE, DRAWS, CRITERION}, marks=pytest.mark.slow),
    ],
)
def test_a_sound_method_passes(method: type[augury.Method], skipped: set[str], augury_workers: Workers) -> None:
    found = outcomes(method, augury_workers, options={"rate": 0.1} if method is later.Demanding else {})
    assert not failing(found), found
    wanted = skipped | ({OWN} if CRITERION in skipped else set())
    wanted |= set() if "compute_loss" in hook_implementations(method) else LOSS
    # These are classes, which bring no recipes.
    assert {test for test, text in found.items() if text == SKIPPED} - {"test_gpu", "test_recipes"} == wanted


def test_every_check_catches_a_fault() -> None:
    checks = {name for name in dir(MethodContract) if name.startswith("test_")}
    # The one needs a GPU, the other a package (test_testing_parts.py has faulty recipes).
    assert checks - set(CAUGHT_BY.values()) == {"test_gpu", "test_recipes"}
