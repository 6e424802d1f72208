"""Runs that start from a file's or another run's weights: what is kept of them, what is replaced, and what is said."""

from __future__ import annotations

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
from augury_train import backbones
from augury_train.backbones import starting
from augury_train.config import ModelConfig, RunConfig, read_config
from augury_train.data.view import crop_share
from augury_train.training.plan import lasting, make_plan
from augury_train.training.trainer import Trainer, train

GREY = (1, 8, 8)
ABC = ["a", "b", "c"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights are averaged ones."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(small(optim={"epochs": 1}, train={"ema": 0.5}), folder)
    return folder


def weights_of(model: str, classes: int, **arguments: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    network = timm.create_model(model, num_classes=classes, **arguments)
    return {name: value.clone() for name, value in network.state_dict().items()}


def saved(path: Path, weights: dict[str, Tensor], **said: Any) -> str:
    """A file as augury writes it; what is text already is not JSON."""
    save_file(
        weights, path, {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    )
    return str(path)


def started(place: str | Path, classes: list[str], size: tuple[int, int, int] = GREY, **model: Any) -> nn.Module:
    config = ModelConfig(**{"name": "test_resnet", **model}, init_from=str(place))
    return backbones.build(config, len(classes), size, classes)


def told(place: str | Path, classes: list[str], size: tuple[int, int, int] = GREY, **model: Any) -> str:
    config = ModelConfig(**{"name": "test_resnet", **model}, init_from=str(place))
    return " ".join(backbones.start_notes(config, len(classes), size, classes))


def timm_create(name: str, classes: int, weights: dict[str, Tensor], **arguments: Any) -> nn.Module:
    network = timm.create_model(name, num_classes=classes, **arguments)
    network.load_state_dict(weights)
    return network.eval()


# The whole of it.


def test_before_its_first_step_a_run_has_the_logits_of_the_one_it_starts_from(run: Path) -> None:
    trainer = Trainer(make_plan(small(model={"init_from": str(run)})))
    (line,) = [note for note in trainer.notes if "starts from" in note]
    assert line == (
        f"starts from the weights in {run}/best.safetensors, those of a `resnet20_cifar`: the classifier of 10 classes "
        "is kept."
    )
    own = timm_create("resnet20_cifar", 10, load_file(run / "best.safetensors"), in_chans=1)
    images = torch.randn(16, *GREY)
    with torch.no_grad():
        assert torch.equal(trainer.network.eval()(images), own(images))


def test_its_images_are_those_of_the_run_it_starts_from(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    said = {"input_size": [1, 12, 12], "crop_pct": crop_share(12, 13), "mean": [0.25], "std": [0.75]}
    said["interpolation"] = "bicubic"
    saved(path, load_file(run / "best.safetensors"), **said)
    form = make_plan(small(model={"init_from": str(path)})).data.format
    assert (form.side, form.kept, form.mean, form.std, form.interpolation) == (12, 13, (0.25,), (0.75,), "bicubic")
    other = make_plan(small(model={"init_from": str(path)}, data={"image_size": 16, "mean": [0.5]})).data.format
    assert (other.side, other.mean, other.std) == (16, (0.5,), (0.75,))


def test_a_run_that_is_not_finished_is_said_to_be(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / "result.json").unlink()
    notes = make_plan(small(model={"init_from": str(tmp_path / "half")})).notes
    assert f"{tmp_path}/half is not finished: it is started from its best weights so far." in notes
    (tmp_path / "half" / "best.safetensors").unlink()
    with pytest.raises(UsageError, match=r"^model.init_from=\S+ has no best.safetensors, which a run writes") as error:
        make_plan(small(model={"init_from": str(tmp_path / "half")}))
    assert "\n" not in str(error.value)


def test_an_exported_folder_and_a_home_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exported").mkdir()
    weights = weights_of("test_resnet", 3, in_chans=1)
    saved(tmp_path / "exported" / "model.safetensors", weights, model="test_resnet")
    monkeypatch.setenv("HOME", str(tmp_path))
    network = started("~/exported", ABC)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    config = lasting(small(model={"init_from": "~/exported"}))
    assert config.model.init_from == str(tmp_path / "exported")


# The classifier.


def test_a_classifier_of_other_classes_is_replaced_though_there_are_as_many(tmp_path: Path) -> None:
    weights = weights_of("test_resnet", 3, in_chans=1)
    place = saved(tmp_path / "w.safetensors", weights, classes=ABC)
    torch.manual_seed(5)
    network = started(place, ["a", "b", "d"])
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {"fc.weight"} | ({"fc.bias"} if not torch.equal(network.fc.bias, weights["fc.bias"]) else set())
    torch.manual_seed(5)
    fresh = timm.create_model("test_resnet", num_classes=3, in_chans=1)
    assert torch.equal(network.fc.weight, fresh.fc.weight), "as a fresh network of that seed has it"
    assert told(place, ["a", "b", "d"]) == (
        f"starts from the weights in {place}: the classifier of 3 classes (a, b, c) is replaced by a fresh one of 3 "
        "(a, b, d)."
    )
    assert "of 3 classes (a, b, c) is replaced by a fresh one of 2 (a, b)" in told(place, ["a", "b"])


def test_a_classifier_of_the_same_classes_is_put_into_their_order(tmp_path: Path) -> None:
    weights = weights_of("test_resnet", 3, in_chans=1)
    place = saved(tmp_path / "w.safetensors", weights, classes=ABC)
    images = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        before = timm_create("test_resnet", 3, weights, in_chans=1)(images)
        after = started(place, ["c", "a", "b"]).eval()(images)
    torch.testing.assert_close(after, before[:, [2, 0, 1]], rtol=0, atol=1e-6)
    assert "the classifier of 3 classes is kept, in another order" in told(place, ["c", "a", "b"])
    assert told(place, ABC).endswith("the classifier of 3 classes is kept.")


def test_a_classifier_that_tells_no_classes_is_kept_where_there_are_as_many(tmp_path: Path) -> None:
    weights = weights_of("test_resnet", 3, in_chans=1)
    # Names that are not as many as the classifier's rows are no names of its classes.
    for said in ({}, {"classes": ["x", "y"]}):
        place = saved(tmp_path / "w.safetensors", weights, **said)
        assert torch.equal(started(place, ABC).fc.weight, weights["fc.weight"])
        assert "is kept, without a word of which classes they are" in told(place, ABC)


def test_weights_without_a_classifier_get_one(tmp_path: Path) -> None:
    weights = {name: value for name, value in weights_of("test_resnet", 3, in_chans=1).items() if name[:3] != "fc."}
    place = saved(tmp_path / "w.safetensors", weights)
    network = started(place, ABC)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in weights.items())
    assert "they have no classifier; it is a fresh one of 3 classes" in told(place, ABC)


# Images of other sizes and channels.


def test_what_depends_on_the_image_size_is_resampled(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    weights = weights_of("test_vit", 3)
    place = saved(tmp_path / "w.safetensors", weights, classes=ABC, input_size=[3, 160, 160])
    network = started(place, ABC, (3, 96, 96), name="test_vit")
    expected = resample_abs_pos_embed(weights["pos_embed"], new_size=[6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(network.pos_embed.detach(), expected)
    others = {name for name, value in network.state_dict().items() if not torch.equal(value, weights[name])}
    assert others == {"pos_embed"}
    assert "is resampled from 160 to 96 pixels" in told(place, ABC, (3, 96, 96), name="test_vit")
    assert "resampled" not in told(place, ABC, (3, 160, 160), name="test_vit")
    assert "resampled" in told(place, ABC, (3, 96, 96), name="test_vit", kwargs={"dynamic_img_size": True})
    silent = saved(tmp_path / "silent.safetensors", weights)
    assert "is resampled to 96 pixels" in told(silent, ABC, (3, 96, 96), name="test_vit")


def test_a_size_that_cannot_be_resampled_is_told(tmp_path: Path) -> None:
    weights = weights_of("levit_128s", 3)
    place = saved(tmp_path / "w.safetensors", weights, classes=ABC, input_size=[3, 224, 224])
    with pytest.raises(UsageError, match=r"has the shape \(4, 196\), not \(4, 256\) .* with data\.image_size"):
        told(place, ABC, (3, 256, 256), name="levit_128s")


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (1, 3)])
def test_a_first_convolution_for_other_channels_is_adapted_and_said(theirs: int, ours: int, tmp_path: Path) -> None:
    weights = weights_of("test_resnet", 3, in_chans=theirs)
    place = saved(tmp_path / "w.safetensors", weights, classes=ABC)
    network = started(place, ABC, (ours, 32, 32))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {"conv1.0.weight"}
    # A grey image, as three equal channels or as one, gives the same.
    one = network.conv1[0].weight.detach().sum(1)
    torch.testing.assert_close(one, weights["conv1.0.weight"].sum(1))
    assert f"what sees the image first is adapted: from {theirs} channels to {ours}" in told(place, ABC, (ours, 32, 32))


def test_a_stem_that_is_no_convolution_is_replaced_and_only_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, arguments = "naflexvit_base_patch16_gap", {"depth": 1, "embed_dim": 12, "num_heads": 1}
    weights = weights_of(name, 3, **arguments)
    place = saved(tmp_path / "w.safetensors", weights, classes=ABC)
    network = started(place, ABC, (1, 32, 32), name=name, kwargs=arguments)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, weights[key])}
    assert changed == {"embeds.proj.weight"}
    line = told(place, ABC, (1, 32, 32), name=name, kwargs=arguments)
    assert "what sees the image first is replaced by a fresh one: from 3 channels to 1" in line
    assert not caplog.records


def test_a_stem_of_several_convolutions_is_told_of_once(tmp_path: Path) -> None:
    weights = weights_of("mobileone_s0", 3)
    line = told(saved(tmp_path / "w.safetensors", weights, classes=ABC), ABC, (1, 32, 32), name="mobileone_s0")
    assert line.count("what sees the image first is adapted: from 3 channels to 1") == 1


# What does not fit.


@pytest.mark.parametrize("classes", [ABC, ["a", "b"]], ids=["same classes", "other classes"])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"layer2.0.conv1.weight": None}, "`layer2.0.conv1.weight` is missing"),
        ({"more": torch.zeros(1)}, "`more` has no place"),
        ({"bn1.weight": torch.zeros(5)}, "`bn1.weight` has the shape (5,), not ("),
    ],
)
def test_all_but_the_classifier_must_fit(
    change: dict[str, Tensor | None], fault: str, classes: list[str], tmp_path: Path
) -> None:
    weights = {**weights_of("test_resnet", 3, in_chans=1), **change}
    place = saved(tmp_path / "w.safetensors", {name: value for name, value in weights.items() if value is not None})
    for work in (started, told):
        with pytest.raises(UsageError) as error:
            work(place, classes)
        assert str(error.value).startswith(
            f"model.init_from={place}: its weights are not those of `test_resnet`: {fault}"
        )
        assert str(error.value).endswith("data.image_size, or give other weights.")
        assert "\n" not in str(error.value)


def test_missing_weights_are_told_where_timm_would_not_mind(tmp_path: Path) -> None:
    weights = weights_of("dla46x_c", 3)
    assert "is kept" in told(saved(tmp_path / "w.safetensors", weights, classes=ABC), ABC, name="dla46x_c")
    del weights["level0.1.weight"]
    place = saved(tmp_path / "less.safetensors", weights, classes=ABC)
    for classes in (ABC, ["a", "b"]):
        with pytest.raises(UsageError, match=r"not those of `dla46x_c`: `level0\.1\.weight` is missing\. "):
            started(place, classes, name="dla46x_c")


def test_a_run_of_another_network_is_told_before_training(run: Path) -> None:
    with pytest.raises(UsageError) as error:
        make_plan(small(model={"name": "resnet32_cifar", "init_from": str(run)}))
    assert str(error.value) == (
        f"model.init_from={run} holds a `resnet20_cifar`, and this run trains a `resnet32_cifar`. Choose it with "
        "--model resnet20_cifar, or give other weights."
    )


def test_timms_weights_for_a_network_make_it_no_other_one(tmp_path: Path) -> None:
    place = saved(tmp_path / "w.safetensors", weights_of("test_resnet", 3, in_chans=1), model="test_resnet.r160_in1k")
    assert "is kept" in told(place, ABC)


def test_two_sets_of_weights_are_told(run: Path) -> None:
    with pytest.raises(UsageError, match=r"^model\.pretrained=true and model\.init_from=\S+ are two sets [^\n]*$"):
        make_plan(small(model={"name": "resnet18", "pretrained": True, "init_from": str(run)}))


@pytest.mark.parametrize("place", [None, "runs/first"])
def test_settings_of_older_runs_are_read(place: str | None) -> None:
    assert read_config({"model": {"checkpoint": place}}).model.init_from == place
    with pytest.raises(UsageError, match=r"^config: model: unknown key `checkpoint`"):
        read_config({"model": {"checkpoint": place, "init_from": place}})


# The network that the weights are of.


def own(**model: Any) -> RunConfig:
    return starting.with_own_network(read_config({"model": model}))


def test_the_network_is_that_of_the_weights_where_none_is_named(tmp_path: Path) -> None:
    arguments = {"drop_rate": 0.25}
    place = saved(tmp_path / "w.safetensors", {"x": torch.zeros(1)}, model="test_resnet", model_args=arguments)
    found = own(init_from=place).model
    assert (found.name, found.kwargs, found.init_from) == ("test_resnet", arguments, place)
    assert own(init_from=place, name="test_resnet").model.kwargs == arguments
    assert own(init_from=place, name="resnet18").model == ModelConfig(name="resnet18", init_from=place)
    assert own(init_from=place, kwargs={"drop_path_rate": 0.1}).model.kwargs == {**arguments, "drop_path_rate": 0.1}
    assert own(init_from=place, kwargs={"drop_rate": 0.0}).model.kwargs == {"drop_rate": 0.0}
    assert own(name="resnet18").model.name == "resnet18"
    # What cannot be read, the plan tells.
    assert own(init_from=str(tmp_path / "gone")).model.name == ModelConfig().name
    assert own(init_from=str(tmp_path)).model.name == ModelConfig().name


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "`model_args` must not have `checkpoint_path`"),
        ({"model_args": {"pretrained_cfg": {"file": "x"}}}, "`model_args` must not have `pretrained_cfg`"),
        ({"model_args": {"x": "\x1b[2J"}}, "holds the character U+001B"),
        ({"model_args": {"x": 10**30}}, "holds a whole number of more than 64 bits"),
        ({"model": "x\x1b[2J", "model_args": {}}, "holds the character U+001B"),
    ],
)
def test_a_file_names_no_files_and_nothing_odd(said: dict[str, Any], fault: str, tmp_path: Path) -> None:
    place = saved(tmp_path / "w.safetensors", {"x": torch.zeros(1)}, **{"model": "test_resnet", **said})
    with pytest.raises(UsageError) as error:
        own(init_from=place)
    assert fault in str(error.value)
    assert str(error.value).startswith(place)


# Downloads.


def test_downloaded_weights_come_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    name = timm.get_pretrained_cfg("test_resnet").hf_hub_id.replace("/", "--")
    weights = weights_of("test_resnet", 1000)
    revision = "0" * 40
    folder = tmp_path / f"models--{name}"
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    save_file(weights, folder / "snapshots" / revision / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    network = backbones.build(ModelConfig(name="test_resnet", pretrained=True), 3, (1, 32, 32), ABC)
    changed = {
        key
        for key, value in network.state_dict().items()
        if value.shape != weights[key].shape or not torch.equal(value, weights[key])
    }
    assert changed == {"conv1.0.weight", "fc.weight", "fc.bias"}
    torch.testing.assert_close(network.conv1[0].weight.detach(), weights["conv1.0.weight"].sum(1, keepdim=True))


def test_a_downloaded_classifier_that_stays_is_said_to() -> None:
    names = [str(label) for label in range(1000)]
    (line,) = backbones.start_notes(ModelConfig(name="test_resnet", pretrained=True), 1000, (3, 32, 32), names)
    assert line.startswith("the classifier that timm downloads is kept: it has 1000 classes too")
    assert not backbones.start_notes(ModelConfig(name="test_resnet", pretrained=True), 3, (3, 32, 32), ABC)
