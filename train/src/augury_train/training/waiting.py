"""Processes that train together tell which one the others wait for, when that takes long."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass

from torch.distributed.distributed_c10d import Store

from augury.distributed import waiting

PATIENCE = 60.0
"""Seconds that processes wait for another one before that is told; they go on waiting."""
LOOKS = 12
"""How often a process looks at the others in that time."""
SILENT = (
    "not answered for {:.0f} s, and the others wait for it: it may be stopped (SIGSTOP, a debugger), or its machine "
    "swaps."
)
BUSY = (
    "been at work alone for {:.0f} s, and the others wait for it: it may read a slow data folder, fetch data, or write "
    "to a slow disk."
)
AT_MOST = "They go on waiting, for 30 minutes at most."


@dataclass
class _Seen:
    """What another process said last, and when it said something else."""

    beat: str = ""
    beat_at: float = 0.0
    place: str = ""
    place_at: float = 0.0


class Watch:
    """Look at the other processes while this one waits for them.

    Each process writes to the store which beat it is at, from a thread, and whether it waits for others. One that is
    stopped writes nothing more; one that reads slowly goes on writing, and does not wait. How long a step takes decides
    nothing: in a slow step all processes wait, for each other.
    """

    def __init__(self, store: Store, rank: int, size: int, now: float) -> None:
        """Watch from process `rank` of `size`, with a connection to the store that nobody else uses."""
        self._store, self._rank, self._size = store, rank, size
        self._beats, self._told = 0, ""
        self._answered_at = now
        self._seen = {other: _Seen(beat_at=now, place_at=now) for other in range(size) if other != rank}
        self._ended = threading.Event()

    def start(self) -> None:
        """Begin, in threads of their own: one that asks a store whose process is stopped does not come back."""
        for work in (self._exchange_all, self._judge_all):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """Ask the store nothing more."""
        self._ended.set()

    def exchange(self, now: float) -> None:
        """Write what this process is at, and read what the others are."""
        self._beats += 1
        place = f"{waiting.entered} {'waits' if waiting.depth else 'works'}"
        self._store.set(f"beat/{self._rank}", f"{self._beats};{place}")
        for other, seen in self._seen.items():
            if not self._store.check([f"beat/{other}"]):
                continue
            beat, _, place = self._store.get(f"beat/{other}").decode().partition(";")
            if beat != seen.beat:
                seen.beat, seen.beat_at = beat, now
            if place != seen.place:
                seen.place, seen.place_at = place, now
        self._answered_at = now

    def judge(self, now: float) -> str:
        """Return what to tell of those that this process waits for, once in a wait; "" where there is nothing."""
        if not waiting.depth or now - waiting.since < PATIENCE:
            self._told = ""
            return ""
        if now - self._answered_at >= PATIENCE:
            # The first process keeps the store, unless torchrun does.
            silent, working = [] if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else [0], []
        else:
            silent = [other for other, seen in self._seen.items() if now - seen.beat_at >= PATIENCE]
            working = [
                other
                for other, seen in self._seen.items()
                if other not in silent and seen.place.endswith("works") and now - seen.place_at >= PATIENCE
            ]
        told = "\n".join(
            [*(self._line(rank, SILENT) for rank in silent), *(self._line(rank, BUSY) for rank in working)]
        )
        # The first of those that wait speaks for all.
        if told == self._told or not set(range(self._rank)) <= {*silent, *working}:
            return ""
        self._told = told
        return told

    def _line(self, rank: int, what: str) -> str:
        return f"process {rank} of 0 to {self._size - 1} has {what.format(PATIENCE)} {AT_MOST}"

    def _exchange_all(self) -> None:
        # The others may have ended, and the store with them.
        with contextlib.suppress(RuntimeError, ValueError, OSError):
            while not self._ended.wait(PATIENCE / LOOKS):
                self.exchange(time.monotonic())

    def _judge_all(self) -> None:
        while not self._ended.wait(PATIENCE / LOOKS):
            if told := self.judge(time.monotonic()):
                print(told, file=sys.stderr, flush=True)
