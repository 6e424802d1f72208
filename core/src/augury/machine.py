"""The machine that this program runs on."""

from __future__ import annotations

import os


def cores() -> int:
    """That this program was given: a container or a batch scheduler may give fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
