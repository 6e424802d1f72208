"""What training and the command cost: a run without methods against a plain loop, and the start of the command."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from augury_train.config import read_config
from augury_train.data.view import DataSet
from augury_train.training.loop import Loop
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer

EPOCHS, BATCH = 6, 64


def plain_epoch(network: torch.nn.Module, optimizer: torch.optim.Optimizer, data: DataSet, device: str) -> None:
    """One epoch as one would write it by hand: images on the device, a random crop for each, SGD."""
    images, labels = data.pixels(data.splits.train), data.splits.train.labels.to(device)
    # One-channel images from numpy count as channels-last, which is quicker; both loops are to have the usual layout.
    images = torch.empty(images.shape, dtype=images.dtype).copy_(images).to(device)
    mean = torch.tensor(data.format.mean, device=device)[:, None, None]
    std = torch.tensor(data.format.std, device=device)[:, None, None]
    height, width = images.shape[-2:]
    total = torch.zeros((), device=device)
    network.train()
    order = torch.randperm(len(images), device=device)
    for step in range(len(images) // BATCH):
        rows = order[step * BATCH : (step + 1) * BATCH]
        windows = F.pad(images[rows], (1, 1, 1, 1)).unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(0, 3, (2, BATCH), device=device)
        batch = (windows[torch.arange(BATCH, device=device), :, top, left].float() / 255 - mean) / std
        loss = F.cross_entropy(network(batch), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach()
    float(total)


def throughput(model: str, device: str) -> dict[str, Any]:
    """Training throughput of both, epoch by epoch in turn, in one process and, on the CPU, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = read_config(
        {"device": device, "model": {"name": model}, "optim": {"epochs": EPOCHS, "batch_size": BATCH, "lr": 0.05}}
    )
    plan = make_plan(config)
    network = plan.build_network().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    seconds: dict[str, list[float]] = {"augury": [], "plain": []}

    def plain(row: dict[str, Any]) -> None:
        started = time.perf_counter()
        plain_epoch(network, optimizer, plan.data, device)
        seconds["plain"].append(time.perf_counter() - started)
        seconds["augury"].append(row["train_seconds"])

    loop: Loop = Trainer(plan).loop
    loop.on_augmented = None
    loop.run(plain)
    torch.set_num_threads(threads)
    # The first epoch of each warms up.
    ratios = [p / a for p, a in zip(seconds["plain"][1:], seconds["augury"][1:], strict=True)]
    rate = len(plan.data.splits.train) // BATCH * BATCH / statistics.median(seconds["augury"][1:])
    return {
        "what": f"images/s without methods against a plain loop ({model}, digits, batch {BATCH}, {device}, 1 thread)",
        "ratio": statistics.median(ratios),
        "unit": "× as fast",
        "at_least": 0.95,
        "detail": f"{rate:,.0f} images/s; pairs {min(ratios):.2f} to {max(ratios):.2f}",
    }


def start(arguments: list[str], at_most: float) -> dict[str, Any]:
    """Seconds of a whole process."""
    command = [str(Path(sys.executable).with_name("augury")), *arguments]
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(6):
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
            times.append(time.perf_counter() - started)
    return {
        "what": f"augury {' '.join(arguments)}",
        "ratio": statistics.median(times[1:]),
        "unit": "s",
        "at_most": at_most,
        "detail": f"{min(times[1:]):.2f} to {max(times[1:]):.2f} s",
    }


def bench() -> list[dict[str, Any]]:
    """All rows."""
    rows = [start(["--help"], 0.3), start(["plugins", "list"], 0.5)]
    rows.append(throughput("resnet20_cifar", "cpu"))
    if torch.cuda.is_available():
        rows.append(throughput("resnet20_cifar", "cuda"))
    return rows
