"""What a training costs: the largest memory, and the machine that it ran on."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

_STATUS, _FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Spent:
    """What earlier sittings of a run, and this one so far, took; kept in checkpoints.

    Attributes:
        seconds, peak_bytes: as in `Costs`.
        side_passes: forward passes of other networks than the one in training.
        stage_seconds, stage_passes: as in `Costs`.
    """

    seconds: float = 0.0
    side_passes: int = 0
    peak_bytes: int | None = None
    stage_seconds: float = 0.0
    stage_passes: int = 0


def forget_peak(device: torch.device) -> None:
    """Measure the largest memory from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        _FORGET.write_text("5")
    except OSError:
        # Only Linux has it. Elsewhere the peak is that of the process.
        return


def peak_bytes(device: torch.device) -> int | None:
    """The largest memory since `forget_peak`: of the device on a GPU, else of this process; None where the system does
    not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration):
        pass
    try:
        import resource  # Unix alone has it
    except ImportError:
        return None
    # macOS counts bytes, others kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, as a reader of a result wants to know it."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
