"""The machine that this program runs on."""

from __future__ import annotations

import os


def cores() -> int:
    """That this program was given: a container or a batch scheduler may give fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_size() -> int:
    """How many processes train together on this machine, as whoever started them says; 1 where nobody did."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, int(said)) if said.isdecimal() else 1
