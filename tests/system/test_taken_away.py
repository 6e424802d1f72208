"""A network taken away says of images what the run says of them: through timm, onnxruntime and `augury predict`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

AUGURY = str(Path(sys.executable).with_name("augury"))
NUMBER = 40
"""Of images that are asked about."""

THROUGH_TIMM = """
import json, sys
{first}
import timm, torch
from PIL import Image
network = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=network))
names = network.pretrained_cfg["label_names"]
with torch.no_grad():
    for path in sys.argv[2:]:
        top = network(transform(Image.open(path))[None]).softmax(1).max(1)
        print(json.dumps({{"file": path, "class": names[int(top.indices)], "probability": float(top.values)}}))
print(json.dumps(sorted(name for name in sys.modules if name.startswith("augury"))), file=sys.stderr)
"""

THROUGH_ONNXRUNTIME = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1])
said = session.get_modelmeta().custom_metadata_map
mean, std = json.loads(said["mean"]), json.loads(said["std"])
names, (channels, *size) = json.loads(said["classes"]), json.loads(said["test_input_size"])
images = np.stack([np.asarray(Image.open(path), dtype=np.float32) for path in sys.argv[2:]])[:, None]
assert channels == 1 and list(images.shape[2:]) == size
logits = session.run(["logits"], {"images": (images / 255 - np.float32(mean[0])) / np.float32(std[0])})[0]
shares = np.exp(logits - logits.max(1, keepdims=True))
shares /= shares.sum(1, keepdims=True)
for path, row in zip(sys.argv[2:], shares):
    print(json.dumps({"file": path, "class": names[int(row.argmax())], "probability": float(row.max())}))
assert not any(name.startswith(("augury", "torch", "timm")) for name in sys.modules)
"""


def said(*command: str) -> tuple[list[dict[str, Any]], str]:
    """The JSON lines that a command prints, and what it says on stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [(row["file"], row["class"]) for row in found] == [(row["file"], row["class"]) for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-4)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of images, none of which is like another."""
    folder = tmp_path_factory.mktemp("digits")
    images = (load_digits().images[-NUMBER:] * 255 / 16).round().astype(np.uint8)
    files = [str(folder / f"{number:03}.png") for number in range(NUMBER)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    return files


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ours"), [("test_resnet", False), ("resnet20_cifar", True)])
def test_all_ways_say_the_same_of_images(model: str, ours: bool, digits: list[str], tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    settings = ("--set", "optim.epochs=2", "--set", "device=cpu", "--set", "optim.lr=0.05")
    said(AUGURY, "run", "--model", model, *settings, "--with", "isda", "--output", run)
    expected, _ = said(AUGURY, "predict", run, *digits, "--format", "jsonl", "--device", "cpu")
    assert len(expected) == NUMBER
    # Not an answer that anything would give.
    assert len({row["class"] for row in expected}) > 4
    assert len({round(row["probability"], 3) for row in expected}) > NUMBER / 4

    said(AUGURY, "export", run)
    program = THROUGH_TIMM.format(first="import augury_train.backbones" if ours else "")
    found, modules = said(sys.executable, "-c", program, f"{run}/export", *digits)
    assert_same(found, expected)
    assert ours == ("augury" in json.loads(modules.splitlines()[-1]))

    said(AUGURY, "export", run, "--format", "onnx")
    assert_same(said(sys.executable, "-c", THROUGH_ONNXRUNTIME, f"{run}/export/model.onnx", *digits)[0], expected)

    # The folder is as good as the run, which is not needed any more.
    away = Path(run, "export").rename(tmp_path / "away")
    found, _ = said(AUGURY, "predict", str(away), *digits, "--format", "jsonl", "--device", "cpu")
    assert_same(found, expected)
