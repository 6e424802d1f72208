"""Networks as a training starts with them: fresh, from a file, partly frozen."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests.train.small_runs import losses_of, small
from torch import nn

from augury import passes
from augury.errors import UsageError
from augury_train import backbones
from augury_train.backbones.stages import freeze_stages, keep_statistics
from augury_train.config import ModelConfig
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, train

SIZE = (3, 32, 32)


def built(classes: int = 10, size: tuple[int, int, int] = SIZE, **model: Any) -> nn.Module:
    return backbones.build(ModelConfig(**model), classes, size)


def differing(network: nn.Module, weights: dict[str, torch.Tensor]) -> set[str]:
    """Names of a network's weights that are not those given."""
    return {
        name
        for name, value in network.state_dict().items()
        if name not in weights or value.shape != weights[name].shape or not torch.equal(value, weights[name])
    }


# Trained weights from a file.


@pytest.mark.parametrize("model", ["resnet20_cifar", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("form", ["safetensors", "weights", "timm checkpoint", "with an average"])
def test_weights_come_from_a_file(model: str, form: str, tmp_path: Path) -> None:
    weights = timm.create_model(model, num_classes=7).state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(weights, path)
    elif form == "weights":
        torch.save(weights, path)
    else:
        # timm's own checkpoints hold the average beside the weights, and it is what timm loads.
        other = {name: torch.zeros_like(value) for name, value in weights.items()}
        parts = (
            {"state_dict": weights} if form == "timm checkpoint" else {"state_dict": other, "state_dict_ema": weights}
        )
        torch.save({"epoch": 3, "arch": model, **parts}, path)
    size = backbones.data_config(model)["input_size"]
    assert not differing(built(7, size, name=model, init_from=str(path)), weights)
    changed = differing(built(5, size, name=model, init_from=str(path)), weights)
    name = timm.get_pretrained_cfg(model).classifier
    assert changed == {f"{name}.weight", f"{name}.bias"}, "another number of classes gets a fresh classifier"


def test_a_run_starts_from_what_another_run_has_made(tmp_path: Path) -> None:
    first = train(small(optim={"epochs": 1}), tmp_path / "first")
    path = Path(first.folder) / "last.safetensors"
    weights = load_file(path)
    again = Trainer(make_plan(small(model={"init_from": str(path)})))
    assert not differing(again.network, weights)
    slow = {"epochs": 1, "lr": 1e-6}
    fresh = losses_of(Trainer(make_plan(small(optim=slow))))
    started = losses_of(Trainer(make_plan(small(optim=slow, model={"init_from": str(path)}))))
    assert all(one < other for one, other in zip(started, fresh, strict=True))


def test_weights_for_colours_start_a_network_for_grey_images(tmp_path: Path) -> None:
    weights = timm.create_model("resnet20_cifar", num_classes=10).state_dict()
    save_file(weights, tmp_path / "rgb.safetensors")
    network = built(10, (1, 32, 32), init_from=str(tmp_path / "rgb.safetensors"))
    assert differing(network, weights) == {"conv1.weight"}
    # timm's way: summed over the colours, so that a grey image gives what its three equal channels gave.
    torch.testing.assert_close(network.conv1.weight, weights["conv1.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("content", "told"), [(None, "no such file"), (b"", "cannot be read"), (b"no weights", "cannot be read")]
)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_file_that_cannot_be_read_is_told_in_one_line(
    content: bytes | None, told: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^model\.init_from=.*: {told}[^\n]*Give [^\n]*$"):
        built(init_from=str(path))


def test_weights_of_another_model_are_told_in_one_line(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(
        UsageError, match=r"^model\.init_from=[^\n]*: its weights are not those of `resnet20_cifar`: [^\n]*$"
    ):
        built(init_from=str(tmp_path / "other.safetensors"))


# Downloads.


def test_weights_that_are_named_and_not_asked_for_are_said_to_be_left() -> None:
    (note,) = backbones.start_notes(ModelConfig(name="resnet18.a1_in1k"), 10, SIZE)
    assert note == "starts from fresh weights: `a1_in1k` of `resnet18` is downloaded with --pretrained alone."
    assert backbones.start_notes(ModelConfig(name="resnet18"), 10, SIZE) == []
    assert backbones.start_notes(ModelConfig(name="resnet18.a1_in1k", pretrained=True), 10, SIZE) == []


def test_pretrained_weights_that_cannot_be_had_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network\nat all")

    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    with pytest.raises(
        UsageError, match=r"^model `resnet18`: its pretrained weights cannot be had: [^\n]*no network"
    ) as e:
        built(name="resnet18", pretrained=True)
    assert "--init-from FILE" in str(e.value)
    assert "\n" not in str(e.value)


def test_a_model_without_pretrained_weights_is_told() -> None:
    with pytest.raises(UsageError, match=r"^model `resnet20_cifar`: timm has no weights of it to download\. [^\n]*$"):
        built(pretrained=True)


def test_a_plan_downloads_and_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))
    before = torch.get_rng_state()
    plan = make_plan(small(model={"name": "resnet18", "pretrained": True}, data={"image_size": 32}))
    assert plan.spec.num_features == 512
    assert torch.equal(torch.get_rng_state(), before)


# Building.


def test_unknown_models_and_arguments_are_told() -> None:
    with pytest.raises(UsageError, match=r"unknown model `resnet20_cifra`\. .*Did you mean `resnet20_cifar`"):
        built(name="resnet20_cifra")
    with pytest.raises(UsageError, match=r"model `resnet20_cifar` cannot be built with in_chans=3, depht=3: "):
        built(kwargs={"depht": 3})


def test_a_model_of_one_size_is_built_for_the_images() -> None:
    network = built(4, (1, 48, 48), name="test_vit")
    assert network(torch.randn(2, 1, 48, 48)).shape == (2, 4)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85), (110, 1.7)])
def test_our_residual_networks_have_the_papers_depth_and_size(depth: int, millions: float) -> None:
    """Table 6 of He et al. 2016."""
    network = built(name=f"resnet{depth}_cifar")
    assert len([m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]) == depth
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(
        millions, abs=0.05 if depth > 100 else 0.005
    )


# Frozen stages.


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (0, ()),
        (1, ("conv1", "bn1")),
        (2, ("conv1", "bn1", "layer1")),
        (4, ("conv1", "bn1", "layer1", "layer2", "layer3")),
    ],
)
def test_stages_are_frozen_from_the_stem_on(stages: int, frozen: tuple[str, ...]) -> None:
    for name, parameter in built(frozen_stages=stages).named_parameters():
        assert parameter.requires_grad != name.startswith(frozen or "nothing"), name


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "test_resnet"])
def test_the_classifier_is_never_frozen(name: str) -> None:
    size = backbones.data_config(name)["input_size"]
    with pytest.raises(UsageError, match=rf"model\.frozen_stages=99: `{name}` has \d+ stages with the stem") as error:
        built(10, size, name=name, frozen_stages=99)
    count = int(str(error.value).split(" stages with")[0].split()[-1])
    network = built(10, size, name=name, frozen_stages=count)
    assert all(p.requires_grad for p in passes.classifier_of(network).parameters())
    assert not all(p.requires_grad for p in network.parameters())


def test_normalisation_of_frozen_stages_alone_stays_in_evaluation() -> None:
    network = built(frozen_stages=2).train()
    keep_statistics(network)
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training != name.startswith(("bn1", "layer1")), name
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.randn(4, *SIZE))
    for name, value in network.named_buffers():
        assert torch.equal(value, before[name]) == name.startswith(("bn1", "layer1")), name


def test_a_network_that_tells_no_stages_is_told() -> None:
    with pytest.raises(UsageError, match=r"model\.frozen_stages=1: `odd` does not tell its stages"):
        freeze_stages(nn.Linear(2, 2), ModelConfig(name="odd", frozen_stages=1))


def test_on_the_meta_device_no_weights_are_read(tmp_path: Path) -> None:
    missing = ModelConfig(name="resnet20_cifar", init_from=str(tmp_path / "gone.safetensors"))
    with torch.device("meta"):
        network = backbones.build(missing, 10, (3, 32, 32))
        pretrained = backbones.build(ModelConfig(name="resnet18", pretrained=True), 10, (3, 32, 32))
    assert {p.device.type for p in (*network.parameters(), *pretrained.parameters())} == {"meta"}


def test_what_a_network_says_of_odd_images_ends_in_one_full_stop() -> None:
    with pytest.raises(UsageError, match=r"divisible by patch size \(16\)\. Choose another model"):
        backbones.inspect_model(ModelConfig(name="test_vit"), 3, (3, 33, 33))
