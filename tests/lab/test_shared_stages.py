"""The runs of a comparison make a pre-train stage once where it is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open
from tests.train.small_runs import rows_of, small
from tests.train.test_stages import STAGE_STEPS, Steps

from augury_lab.experiment.runner import run_suite
from augury_lab.experiment.suite import Composition, make_suite
from augury_train.training.result import read_result
from augury_train.training.trainer import train


@pytest.mark.slow
def test_runs_of_a_comparison_share_their_stages(tmp_path: Path) -> None:
    config, steps = small(train={"trackers": []}), Steps()
    suite = {
        "gentle": [("resmooth", {"smooth_aug": 0.2})],
        "strong": [("resmooth", {"smooth_aug": 0.9}), ("dcutmix", {})],
    }
    compositions = {name: Composition(methods) for name, methods in suite.items()}
    run_suite(make_suite(config, compositions, seeds=1), tmp_path / "suite", reporter=steps)
    stages = {what: n for what, n in steps.by_what.items() if "pre-train stage" in what}
    # Once, in the run that comes first.
    assert list(stages.values()) == [STAGE_STEPS]
    assert all("gentle" in what for what in stages)
    for name, methods in suite.items():
        train(small(*methods), tmp_path / name)
        shared = tmp_path / "suite" / name / f"seed-{config.seed}"
        assert rows_of(tmp_path / name) == rows_of(shared)
        # Whoever made the stage, each run's costs hold it.
        alone_costs, costs = read_result(tmp_path / name).costs, read_result(shared).costs
        assert (costs.forward_passes, costs.stage_passes) == (alone_costs.forward_passes, alone_costs.stage_passes)
        (stage,) = (shared / "stages" / "resmooth").glob("network-*.safetensors")
        with safe_open(stage, "pt") as file:
            took = float(file.metadata()["seconds"])
        assert costs.stage_seconds >= took > 0, "what was found carries what it took"
