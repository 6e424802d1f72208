"""What loading costs: the memory loader against torchvision in a DataLoader, the start on a large folder, and the
memory of the stream loader."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from augury.distributed import Ranks
from augury_train.data.loader import Order
from augury_train.data.memory import MemoryLoader
from augury_train.data.pipeline import Pipeline, parse
from augury_train.data.transforms import Frame

IMAGES, BATCH, SIDE = 10_000, 128, 32
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
FOLDER_IMAGES = 50_000


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Images in memory with a transform for each, as torchvision's CIFAR10 keeps them."""

    def __init__(self, pixels: np.ndarray[Any, Any], transform: Any) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), 0


class Cutout(torch.nn.Module):
    """The published one, on a normalised tensor."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        y, x = torch.randint(SIDE, (2,)).tolist()
        image[:, max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = 0
        return image


def images_per_second(batches: Iterable[Any]) -> float:
    """Of one pass, the first batch (which starts workers) left out."""
    iterator = iter(batches)
    next(iterator)
    started, count = time.perf_counter(), 0
    for _ in iterator:
        count += BATCH
    return count / (time.perf_counter() - started)


def loaders() -> dict[str, Any]:
    """Crop, flip and cutout on CIFAR-shaped images, pass by pass in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    frame, device = Frame((SIDE, SIDE), MEAN), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = Pipeline(parse(["crop:4", "flip", "cutout:16"], "bench", frame), frame, STD, device)
    order = Order(IMAGES, BATCH, 1, {"augmented": 1.0}, 0, Ranks())
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    ours = MemoryLoader(images, torch.zeros(IMAGES, dtype=torch.int64, device=device), order, {"augmented": pipeline})
    transform = v2.Compose(
        [
            v2.RandomCrop(SIDE, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            Cutout(),
        ]
    )
    theirs = DataLoader(Pictures(pixels, transform), BATCH, shuffle=True, num_workers=2, drop_last=True)
    rates = [(images_per_second(ours.epoch(epoch)), images_per_second(theirs)) for epoch in range(3)]
    ratios = [mine / other for mine, other in rates]
    return {
        "what": f"images/s of the memory loader against torchvision in 2 workers (crop, flip, cutout; {device.type})",
        "ratio": statistics.median(ratios),
        "unit": "× as fast",
        "at_least": 5,
        "detail": f"{rates[-1][0]:,.0f} against {rates[-1][1]:,.0f} images/s; {min(ratios):.1f} to {max(ratios):.1f}",
    }


FIRST_BATCH = """
import sys
from augury_train.config import read_config
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer
plan = make_plan(read_config({"data": {"dataset": sys.argv[1]}, "model": {"name": "resnet20_cifar"}}))
batch = next(Trainer(plan).loop.loader.epoch(0))
assert batch.images.shape[1:] == (3, 32, 32)
print(plan.loader)
"""


def large_folder(root: Path) -> dict[str, Any]:
    """From the start of the process to the first batch of a folder of 50,000 JPEG files, the second time."""
    make_folder(root / "images")
    environment = {**os.environ, "AUGURY_DATA": str(root / "data")}
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        command = [sys.executable, "-c", FIRST_BATCH, str(root / "images")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        seconds.append(time.perf_counter() - started)
    return {
        "what": f"process start to first batch, folder of {FOLDER_IMAGES:,} JPEG files, second start",
        "ratio": statistics.median(seconds[1:]),
        "unit": "s",
        "at_most": 10,
        "detail": f"first start {seconds[0]:.1f} s; loader {done.stdout.strip()}",
    }


def make_folder(root: Path) -> None:
    """A flat folder of ten classes; the files are copies of a few, made of smooth noise."""
    draw = np.random.default_rng(0)
    files = []
    for number in range(50):
        small = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        path = root.parent / f"{number}.jpg"
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
        files.append(path.read_bytes())
    for label in range(10):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(FOLDER_IMAGES // 10):
            (folder / f"{number:05}.jpg").write_bytes(files[number % len(files)])


RESIDENT = """
import sys, psutil
from augury_train.config import read_config
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer
data = {"dataset": sys.argv[1], "loader": "stream", "workers": 2, "images_per_class": 500}
loader = Trainer(make_plan(read_config({"data": data}))).loop.loader
process = psutil.Process()
for epoch in range(5):
    for batch in loader.epoch(epoch):
        pass
    print(sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]))
loader.close()
"""


def resident(root: Path) -> dict[str, Any]:
    """Memory of the stream loader's processes after each of five epochs."""
    environment = {**os.environ, "AUGURY_DATA": str(root / "data")}
    command = [sys.executable, "-c", RESIDENT, str(root / "images")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    sizes = [int(line) / 2**20 for line in done.stdout.split()]
    return {
        "what": "resident memory of the stream loader and its 2 workers after epoch 5 against epoch 1",
        "ratio": sizes[-1] / sizes[0],
        "unit": "× as large",
        "at_most": 1.05,
        "detail": ", ".join(f"{size:,.0f}" for size in sizes) + " MiB",
    }


def bench() -> list[dict[str, Any]]:
    """All rows."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        return [loaders(), large_folder(root), resident(root)]
