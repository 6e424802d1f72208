"""Runs of supcon and swa by the installed command, alone and with dcutmix+isda: killed, resumed, on two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.system.test_many_processes import AUGURY, begun, call, ended, rows, same, words

EPOCHS = 8
# From the second epoch on, so that every interruption is in the averaging phase.
ALONE = {"supcon": "supcon:dim=8,queue=120", "swa": "swa:start=0.25"}
SETTING = "schedule.name=constant"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("others", "processes"),
    [((), "1"), (("dcutmix:prob=0.5", "isda"), "2")],
    ids=["alone", "dcutmix+isda on two processes"],
)
@pytest.mark.parametrize("name", list(ALONE))
def test_killed_and_resumed_is_bit_for_bit_the_same(
    name: str, others: tuple[str, ...], processes: str, tmp_path: Path
) -> None:
    methods, more = (*others, ALONE[name]), ("--processes", processes)
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    done = call(AUGURY, *words(whole, EPOCHS, methods, SETTING), *more)
    assert done.returncode == 0, done.stderr
    process, members = begun(folder, AUGURY, *words(folder, EPOCHS, methods, SETTING), *more, epochs=3)
    process.kill()
    ended(process, members)
    assert 3 <= len(rows(folder)) < EPOCHS
    done = call(AUGURY, "resume", str(folder), *more)
    assert done.returncode == 0, done.stderr
    same(whole, folder)
    if name == "swa":
        assert rows(whole)[-1]["swa/models"] == EPOCHS - 1
        best, last = (load_file(whole / f"{which}.safetensors") for which in ("best", "last"))
        assert all((best[key] == last[key]).all() for key in last)
    else:
        assert all(0 < row["supcon/supcon"] < 10 for row in rows(whole))
