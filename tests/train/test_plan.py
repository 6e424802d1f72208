"""A plan tells all that is wrong at once, and chooses what the settings leave open."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import small

import augury
from augury.choice import check, choose
from augury.errors import UsageError
from augury_train.config import read_config
from augury_train.training import plan as planning
from augury_train.training.plan import make_plan


def problems(*methods: Any, **sections: Any) -> list[str]:
    """The lines that a plan refuses with."""
    with pytest.raises(UsageError) as found:
        make_plan(small(*methods, **sections))
    return str(found.value).splitlines()


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in packages else find(name, *more)
    )


def free_memory(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(planning.psutil, "virtual_memory", lambda: type("Free", (), {"available": count}))


SINGLE: list[tuple[dict[str, Any], str]] = [
    (
        {"optim": {"accumulation": 3}},
        "optim.accumulation=3 must divide optim.batch_size=25. Set it with --set optim.accumulation=1.",
    ),
    (
        {"optim": {"epochs": 8}, "schedule": {"name": "multistep"}},
        "schedule.name=multistep needs its epochs. Set them with --set schedule.milestones=[4,6].",
    ),
    (
        {"schedule": {"warmup_epochs": 2}},
        "schedule.warmup_epochs=2 must be less than optim.epochs=2. Set it with --set schedule.warmup_epochs=0.",
    ),
    (
        {"schedule": {"name": "step", "length": 9}},
        "schedule.length=9: schedule.name=step has no end that it could move; cosine, tanh, poly, wsd, rsqrt have one. "
        "Leave schedule.length out.",
    ),
    (
        {"schedule": {"length": 1}},
        "schedule.length=1 must be at least optim.epochs=2. Leave schedule.length out for a curve that ends with the "
        "training.",
    ),
    (
        {"train": {"class_weights": [1.0, 2.0]}},
        "train.class_weights must be 10 numbers, one for each class, got 2. "
        "Set it with --set train.class_weights=balanced.",
    ),
    (
        {"data": {"mean": [0.5, 0.5, 0.5]}},
        "config: key `data.mean` must have 1 number(s), one for each channel, got [0.5, 0.5, 0.5].",
    ),
    (
        {"data": {"std": [0.5, 0.5]}},
        "config: key `data.std` must have 1 number(s), one for each channel, got [0.5, 0.5].",
    ),
    (
        {"train": {"precision": "fp16"}},
        "train.precision=fp16 needs a GPU. Set it with --set train.precision=bf16, or fp32.",
    ),
    (
        {"model": {"frozen_stages": 5}},
        "model.frozen_stages=5: `resnet20_cifar` has 4 stages with the stem. "
        "Set it with --set model.frozen_stages=4 or less.",
    ),
    (
        {"schedule": {"name": "rsqrt"}, "optim": {"epochs": 20}},
        "schedule.name=rsqrt falls in units of its warm-up, and there is none. Set one with "
        "--set schedule.warmup_epochs=1.",
    ),
    (
        {"optim": {"batch_size": 101}},
        "optim.batch_size=101 is more than the 100 training images. Set it with --set optim.batch_size=100 or less.",
    ),
]


@pytest.mark.parametrize(("sections", "line"), SINGLE, ids=[line.split()[0] for _, line in SINGLE])
def test_a_problem_is_told_in_a_line_that_says_what_to_do(sections: dict[str, Any], line: str) -> None:
    assert problems(**sections) == [line]


def test_all_problems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "wandb")
    found = problems(
        "isdaa",
        ("dcutmix", {"probb": 1}),
        optim={"accumulation": 3, "name": "sdg"},
        schedule={"name": "multistep", "warmup_epochs": 9},
        train={"precision": "fp16", "class_weights": [1.0], "trackers": ["wandb"]},
        model={"frozen_stages": 9},
        data={"base": "crip:4"},
    )
    for part in (
        "isdaa",
        "dcutmix: unknown option `probb`",
        "optim.accumulation",
        "unknown optimiser `sdg`",
        "schedule.name=multistep",
        "schedule.warmup_epochs",
        "train.precision=fp16",
        "train.trackers: `wandb` is not installed. Install it (pip install wandb), or leave it out.",
    ):
        assert sum(part in line for line in found) == 1, part


def test_what_only_the_images_show_is_told_together() -> None:
    found = problems(
        optim={"batch_size": 120},
        train={"class_weights": [1.0]},
        model={"frozen_stages": 9},
        data={"base": "crip:4", "augmented": "cutout"},
    )
    for start in ("optim.batch_size", "train.class_weights", "model.frozen_stages", "data.base", "data.augmented"):
        assert sum(line.startswith(start) for line in found) == 1, (start, found)


def test_an_unknown_device_is_told() -> None:
    with pytest.raises(UsageError, match=r"key `device` must be one of auto, cpu, cuda, got 'gpu'"):
        make_plan(read_config({"device": "gpu"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match=r"device` is cuda, but torch sees no GPU here"):
        make_plan(read_config({"device": "cuda"}))


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_weights_that_are_missing_or_damaged_is_told_before_training(
    content: bytes | None, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    (line,) = problems(model={"init_from": str(path)})
    assert line.startswith(f"model.init_from={path}: {'no such file' if content is None else 'cannot be read'}")


def test_images_go_to_memory_where_they_take_less_than_a_quarter_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(data={"loader": "auto"})
    taken = make_plan(config).data.bytes
    assert taken == make_plan(config).data.images * 8 * 8
    free_memory(monkeypatch, 4 * taken + 4)
    assert make_plan(config).loader == "memory"
    free_memory(monkeypatch, 4 * taken)
    assert make_plan(config).loader == "stream"
    assert make_plan(small(data={"loader": "memory"})).loader == "memory", "what is set is not overruled"


def test_the_facts_that_methods_are_told_are_those_of_the_run() -> None:
    plan = make_plan(small(optim={"epochs": 3, "batch_size": 30, "accumulation": 2}))
    assert (plan.spec.steps_per_epoch, plan.spec.total_steps) == (3, 9)
    assert (plan.spec.num_classes, plan.spec.num_features, plan.spec.image_size) == (10, 64, (1, 8, 8))


def test_a_method_is_asked_whether_an_accumulated_part_is_enough() -> None:
    # AgMax needs two rows and makes two views of each image; a method of one view gets the part alone.
    make_plan(small("agmax", optim={"batch_size": 5, "accumulation": 5}))

    class Needy(augury.Method):
        """Needs three rows."""

        min_rows = 3

        @augury.hookimpl
        def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
            """Does nothing."""

    plan = make_plan(small(optim={"batch_size": 6, "accumulation": 3}))
    chosen, _ = choose([Needy])
    network = plan.build_network()
    assert check(chosen, plan.spec, network.fc, rows=2) == [
        "needy: needs at least 3 rows in a batch, got 2. Raise the batch size."
    ]


def test_notes_tell_what_may_not_be_expected() -> None:
    same = small("resmooth", data={"base": "crop:1", "augmented": "crop:1"})
    (note,) = [n for n in make_plan(same).notes if "pipelines" in n]
    assert note.startswith("both pipelines are the same")
    assert not make_plan(small("resmooth")).notes
    assert not make_plan(small(data={"augmented": None})).notes, "one pipeline alone cannot be mistaken"


EMA = "train.ema="


@pytest.mark.parametrize(
    ("train", "told"),
    [
        # 8 steps: 0.5^7 is under a hundredth, 0.52^7 is over.
        ({"ema": 0.5}, None),
        (
            {"ema": 0.6},
            "train.ema=0.6 averages over some 2 steps, and this run has 8: at its end 3 % of",
        ),
        (
            {"ema": 0.9999},
            "are the weights after the first step. Choose train.ema=0.51 or",
        ),
        # 1 - 8^(-2/3) = 0.75
        ({"ema": 0.75, "ema_warmup": True}, None),
        (
            {"ema": 0.9, "ema_warmup": True},
            "and reaches 0.75 in the 8 steps of this run. Any decay above",
        ),
    ],
)
def test_a_decay_that_cannot_act_within_the_run_is_told(train: dict[str, Any], told: str | None) -> None:
    found = [note for note in make_plan(small(train=train)).notes if note.startswith(EMA)]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        ({}, None),
        ({"warmup_epochs": 1}, None),
        (
            {"warmup_epochs": 1, "warmup_prefix": False},
            "schedule.warmup_prefix=false: the learning rate after",
        ),
        (
            {"name": "multistep", "milestones": [1], "warmup_epochs": 1},
            "schedule.milestones=[1] lie in the warm-up",
        ),
        ({"name": "multistep", "milestones": [1]}, None),
        (
            {"name": "multistep", "milestones": [5]},
            "schedule.name=multistep: with these settings",
        ),
        ({"name": "multistep", "milestones": [2]}, "does not fall in the 2 epochs of this run"),
        ({"name": "step"}, "schedule.name=step: with these settings the learning rate does not fall"),
        ({"name": "step", "decay_epochs": 1, "warmup_epochs": 1}, "schedule.name=step: with these settings"),
        ({"name": "step", "decay_epochs": 1}, None),
        (
            {"name": "wsd", "every": "epoch", "decay_epochs": 1},
            "schedule.name=wsd: with these settings the learning rate does not fall",
        ),
        ({"name": "wsd"}, None),
        ({"name": "cosine", "every": "epoch"}, None),
        ({"name": "constant"}, None),
        ({"name": "plateau"}, None),
    ],
)
def test_a_schedule_that_does_what_it_may_not_be_expected_to_is_told(
    schedule: dict[str, Any], told: str | None
) -> None:
    found = [note for note in make_plan(small(schedule=schedule)).notes if note.startswith("schedule.")]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_how_a_list_of_class_weights_is_scaled_is_told() -> None:
    def notes(**train: Any) -> list[str]:
        return [note for note in make_plan(small(train=train)).notes if note.startswith("train.class_weights")]

    assert notes(class_weights=[1.0] * 10) == [], "used as given"
    assert notes(class_weights="balanced") == []
    # Ten images of each class: the mean is 5.5 / 10.
    assert notes(class_weights=[1.0] + [0.5] * 9) == [
        "train.class_weights: all are multiplied by 1.818, so that their mean over the training images is 1 and "
        "optim.lr keeps its meaning: 1.818, 0.9091, 0.9091, 0.9091, 0.9091, 0.9091, 0.9091, 0.9091, 0.9091, 0.9091."
    ]
