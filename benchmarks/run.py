"""`make bench`: every claim about speed as a ratio measured here and now, with the hardware it was measured on.

Each `bench_<name>.py` beside this file has a function `bench` that returns rows: what, ratio, unit, detail, at_least
or at_most.
Name some of them to run only those: `python benchmarks/run.py isda core`.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def hardware() -> str:
    """The processor, what torch may use of it, the GPU if any, and the versions."""
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        models = [
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        processor = models[0] if models else processor
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {gpu}; "
        f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Run one benchmark file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.bench()


def kept(row: dict[str, Any]) -> bool:
    """Whether a row keeps what it claims."""
    return row["ratio"] >= row["at_least"] if "at_least" in row else row["ratio"] <= row["at_most"]


def main(names: list[str]) -> int:
    """Run, print the table, and tell by the exit code whether every claim held."""
    console = Console()
    console.print(hardware(), highlight=False, soft_wrap=True)
    table = Table("what", "measured", "claimed", "", "detail", box=SIMPLE_HEAD, pad_edge=False)
    good = True
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        if names and path.stem.removeprefix("bench_") not in names:
            continue
        for row in rows_of(path):
            claim = f"≥ {row['at_least']:g}" if "at_least" in row else f"≤ {row['at_most']:g}"
            table.add_row(
                row["what"], f"{row['ratio']:.3g} {row['unit']}", claim, "yes" if kept(row) else "NO", row["detail"]
            )
            good = good and kept(row)
    console.print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
