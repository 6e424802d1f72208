"""Trained networks that a run compares itself with: whose images, classes, precision they have, and the copy kept."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests.train.small_runs import small
from torch import Tensor, nn

from augury.errors import UsageError
from augury.frozen import Frozen
from augury.run import Run
from augury_train.backbones.teachers import Images, Teacher, read_teacher
from augury_train.config import ModelConfig
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, train

SIZE = (1, 8, 8)
ABC = ("a", "b", "c")
OWN = ModelConfig(name="resnet20_cifar")
"""The run's own network."""
GREY = Images(SIZE, (0.3,), (0.2,), ABC)
CFG = {"num_classes": 3, "input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
COLOUR = Images((3, 16, 16), (0.1, 0.2, 0.3), (0.9, 0.8, 0.7), ABC)
"""A run's images for timm's models."""


def network(name: str, classes: int = 3, seed: int = 1, **arguments: Any) -> nn.Module:
    """A network with statistics of its own, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = timm.create_model(name, num_classes=classes, **arguments)
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(std=0.1)
                part.running_var.uniform_(0.5, 1.5)
    return made.eval()


def saved(path: Path, made: nn.Module, **said: Any) -> str:
    """A file as augury writes it; what is text already is not JSON."""
    weights = {name: value.clone() for name, value in made.state_dict().items()}
    save_file(
        weights, path, {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    )
    return str(path)


def pixels(n: int, *size: int) -> Tensor:
    """Images on the scale of [0, 1]."""
    return torch.rand(n, *size, generator=torch.Generator().manual_seed(5))


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None, None] for numbers in (mean, std))
    return ((images.double() - mean) / std).float()


def asked(teacher: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return teacher(images)


# What it makes of a run's images.


def test_images_are_normalised_as_the_networks_own_training_did(tmp_path: Path) -> None:
    made = network("resnet32_cifar", in_chans=1)
    said = {"model": "resnet32_cifar", "classes": list(ABC), "input_size": SIZE, "mean": [0.6], "std": [0.45]}
    teacher = read_teacher(saved(tmp_path / "t.safetensors", made, **said), OWN, GREY)
    assert not teacher.training
    images = pixels(6, *SIZE)
    found = asked(teacher, normalised(images, GREY.mean, GREY.std))
    expected = asked(made, normalised(images, [0.6], [0.45]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, asked(made, normalised(images, GREY.mean, GREY.std)), rtol=1e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_change_of_normalisation_is_that_of_each_channel(channels: int) -> None:
    own, run = ([0.5, 0.4, 0.3][:channels], [0.2, 0.3, 0.4][:channels]), ([0.1, 0.2, 0.3][:channels], [0.9] * channels)
    images = pixels(4, channels, 5, 7)
    found = asked(Teacher(nn.Identity(), own, run), normalised(images, *run))
    torch.testing.assert_close(found, normalised(images, *own), rtol=1e-5, atol=1e-6)


def test_images_that_are_normalised_alike_pass_to_the_last_bit() -> None:
    alike = ([0.1307], [0.3081])
    images = normalised(pixels(4, 1, 5, 5), *alike)
    assert torch.equal(asked(Teacher(nn.Identity(), alike, alike), images), images)


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "a", "b"), ("b", "a", "c")])
def test_logits_are_in_the_order_of_the_runs_classes(tmp_path: Path, order: tuple[str, ...]) -> None:
    made = network("resnet20_cifar", in_chans=1)
    place = saved(tmp_path / "t.safetensors", made, model="resnet20_cifar", classes=list(order))
    images = pixels(5, *SIZE)
    found, logits = asked(read_teacher(place, OWN, GREY), images), asked(made, images)
    for label, name in enumerate(ABC):
        assert torch.equal(found[:, label], logits[:, order.index(name)])


def test_a_network_of_one_size_alone_sees_resized_images(tmp_path: Path) -> None:
    made = network("test_vit", in_chans=1, img_size=32)
    said = {"model": "test_vit", "classes": list(ABC), "input_size": (1, 32, 32), "mean": [0.3], "std": [0.2]}
    teacher = read_teacher(saved(tmp_path / "t.safetensors", made, **said), OWN, GREY)
    images = pixels(3, *SIZE)
    larger = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(asked(teacher, images), asked(made, larger))
    same = pixels(3, 1, 32, 32)
    assert torch.equal(asked(teacher, same), asked(made, same))


def test_a_file_that_says_nothing_is_the_runs_own_network(tmp_path: Path) -> None:
    made = network("resnet20_cifar", in_chans=1)
    own = ModelConfig(name="resnet20_cifar", frozen_stages=1, grad_checkpointing=True, kwargs={"drop_rate": 0.3})
    images = pixels(4, *SIZE)
    plain = saved(tmp_path / "t.safetensors", made)
    torch.save({"state_dict": made.state_dict()}, tmp_path / "t.pth")
    for place in (plain, str(tmp_path / "t.pth")):
        assert torch.equal(asked(read_teacher(place, own, GREY), images), asked(made, images))
    with pytest.raises(UsageError, match="its weights are not those of a `resnet32_cifar` of 3 classes"):
        read_teacher(plain, ModelConfig(name="resnet32_cifar"), GREY)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_it_computes_in_the_runs_precision_and_returns_float32(precision: str, dtype: torch.dtype) -> None:
    made = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    teacher = Teacher(made, ([0.3], [0.2]), ([0.3], [0.2]))
    images = pixels(4, *SIZE)
    full = asked(teacher, images)
    teacher.precision = precision
    with torch.autocast("cpu", enabled=False):
        found = asked(teacher, images)
    with torch.autocast("cpu", dtype):
        expected = asked(made, images)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected.float())
    assert not torch.equal(found, full)


def test_the_trainer_gives_it_the_runs_precision(tmp_path: Path) -> None:
    train(small(optim={"epochs": 1}), tmp_path / "first")
    for precision, told in (("bf16", "bf16"), ("fp32", "no")):
        trainer = Trainer(make_plan(small(train={"precision": precision})))
        assert trainer.read_network(str(tmp_path / "first")).precision == told


def test_reading_leaves_the_draws_of_torch_alone(tmp_path: Path) -> None:
    place = saved(tmp_path / "t.safetensors", network("resnet20_cifar", in_chans=1))
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    read_teacher(place, OWN, GREY, tmp_path / "kept")
    read_teacher(place, OWN, GREY, tmp_path / "kept")
    assert torch.equal(torch.rand(3), expected)


# What is refused.


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"classes": ["a", "b"]}, "was trained on other classes than this run has: 2 (a, b) and 3 (a, b, c)."),
        ({"classes": ["a", "b", "d"]}, "was trained on other classes than this run has: 3 (a, b, d) and 3 (a, b, c)."),
        ({"input_size": (3, 8, 8)}, "was trained on images of 3 channel(s), this run's have 1. Give another one."),
        ({"model": "resnet32_cifar"}, "its weights are not those of a `resnet32_cifar` of 3 classes: "),
        ({"model": "no_such_net"}, "unknown model `no_such_net`."),
    ],
)
def test_files_of_other_tasks_are_refused(tmp_path: Path, said: dict[str, Any], why: str) -> None:
    made = network("resnet20_cifar", in_chans=1)
    place = saved(tmp_path / "t.safetensors", made, **{"model": "resnet20_cifar", "classes": list(ABC), **said})
    with pytest.raises(UsageError) as refused:
        read_teacher(place, OWN, GREY, tmp_path / "kept")
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "kept").exists()


def test_places_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no best.safetensors, which a run writes at the end of an epoch"):
        read_teacher(str(tmp_path / "empty"), OWN, GREY)
    with pytest.raises(UsageError, match="^no_such_net: no such file or folder, and timm has no model of that name. "):
        read_teacher("no_such_net", OWN, GREY)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UsageError, match="cannot be read"):
        read_teacher(str(tmp_path / "text.safetensors"), OWN, GREY)


@pytest.mark.parametrize(
    ("name", "images", "why"),
    [
        ("test_resnet", COLOUR, "test_resnet: timm's pretrained weights know 1000 classes, this run has 3. Train one "),
        ("resnet20_cifar", COLOUR, "resnet20_cifar: timm has no pretrained weights of it. Train one "),
        ("test_resnet.no_such_tag", COLOUR, "model `test_resnet.no_such_tag`: "),
    ],
)
def test_names_of_timms_without_weights_for_these_classes_are_refused(name: str, images: Images, why: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_teacher(name, OWN, images)
    assert str(refused.value).startswith(why)


# Networks of timm's, whose weights are in a local file.


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a model of timm's local weights for 3 classes; returns the network with these weights."""

    def give(name: str, **arguments: Any) -> nn.Module:
        made = network(name, **arguments)
        file = tmp_path / f"{name}.safetensors"
        save_file({key: value.clone() for key, value in made.state_dict().items()}, file)
        entry = copy.deepcopy(timm.models._registry._model_pretrained_cfgs[name])
        for key, value in {**CFG, "file": str(file), "url": "", "hf_hub_id": None}.items():
            object.__setattr__(entry, key, value)
        monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, name, entry)
        return made

    return give


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_name_of_timms_is_its_pretrained_network(name: str, pretrained: Any, tmp_path: Path) -> None:
    fixed = {"img_size": 32} if name == "test_vit" else {}
    made = pretrained(name, **fixed)
    images = pixels(3, 3, 16, 16)
    own = normalised(images, CFG["mean"], CFG["std"])
    if fixed:
        own = nn.functional.interpolate(own, (32, 32), mode="bilinear", antialias=True)
    teacher = read_teacher(name, OWN, COLOUR, tmp_path / "kept")
    given = normalised(images, COLOUR.mean, COLOUR.std)
    torch.testing.assert_close(asked(teacher, given), asked(made, own), rtol=1e-3, atol=1e-4)
    (tmp_path / f"{name}.safetensors").unlink()
    again = read_teacher(name, OWN, COLOUR, tmp_path / "kept")
    assert torch.equal(asked(again, given), asked(teacher, given))
    grey = Images((1, 16, 16), (0.1,), (0.9,), ABC)
    with pytest.raises(UsageError, match=r"want images of 3 channel\(s\), this run's have 1\. Train one "):
        read_teacher(name, OWN, grey)


# The copy that a run keeps.


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("resnet32_cifar", {}, {"classes": ["c", "a", "b"], "mean": [0.1307], "std": [0.3081]}),
        ("test_vit", {"img_size": 32}, {"classes": ["b", "c", "a"], "input_size": (1, 32, 32)}),
        (
            "test_vit",
            {"img_size": 32, "dynamic_img_size": True},
            {"classes": list(ABC), "input_size": (1, 32, 32), "model_args": {"dynamic_img_size": True}},
        ),
        ("resnet20_cifar", {}, None),
    ],
)
def test_a_kept_network_is_read_back_as_it_was(
    tmp_path: Path, name: str, arguments: dict[str, Any], said: dict[str, Any] | None
) -> None:
    made = network(name, in_chans=1, **arguments)
    place = saved(tmp_path / "t.safetensors", made, **({} if said is None else {"model": name, **said}))
    images = Images((1, 48, 48), (0.3,), (0.2,), ABC)
    given = pixels(3, 1, 48, 48)
    first = read_teacher(place, OWN, images, tmp_path / "networks")
    Path(place).unlink()
    again = read_teacher(place, OWN, images, tmp_path / "networks")
    assert not again.training
    assert torch.equal(asked(again, given), asked(first, given))
    with pytest.raises(UsageError, match="no such file or folder"):
        read_teacher(place, OWN, images, tmp_path / "elsewhere")


def test_a_damaged_copy_is_refused(tmp_path: Path) -> None:
    place = saved(tmp_path / "t.safetensors", network("resnet20_cifar", in_chans=1))
    read_teacher(place, OWN, GREY, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(bytes(content))
    with pytest.raises(UsageError, match="damaged"):
        read_teacher(place, OWN, GREY, tmp_path / "kept")


class FakeRanks:
    """Two processes one after the other: what the first one answered is what the second one hears."""

    def __init__(self, rank: int, said: list[list[Any]]) -> None:
        self.rank, self.size, self.said, self.calls = rank, 2, said, 0

    def gather_objects(self, value: Any) -> list[Any]:
        if self.rank == 0:
            self.said.append([value, value])
        self.calls += 1
        return self.said[self.calls - 1]


def test_of_two_processes_the_first_one_writes_and_both_read_alike(tmp_path: Path) -> None:
    place = saved(tmp_path / "t.safetensors", network("resnet20_cifar", in_chans=1))
    said: list[list[Any]] = []
    first, second = FakeRanks(0, said), FakeRanks(1, said)
    one = read_teacher(place, OWN, GREY, tmp_path / "kept", first)  # type: ignore[arg-type]
    (kept,) = (tmp_path / "kept").iterdir()
    before = kept.stat().st_mtime_ns
    # The file is there by now; the second process goes by what was so when both looked.
    other = read_teacher(place, OWN, GREY, tmp_path / "kept", second)  # type: ignore[arg-type]
    assert first.calls == second.calls == 2, "they meet before and behind the writing"
    assert kept.stat().st_mtime_ns == before
    images = pixels(3, *SIZE)
    assert torch.equal(asked(one, images), asked(other, images))
    said.clear()
    Path(place).unlink()
    again = [read_teacher(place, OWN, GREY, tmp_path / "kept", FakeRanks(rank, said)) for rank in (0, 1)]  # type: ignore[arg-type]
    assert all(torch.equal(asked(found, images), asked(one, images)) for found in again)


# In a run.


def test_the_run_lends_it_frozen_and_once(tmp_path: Path) -> None:
    train(small(optim={"epochs": 1}), tmp_path / "first")
    place = str(tmp_path / "first")
    trainer = Trainer(make_plan(small("isda", model={"name": "resnet32_cifar"})))
    lent = Run(trainer.methods.run, "isda")
    found = lent.read_network(place)
    assert isinstance(found, Frozen)
    assert lent.read_network(place) is found
    assert list(found.parameters()) == []
    assert not [key for key in trainer.methods.state_dict() if "conv" in key]
    own = timm.create_model("resnet20_cifar", num_classes=10, in_chans=1).eval()
    own.load_state_dict(load_file(tmp_path / "first" / "best.safetensors"))
    images = torch.randn(5, *SIZE)
    assert torch.equal(asked(found, images), asked(own, images))
    shutil.rmtree(place)
    assert lent.read_network(place) is found
    assert trainer.methods.frozen_passes == 5


def test_what_a_plan_reads_is_what_a_run_reads(tmp_path: Path) -> None:
    train(small(optim={"epochs": 1}), tmp_path / "first")
    plan = make_plan(small())
    assert plan.spec.read_network is not None
    one, other = plan.spec.read_network(str(tmp_path / "first")), Trainer(plan).read_network(str(tmp_path / "first"))
    images = torch.randn(5, *SIZE)
    assert torch.equal(asked(one, images), asked(other, images))
    assert isinstance(one, Teacher)
