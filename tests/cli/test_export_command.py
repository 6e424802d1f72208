"""`augury export` as its user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.in_process import augury
from tests.train.small_runs import small

from augury_train.inference import onnx
from augury_train.inference.classifier import load_classifier
from augury_train.training.trainer import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    train(small(model={"name": "resnet20_cifar", "kwargs": {"depth": 8}}, optim={"epochs": 1}), folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, named from the working folder."""
    shutil.copytree(trained, tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    return Path("runs/first")


def test_it_tells_what_was_written_and_how_to_load_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = augury(capsys, "export", str(run))
    assert (code, err) == (0, "")
    size = (run / "export/model.safetensors").stat().st_size / 2**10
    lines = out.splitlines()
    assert lines[0] == f"wrote runs/first/export/model.safetensors ({size:.1f} KiB)"
    assert lines[1].startswith("wrote runs/first/export/config.json (")
    said: dict[str, Any] = {}
    exec("\n".join(lines[lines.index("Load it in Python:") + 1 :]), said)
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(said["network"](images), load_classifier(run, device="cpu").network(images))


def test_json_tells_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "result.json").unlink()
    code, out, err = augury(capsys, "export", str(run), "--json", "--output", "away", "--weights", "best")
    said = json.loads(out)
    assert code == 0
    assert said["model"] == "resnet20_cifar"
    assert [file["file"] for file in said["files"]] == ["away/model.safetensors", "away/config.json"]
    assert all(file["bytes"] == Path(file["file"]).stat().st_size for file in said["files"])
    assert said["load"].splitlines()[-1].startswith("network = timm.create_model('local-dir:away'")
    assert err.splitlines() == said["notes"]
    assert "not finished" in err


@pytest.mark.slow
def test_onnx_is_written_without_a_word_of_the_exporter(run: Path, capfd: Any, recwarn: Any) -> None:
    code, out, err = augury(capfd, "export", str(run), "--format", "onnx")
    assert (code, err, list(recwarn)) == (0, "", [])
    assert out.splitlines()[0].startswith("wrote runs/first/export/model.onnx (")
    assert out.splitlines()[1:4] == ["", "Load it in Python:", ""]
    assert [path.name for path in (run / "export").iterdir()] == ["model.onnx"]


def test_refusals_are_one_line(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    augury(capsys, "export", str(run))
    code, out, err = augury(capsys, "export", str(run))
    told = "runs/first/export/model.safetensors is there already. Move it elsewhere, or give another folder with "
    assert (code, out, err) == (2, "", told + "--output.\n")
    assert augury(capsys, "export", str(run), "--format", "gguf")[0] == 2
    assert "\x1b" not in augury(capsys, "export", str(run), "--output", "red\x1b[31m")[1]
    code, _, err = augury(capsys, "export", "nowhere")
    assert code == 2
    assert len(err.splitlines()) == 1
    monkeypatch.setattr(onnx, "_PACKAGES", ("onnx", "no_such_package"))
    code, _, err = augury(capsys, "export", str(run), "--format", "onnx")
    told = "--format onnx needs onnx, no_such_package. Install them: pip install onnx no_such_package\n"
    assert (code, err) == (2, told)
