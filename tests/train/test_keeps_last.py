"""Methods whose network is there after the last step alone: no earlier epoch is the best one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.small_runs import StopsAfter, small

import augury
from augury.errors import UsageError
from augury.registry import Register
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer
from augury_train.training.watch import Interrupted


class Spoiling(augury.Method):
    """Spoils the network after the first epoch, so that the first is the best."""

    @augury.hookimpl
    def post_step(self, run: augury.Run) -> None:
        if run.epoch > 0:
            for parameter in run.network.parameters():
                parameter.zero_()


class Lasting(Spoiling):
    """The same, and says that the last step's network is the one that counts."""

    keeps_last = True


class ByOption(Spoiling):
    class Options(augury.Options):
        last: bool = False

    @classmethod
    def declares(cls, options: Any) -> tuple[str, ...]:
        return ("keeps_last",) if options.last else ()


REGISTER = {"spoiling": Spoiling, "lasting": Lasting, "byoption": ByOption}


def register() -> Register:
    found = Register.load()
    for name, method in REGISTER.items():
        found = found.offering(name, method)
    return found


def config_of(*methods: Any, **train: Any) -> Any:
    return small(*methods, optim={"epochs": 3, "lr": 0.1}, train={"trackers": [], **train})


@pytest.mark.parametrize(
    ("method", "best"), [("spoiling", 1), ("lasting", 3), ("byoption", 1), (("byoption", {"last": True}), 3)]
)
def test_the_best_epoch_is_the_last(tmp_path: Path, method: Any, best: int) -> None:
    trainer = Trainer(make_plan(config_of(method), register()))
    trainer.loop.on_augmented = None
    result = trainer.run(tmp_path / "run")
    assert result.best_epoch == best
    kept, last = (load_file(tmp_path / "run" / f"{which}.safetensors") for which in ("best", "last"))
    same = all(torch.equal(value, last[name]) for name, value in kept.items())
    assert same == (best == 3)
    if best == 3:
        assert result.best == result.last


@pytest.mark.slow
def test_a_run_that_was_interrupted_has_no_earlier_best(tmp_path: Path) -> None:
    reporter = StopsAfter(6)
    reporter.trainer = Trainer(make_plan(config_of("lasting"), register()), reporter=reporter)
    with pytest.raises(Interrupted):
        reporter.trainer.run(tmp_path / "run")
    result = Trainer(make_plan(config_of("lasting"), register())).run(tmp_path / "run", resume=True)
    assert result.best_epoch == 3


def test_settings_that_would_keep_another_network_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(config_of("lasting", patience=2, ema=0.9), register())
    assert str(caught.value).splitlines() == [
        "lasting leaves its network after the last step, and train.patience=2 would end the training before that. "
        "Leave train.patience out, or lasting.",
        "lasting leaves its network after the last step, and train.ema=0.9 is another average, which would be kept "
        "instead. Leave train.ema out, or lasting.",
    ]
    with pytest.raises(UsageError, match=r"^byoption leaves its network after the last step, and train\.patience=2"):
        make_plan(config_of(("byoption", {"last": True}), patience=2), register())
    for method in ("spoiling", "byoption"):
        make_plan(config_of(method, patience=2, ema=0.9), register())
