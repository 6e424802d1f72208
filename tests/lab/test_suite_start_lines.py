"""What a comparison says it runs on."""

from __future__ import annotations

from pathlib import Path

from tests.train.small_runs import small
from tests.train.test_start_lines import DIGITS, Heard

from augury_lab.experiment.runner import run_suite
from augury_lab.experiment.suite import make_suite, parse_compositions


def test_a_suite_tells_them_once(tmp_path: Path) -> None:
    heard = Heard()
    config = small(optim={"epochs": 1}, data={"images_per_class": 5})
    run_suite(make_suite(config, parse_compositions(["isda"]), seeds=1), tmp_path / "suite", reporter=heard)
    told = [line for line in heard.lines if line.split(" ")[0] in ("data", "classes", "model", "methods")]
    assert told == [
        DIGITS[0].replace("100 training", "50 training"),
        DIGITS[1].replace("10 training", "5 training"),
        DIGITS[2],
        "methods    baseline, isda; 1 seed each",
    ]
    assert heard.lines[:4] == told
