"""A network taken away answers as it did: through timm, and as ONNX."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tests.train.limits import at_most
from tests.train.small_runs import small
from timm.data import create_transform, resolve_data_config

from augury import passes
from augury.errors import AuguryError, UsageError
from augury_train import backbones
from augury_train.backbones.weights import save_weights
from augury_train.config import ModelConfig
from augury_train.files import WriteError
from augury_train.inference import export as module
from augury_train.inference import onnx
from augury_train.inference.classifier import Classifier, load_classifier
from augury_train.inference.export import Export, export
from augury_train.training.trainer import train

CLASSES = ["bus", "tram", "über"]
SMALL = ("resnet20_cifar", {"depth": 8})


def weights_of(
    folder: Path,
    model: str = SMALL[0],
    kwargs: dict[str, Any] | None = None,
    *,
    channels: int = 1,
    side: int = 8,
    test: int | None = None,
    kept: int | None = None,
) -> Path:
    """A file of weights as a run writes it, of a network whose statistics and logits are not those of a fresh one."""
    torch.manual_seed(0)
    network = backbones.build(ModelConfig(name=model, kwargs=kwargs or {}), len(CLASSES), (channels, side, side))
    classifier = passes.classifier_of(network)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_()
        for _ in range(3):
            network.train()(torch.randn(8, channels, side, side))
    test = test or side
    said = {
        "model": model,
        "model_args": json.dumps(kwargs or {}),
        "classes": json.dumps(CLASSES),
        "input_size": json.dumps([channels, side, side]),
        "test_input_size": json.dumps([channels, test, test]),
        "test_kept_size": json.dumps(kept or test),
        "crop_pct": "1.0",
        "interpolation": "bilinear",
        "mean": json.dumps([0.4, 0.5, 0.6][:channels]),
        "std": json.dumps([0.2, 0.25, 0.3][:channels]),
        "weights": "raw",
        "epoch": "3",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "weights.safetensors"
    save_weights(path, network.state_dict(), said)
    return path


def images_for(network: torch.nn.Module, number: int, side: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, network.in_chans, side, side, generator=generator)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that is shown images of another size than in training, cropped from a larger square."""
    return weights_of(tmp_path_factory.mktemp("weights"), *SMALL, test=12, kept=15)


@pytest.fixture(scope="module")
def as_onnx(weights: Path) -> Export:
    """Made once: it takes seconds."""
    return export(weights, "onnx")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with methods that hold state, one of them an auxiliary network, and with a moving average."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(small("isda", "agmax", model={"name": SMALL[0], "kwargs": SMALL[1]}, train={"ema": 0.9}), folder)
    return folder


def test_timm_loads_the_folder_as_one_of_its_models(weights: Path, tmp_path: Path) -> None:
    found = export(weights, output=tmp_path / "a" / "b")
    assert found.path == tmp_path / "a" / "b" / "model.safetensors"
    assert sorted(path.name for path in found.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert set(found.files) == set(found.folder.iterdir())
    network = timm.create_model(f"local-dir:{found.folder}", pretrained=True).eval()
    original = load_classifier(weights, device="cpu")
    images = images_for(network, 4, 12)
    assert torch.equal(network(images), original.network(images))
    assert network.num_classes == 3
    assert network.pretrained_cfg["label_names"] == CLASSES
    assert load_file(found.path).keys() == network.state_dict().keys() == load_file(weights).keys()
    config = resolve_data_config(model=network)
    assert {key: list(config[key]) for key in ("input_size", "mean", "std")} == {
        "input_size": [1, 12, 12],
        "mean": [0.4],
        "std": [0.2],
    }
    assert config["interpolation"] == "bilinear"
    resize, crop = create_transform(**config).transforms[:2]
    assert (resize.size, crop.size) == (15, (12, 12))


def test_timm_sees_images_as_the_evaluation_does(tmp_path: Path) -> None:
    weights = weights_of(tmp_path, *SMALL, channels=3, side=12, kept=16)
    network = timm.create_model(f"local-dir:{export(weights).folder}", pretrained=True)
    transform = create_transform(**resolve_data_config(model=network))
    original = load_classifier(weights, device="cpu")
    for size in ((16, 16), (40, 40), (31, 31)):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        mean, std = (torch.tensor(values)[:, None, None] for values in ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))
        expected = (original.prepare(picture).float() / 255 - mean) / std
        torch.testing.assert_close(transform(picture), expected)


def test_it_is_loaded_again_by_augury_and_by_timms_checkpoint_path(weights: Path, tmp_path: Path) -> None:
    found = export(weights, output=tmp_path / "first")
    original = load_classifier(weights, device="cpu")
    images = images_for(original.network, 2, 12)
    for place in (found.folder, found.path):
        again = load_classifier(place, device="cpu")
        assert torch.equal(again.network(images), original.network(images))
        assert (again.model, again.model_args, again.classes, again.format) == (
            original.model,
            original.model_args,
            original.classes,
            original.format,
        )
    network = timm.create_model(SMALL[0], depth=8, num_classes=3, in_chans=1, checkpoint_path=found.path).eval()
    assert torch.equal(network(images), original.network(images))
    # From an exported folder the other form goes beside the first.
    second = export(found.folder, output=tmp_path / "second")
    one, other = load_file(found.path), load_file(second.path)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(UsageError, match="first/model.safetensors is there already"):
        export(found.folder)


@pytest.mark.parametrize(
    ("model", "channels", "side"),
    [
        ("test_vit", 1, 32),
        ("test_resnet", 3, 16),
        ("test_efficientnet.r160_in1k", 1, 32),
        ("shakeshake26_2x32d_cifar", 3, 8),
    ],
)
def test_models_of_all_kinds_come_back_through_timm(model: str, channels: int, side: int, tmp_path: Path) -> None:
    weights = weights_of(tmp_path, model, {"drop_rate": 0.5}, channels=channels, side=side)
    found = export(weights)
    network = timm.create_model(f"local-dir:{found.folder}", pretrained=True).eval()
    original = load_classifier(weights, device="cpu").network
    images = images_for(network, 3, side)
    torch.testing.assert_close(network(images), original(images), atol=1e-6, rtol=1e-5)
    assert found.load.startswith("import timm\n" + "import augury_train.backbones\n" * model.startswith("shake"))
    said: dict[str, Any] = {}
    exec(found.load, said)
    assert torch.equal(said["network"](images), network(images))


def test_the_metadata_say_what_the_network_is(weights: Path, tmp_path: Path) -> None:
    found = export(weights, output=tmp_path)
    with safe_open(str(found.path), "pt") as file:
        said = file.metadata()
    assert said.pop("format") == "pt"
    assert said.pop("augury_version")
    assert said.pop("augury_format") == "2"
    assert said.pop("weights") == "raw"
    assert said.pop("content"), "a digest: damage is found"
    assert said.pop("model") == SMALL[0]
    assert said.pop("interpolation") == "bilinear"
    assert {key: json.loads(value) for key, value in said.items()} == {
        "model_args": {"depth": 8},
        "classes": CLASSES,
        "input_size": [1, 8, 8],
        "test_input_size": [1, 12, 12],
        "test_kept_size": 15,
        "crop_pct": 1.0,
        "mean": [0.4],
        "std": [0.2],
    }


def test_nothing_is_said_of_timms_own_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some of timm's are shown whole images, squashed.
    squashed = {"crop_mode": "squash", "test_input_size": (3, 99, 99), "test_crop_pct": 0.5, "label_offset": 1}

    def loaded(*where: Any) -> Classifier:
        classifier = load_classifier(*where)
        classifier.network.pretrained_cfg |= squashed  # type: ignore[operator]
        return classifier

    monkeypatch.setattr(module, "load_classifier", loaded)
    config = json.loads(export(weights_of(tmp_path, "test_resnet", side=16)).files[1].read_text())
    assert config["architecture"] == "test_resnet"
    said = config["pretrained_cfg"]
    assert not {"tag", "license", "origin_url", "url", "hf_hub_id", "file"} & said.keys()
    assert not {"test_input_size", "test_crop_pct", "label_offset"} & said.keys()
    assert said["crop_mode"] == "center"


@pytest.mark.parametrize("which", ["best", "last"])
def test_a_run_leaves_nothing_of_its_methods(run: Path, which: Any, tmp_path: Path) -> None:
    found = export(run, output=tmp_path / which, weights=which)
    fresh = timm.create_model(SMALL[0], depth=8, num_classes=10, in_chans=1)
    theirs, expected = load_file(found.path), load_file(run / f"{which}.safetensors")
    assert theirs.keys() == fresh.state_dict().keys()
    assert all(torch.equal(theirs[key], expected[key]) for key in theirs)
    text = b"".join(path.read_bytes().lower() for path in found.files)
    assert not any(word in text for word in (b"isda", b"agmax", str(run).encode()))


def test_the_folder_is_the_runs_unless_another_is_named(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    assert export(copy).folder == copy / "export"
    assert export(copy, output=str(tmp_path / "other")).folder == tmp_path / "other"


def test_an_unfinished_run_gives_its_best_so_far_and_says_so(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "result.json").unlink()
    assert "not finished" in "".join(export(copy).notes)
    assert export(run, output=tmp_path / "other").notes == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_nothing_is_overwritten(weights: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name} is there already.*--output"):
        export(weights, output=tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_links_out_of_the_folder_are_not_followed(run: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors").symlink_to(tmp_path / "out" / "file")
    with pytest.raises(UsageError, match="is there already"):
        export(weights, output=tmp_path / "in")
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "export").symlink_to(tmp_path / "out")
    with pytest.raises(UsageError, match="export is a link to"):
        export(copy)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(weights, alone)
    (alone / "export").mkdir()
    (alone / "export" / "model.safetensors.partial").symlink_to(tmp_path / "out" / "file")
    with pytest.raises(UsageError, match="partial is a link to"):
        export(alone / weights.name)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_most(8192), pytest.raises(WriteError, match=r"model\.safetensors: cannot be written: File too large"):
        export(weights, output=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    # Weights that are written already go with the rest.
    whole = module._write_config

    def too_long(path: Path, classifier: Any) -> None:
        whole(path, classifier)
        with at_most(10), path.open("a") as file:
            file.write("x" * 100)

    monkeypatch.setattr(module, "_write_config", too_long)
    with pytest.raises(WriteError, match=r"config\.json: cannot be written: File too large"):
        export(weights, output=tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_place_of_the_folder_is_told(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file: cannot be written: File exists\. Move"):
        export(weights, output=tmp_path / "file")


def test_other_forms_are_refused(weights: Path) -> None:
    with pytest.raises(UsageError, match="must be one of safetensors, onnx, got `gguf`"):
        export(weights, "gguf")  # type: ignore[arg-type]


def test_onnx_answers_as_the_network_does(weights: Path, as_onnx: Export) -> None:
    from onnxruntime import InferenceSession

    session = InferenceSession(str(as_onnx.path), providers=["CPUExecutionProvider"])
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["batch", 1, 12, 12])
    assert (logits.name, logits.shape) == ("logits", ["batch", 3])
    network = load_classifier(weights, device="cpu").network
    for number in (1, 5):
        shown = images_for(network, number, 12)
        found = session.run(["logits"], {"images": shown.numpy()})[0]
        np.testing.assert_allclose(found, network(shown).numpy(), atol=1e-4)
        said: dict[str, Any] = {"images": shown.numpy()}
        exec(as_onnx.load, said)
        np.testing.assert_array_equal(said["logits"], found)


def test_onnx_is_one_file_that_says_what_it_is_and_not_where_it_was_made(
    weights: Path, as_onnx: Export, tmp_path: Path
) -> None:
    from onnxruntime import InferenceSession

    assert as_onnx.files == (weights.parent / "export" / "model.onnx",)
    assert list(as_onnx.folder.iterdir()) == [as_onnx.path]
    with safe_open(str(export(weights, output=tmp_path).path), "pt") as file:
        expected = {key: value for key, value in file.metadata().items() if key not in ("format", "content")}
    assert InferenceSession(str(as_onnx.path)).get_modelmeta().custom_metadata_map == expected
    content = as_onnx.path.read_bytes()
    for place in (Path(torch.__file__).parents[1], Path(backbones.__file__).parents[1], weights.parent):
        assert str(place).encode() not in content


@pytest.fixture
def _written_again(as_onnx: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the seconds that the exporter takes, what it made before."""
    import onnx_ir

    model = onnx_ir.load(as_onnx.path)
    program = SimpleNamespace(model=model, save=lambda path: onnx_ir.save(model, path))
    monkeypatch.setattr(onnx, "_program", lambda *_: program)


@pytest.mark.usefixtures("_written_again")
def test_onnx_that_answers_otherwise_is_refused_and_not_left(tmp_path: Path) -> None:
    weights = weights_of(tmp_path / "w", *SMALL, test=12, kept=15)
    assert export(weights, "onnx", output=tmp_path / "same").path.is_file()
    other = load_file(weights)
    other["fc.bias"][1] += 0.01
    with safe_open(str(weights), "pt") as file:
        save_weights(weights, other, file.metadata())
    with pytest.raises(AuguryError, match=r"resnet20_cifar: onnxruntime's logits differ .* by \de-0\d|by \d\.\de-0\d"):
        export(weights, "onnx", output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("_written_again")
def test_onnx_that_does_not_run_is_refused(weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx._program().model  # type: ignore[call-arg]
    next(iter(model.graph)).op_type = "Nonsense"
    with pytest.raises(AuguryError, match="resnet20_cifar: onnxruntime cannot run it: .*Nonsense") as caught:
        export(weights, "onnx", output=tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_written_again")
def test_a_full_disk_leaves_no_onnx(weights: Path, tmp_path: Path) -> None:
    with at_most(8192), pytest.raises(WriteError, match=r"model\.onnx: cannot be written: File too large"):
        export(weights, "onnx", output=tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_onnx_is_refused_before_any_work_where_it_cannot_be_written(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(onnx, "LARGEST", 1000)
        with pytest.raises(UsageError, match=r"resnet20_cifar: its weights take .* GiB.*--format safetensors"):
            export(weights, "onnx", output=tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *_, **__: torch.zeros(2) @ torch.zeros(3))
        with pytest.raises(UsageError, match="resnet20_cifar: torch cannot write it as ONNX: .*inconsistent") as caught:
            export(weights, "onnx", output=tmp_path / "a")
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(onnx.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(
        UsageError, match=r"needs onnx, onnxruntime, onnxscript\. .*: pip install onnx onnxruntime onnx"
    ):
        export(tmp_path / "nowhere", "onnx")


class Undecided(torch.nn.Module):
    """Does this or that with a whole batch, as it finds it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = images.flatten(1)
        return logits + 1 if logits.sum() > 0 else logits


class Unheard(torch.nn.Module):
    """What ONNX has no word for."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(images).real.flatten(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "why"), [(Undecided(), "Could not guard on data-dependent"), (Unheard(), "No ONNX function found for")]
)
def test_networks_that_cannot_become_onnx_are_refused_in_one_line(
    network: torch.nn.Module, why: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=f"^mine: torch cannot write it as ONNX: {why}") as caught:
        onnx.write_onnx(tmp_path / "model.onnx", "mine", network.eval(), (1, 2, 2), {})
    assert "\n" not in str(caught.value)
    assert "\\x1b" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kwargs", "channels", "side"),
    [
        ("test_vit", {}, 3, 32),
        ("test_resnet", {}, 3, 16),
        ("test_efficientnet", {}, 1, 32),
        ("shakeshake26_2x32d_cifar", {"depth": 8}, 3, 8),
        ("densenetbc100_12_cifar", {"block_config": [2, 2, 2]}, 1, 16),
        ("pyramidnet110_a64_cifar", {"depth": 20}, 3, 16),
    ],
)
def test_networks_of_all_kinds_become_onnx(
    model: str, kwargs: dict[str, Any], channels: int, side: int, tmp_path: Path
) -> None:
    from onnxruntime import InferenceSession

    weights = weights_of(tmp_path, model, kwargs, channels=channels, side=side)
    session = InferenceSession(str(export(weights, "onnx").path))
    network = load_classifier(weights, device="cpu").network
    images = images_for(network, 7, side)
    expected = network(images)
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1
