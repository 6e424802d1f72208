"""What processes tell of one that they wait for: who it is, and nothing of a slow step. No time passes here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from torch.distributed.distributed_c10d import Store

from augury.distributed import waiting
from augury_train.training.waiting import PATIENCE, Watch

SILENT = (
    "process {} of 0 to {} has not answered for 60 s, and the others wait for it: it may be stopped (SIGSTOP, a "
    "debugger), or its machine swaps. They go on waiting, for 30 minutes at most."
)
BUSY = (
    "process {} of 0 to {} has been at work alone for 60 s, and the others wait for it: it may read a slow data "
    "folder, fetch data, or write to a slow disk. They go on waiting, for 30 minutes at most."
)


class Shared:
    """A store in this process."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        self.kept[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self.kept for key in keys)

    def get(self, key: str) -> bytes:
        return self.kept[key].encode()


@pytest.fixture(autouse=True)
def _waits_since_0() -> Iterator[None]:
    """This process waits from second 0 on."""
    before = waiting.entered, waiting.depth, waiting.since
    waiting.entered, waiting.depth, waiting.since = 1, 1, 0.0
    yield
    waiting.entered, waiting.depth, waiting.since = before


def watch(shared: Shared, rank: int, size: int) -> Watch:
    return Watch(cast(Store, shared), rank, size, 0.0)


def told(places: dict[int, Any], rank: int = 0, seconds: float = PATIENCE) -> list[str]:
    """What process `rank` tells in so many seconds, where each other one says at which second it is where.

    Args:
        places: gives, for a rank and a second, its place; None from when it is stopped.
    """
    shared, said = Shared(), []
    mine = watch(shared, rank, len(places) + 1)
    for second in range(int(seconds) + 1):
        for other, place in places.items():
            if (now := place(second)) is not None:
                shared.set(f"beat/{other}", f"{second};{now}")
        mine.exchange(float(second))
        said += mine.judge(float(second)).splitlines()
    return said


def test_one_that_is_stopped_is_told_once() -> None:
    stopped = {1: lambda second: "1 waits" if second < 3 else None}
    assert told(stopped, seconds=61) == []
    assert told(stopped, seconds=200) == [SILENT.format(1, 1)]


def test_one_that_works_alone_is_told_as_that() -> None:
    assert told({1: lambda second: "0 works"}, seconds=200) == [BUSY.format(1, 1)]


def test_a_slow_step_is_told_of_nobody() -> None:
    assert told({1: lambda second: "1 waits", 2: lambda second: "1 waits"}, seconds=1000) == []


def test_one_that_comes_and_goes_is_not_told() -> None:
    assert told({1: lambda second: f"{second // 20} works"}, seconds=1000) == []


def test_one_that_does_not_wait_tells_nothing() -> None:
    waiting.depth = 0
    assert told({1: lambda second: None}, seconds=1000) == []


def test_the_first_of_those_that_wait_speaks() -> None:
    stopped = {0: lambda second: None, 2: lambda second: "1 waits"}
    assert told(stopped, rank=1, seconds=200) == [SILENT.format(0, 2)]
    stopped = {0: lambda second: "1 waits", 1: lambda second: None}
    assert told(stopped, rank=2, seconds=200) == []


def test_a_store_that_does_not_answer_is_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = watch(Shared(), 1, 2)
    mine.exchange(1.0)
    assert mine.judge(59.0) == ""
    assert mine.judge(61.0) == SILENT.format(0, 1)
    # torchrun keeps one of its own, which says nothing of a process.
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    other = watch(Shared(), 1, 2)
    assert other.judge(200.0) == ""


def test_a_wait_after_another_is_told_anew() -> None:
    shared = Shared()
    mine = watch(shared, 0, 2)
    for since, now in ((0.0, 60.0), (100.0, 120.0), (100.0, 200.0)):
        waiting.since = since
        mine.exchange(now)
        assert mine.judge(now) == ("" if now == 120.0 else SILENT.format(1, 1))


def test_blocks_are_counted() -> None:
    waiting.entered = waiting.depth = 0
    with waiting, waiting:
        assert (waiting.entered, waiting.depth) == (2, 2)
    assert (waiting.entered, waiting.depth) == (2, 0)
