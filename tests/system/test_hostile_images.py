"""Images of every kind that a folder may hold, through the command: trained, or refused by name, or left out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

AUGURY = str(Path(sys.executable).with_name("augury"))
DRAWN = np.random.default_rng(0)


def noise(width: int = 24, height: int = 20) -> Image.Image:
    return Image.fromarray(DRAWN.integers(0, 256, (height, width, 3), dtype=np.uint8))


def animation(path: Path) -> None:
    noise().save(path, save_all=True, append_images=[noise(), noise()])


def clear_palette(path: Path) -> None:
    noise().quantize(8).save(path, transparency=bytes([0, 128, 255]))


def broken_rotation(path: Path) -> None:
    noise().save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\x99" * 20)


def deep(path: Path) -> None:
    Image.fromarray(DRAWN.integers(0, 65536, (20, 24), dtype=np.uint16)).save(path)


ODD: dict[str, Callable[[Path], object]] = {
    "one.png": lambda path: noise(1, 1).save(path),
    "wide.png": lambda path: noise(20_000, 1).save(path),
    "high.png": lambda path: noise(1, 20_000).save(path),
    "animation.gif": animation,
    "deep.png": deep,
    "print.jpg": lambda path: noise().convert("CMYK").save(path),
    "palette.png": clear_palette,
    "rotation.jpg": broken_rotation,
}
"""Those that can be read."""


def cut(path: Path) -> None:
    noise().save(path)
    path.write_bytes(path.read_bytes()[:300])


BAD: dict[str, Callable[[Path], object]] = {
    "cut.png": cut,
    "cut.jpg": cut,
    "dangling.png": lambda path: path.symlink_to("nothing"),
    "empty.png": lambda path: path.write_bytes(b""),
    "pipe.png": os.mkfifo,
    "text.jpg": lambda path: path.write_text("no picture"),
}
"""Those that cannot."""


def folder_of(root: Path, *kinds: dict[str, Callable[[Path], object]]) -> Path:
    """Photographs of noise in two classes, and one of each kind among those of the first."""
    for number in range(40):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise().save(path)
    for kind in kinds:
        for name, write in kind.items():
            write(root / "a" / name)
    return root


def command(*words: str) -> subprocess.CompletedProcess[str]:
    kept = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([AUGURY, *words], capture_output=True, text=True, timeout=600, env=kept)
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done


def run(images: Path, folder: Path, loader: str, *more: str) -> subprocess.CompletedProcess[str]:
    settings = f"data.loader={loader}", "data.workers=2", "optim.epochs=1", "optim.batch_size=8", "device=cpu"
    sets = [word for setting in (*settings, "train.trackers=[]") for word in ("--set", setting)]
    network = "--model", "resnet20_cifar"
    return command("run", "--dataset", str(images), *network, *sets, "--output", str(folder), *more)


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["memory", "stream"])
def test_odd_images_are_trained_on_and_judged(loader: str, tmp_path: Path) -> None:
    words = "random_resized_crop:0.5 flip" if loader == "stream" else "crop:2 flip"
    images = folder_of(tmp_path / "images", ODD)
    done = run(images, tmp_path / "run", loader, "--set", f"data.base={words}")
    assert done.returncode == 0, done.stderr
    done = command("evaluate", str(tmp_path / "run"), "--output", str(tmp_path / "judged"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["memory", "stream"])
def test_bad_images_are_named_before_the_training_and_can_be_left_out(loader: str, tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", BAD)
    done = run(images, tmp_path / "run", loader)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.partition(": not a readable image (")[0] for line in lines[:5]] == [
        str(images / "a" / name) for name in sorted(BAD)[:5]
    ]
    assert lines[5:] == [f"{images}: 1 more images cannot be read."]
    assert not (tmp_path / "run").exists()
    done = command("preview", "--dataset", str(images), "--output", str(tmp_path / "x.png"))
    assert (done.returncode, done.stderr.splitlines()) == (2, lines)
    done = run(images, tmp_path / "run", loader, "--skip-bad-images")
    assert done.returncode == 0, done.stderr
