"""When a training stops early, and how an interrupted one goes on: as if nothing had happened."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests.train.small_runs import DROPOUT, assert_same_run, interrupted, resumed, rows_of, small

import augury
from augury.errors import UsageError
from augury_train.config import RunConfig
from augury_train.training.loop import Loop
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, resume, train

# Early stopping.


def with_accuracies(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let the n-th epoch of any trainer be as accurate as the n-th number."""
    monkeypatch.setattr(
        Trainer,
        "_evaluate",
        lambda self, split, network: {"top1": accuracies[self.loop.position.epoch - 1], "loss": 1.0},
    )


def test_patience_stops_after_that_many_epochs_without_a_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    #                                 best at 3; 4 is equal, which is not better
    with_accuracies(monkeypatch, [10, 30, 40, 40, 20, 90, 90, 90])
    config = small(optim={"epochs": 8}, train={"patience": 2})
    result = train(config, tmp_path / "run")
    assert (result.epochs, result.best_epoch) == (5, 3)
    assert len(rows_of(tmp_path / "run")) == 5
    # Interrupted in epoch 4, it has one epoch of patience left, not two.
    assert resumed(config, tmp_path / "resumed", 14).epochs == 5
    assert_same_run(tmp_path / "run", tmp_path / "resumed")


def test_a_better_epoch_gives_new_patience(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_accuracies(monkeypatch, [10, 5, 20, 15, 30])
    assert train(small(optim={"epochs": 5}, train={"patience": 2}), tmp_path / "run").epochs == 5


# Going on.

KEPT: dict[str, dict[str, Any]] = {
    "average": {"train": {"ema": 0.9}},
    "accumulation and clipping": {"optim": {"accumulation": 5, "clip": 0.5}},
    "adamw, by epoch": {"optim": {"name": "adamw", "lr": 1e-3}, "schedule": {"every": "epoch", "warmup_epochs": 1}},
    "stream": {"data": {"loader": "stream", "workers": 0}},
    "papers": {"data": {"protocol": "paper"}},
}


RARE = ("adamw, by epoch", "papers")


@pytest.mark.parametrize(
    "sections",
    [pytest.param(s, id=name, marks=[pytest.mark.slow] if name in RARE else []) for name, s in KEPT.items()],
)
def test_interrupted_and_resumed_is_bit_for_bit_the_same(sections: dict[str, Any], tmp_path: Path) -> None:
    optim = {"epochs": 3, **sections.get("optim", {})}
    config = small("isda", **{"model": DROPOUT, **sections, "optim": optim})
    whole = train(config, tmp_path / "whole")
    again = resumed(config, tmp_path / "resumed", 6)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    assert again.best_epoch == whole.best_epoch
    assert resume(tmp_path / "resumed") == again, "a finished run is not trained again"


def test_plateau_decays_at_the_same_epoch_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accuracies(monkeypatch, [50, 40, 40, 60])
    config = small(optim={"epochs": 4}, schedule={"name": "plateau", "patience": 1, "decay_rate": 0.1})
    train(config, tmp_path / "whole")
    # The row of an epoch has the rate it was trained at; the third is the second one without a better accuracy.
    assert [row["lr"] for row in rows_of(tmp_path / "whole")] == pytest.approx([0.05] * 3 + [0.005])
    resumed(config, tmp_path / "resumed", 9)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_resuming_with_other_images_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(augury.AuguryError, match="augury resume"):
        _stop_at_once(small(), folder)
    facts = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(facts | {"images": {**facts["images"], "train": 99}}))
    with pytest.raises(UsageError, match=r"the images are not those that the run began with: .*99.*, now .*100"):
        resume(folder)
    (folder / "data.json").write_text("{")
    with pytest.raises(UsageError, match=r"data\.json: cannot be read"):
        resume(folder)


def _stop_at_once(config: RunConfig, folder: Path) -> None:
    trainer = Trainer(make_plan(config))
    trainer.stop.asked = True
    trainer.run(folder)


def test_a_resumed_run_keeps_the_loader_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(augury.AuguryError):
        _stop_at_once(small(data={"loader": "auto"}), tmp_path / "run")
    monkeypatch.setattr(
        "augury_train.training.plan.psutil.virtual_memory", lambda: type("Free", (), {"available": 0, "total": 2**30})
    )
    used: list[str] = []
    run = Loop.run

    def spying(self: Loop, *args: Any, **kwargs: Any) -> None:
        used.append(type(self.loader).__name__)
        run(self, *args, **kwargs)

    monkeypatch.setattr(Loop, "run", spying)
    resume(tmp_path / "run")
    assert used == ["MemoryLoader"]


@pytest.mark.slow
def test_what_a_run_began_with_may_be_gone_when_it_goes_on(tmp_path: Path) -> None:
    train(small(data={"mean": [0.4], "std": [0.2]}), tmp_path / "first")
    weights = tmp_path / "weights.safetensors"
    (tmp_path / "first" / "best.safetensors").rename(weights)
    config = small("resmooth", model={"init_from": str(weights)})
    train(config, tmp_path / "whole")
    interrupted(config, tmp_path / "resumed", 10)
    weights.unlink()
    resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
    facts = [json.loads((tmp_path / name / "data.json").read_text()) for name in ("whole", "resumed")]
    assert facts[0]["mean"] == facts[1]["mean"] == [0.4], "the weights' own input"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_shards_of_a_web_dataset_go_on_in_the_middle_of_an_epoch(workers: int, tmp_path: Path) -> None:
    # augury indexes shards when it opens them, so that they too are read in any order from any step on.
    images, labels = load_digits(return_X_y=True)
    for shard, rows in enumerate(np.arange(240).reshape(3, 80)):
        with tarfile.open(tmp_path / f"digits-{shard:03d}.tar", "w") as tar:
            for row in rows:
                picture = io.BytesIO()
                Image.fromarray((images[row].reshape(8, 8) * 15).astype(np.uint8)).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("cls", str(labels[row]).encode())):
                    member = tarfile.TarInfo(f"{row}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    data = {"dataset": f"wds/{tmp_path}/digits-{{000..002}}.tar", "loader": "stream", "workers": workers}
    sizes = {"image_size": 8, "images_per_class": None, "crop_pct": 1.0}
    config = small("dcutmix", data=data | sizes, optim={"epochs": 2})
    train(config, tmp_path / "whole")
    resumed(config, tmp_path / "resumed", 3)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.slow
def test_the_number_of_workers_may_change_where_a_run_goes_on(tmp_path: Path) -> None:
    config = small("isda", data={"loader": "stream", "workers": 2})
    train(config, tmp_path / "whole")
    interrupted(config, tmp_path / "resumed", 6)
    settings = json.loads((tmp_path / "resumed" / "config.json").read_text())
    settings["data"]["workers"] = 0
    (tmp_path / "resumed" / "config.json").write_text(json.dumps(settings))
    resume(tmp_path / "resumed")
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_a_gradient_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    def scaled() -> Trainer:
        trainer = Trainer(make_plan(small()))
        trainer.loop.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=7)
        return trainer

    one, other = scaled(), scaled()
    scaler = one.loop.accelerator.scaler
    assert scaler is not None
    scaler.scale(torch.ones(()))  # which makes its numbers
    scaler.update(8.0)
    other.loop.restore(one.loop.state())
    assert other.loop.accelerator.scaler is not None
    assert other.loop.accelerator.scaler.state_dict() == scaler.state_dict()
    assert scaler.state_dict()["scale"] == 8.0
