"""What processes that train together say to each other beside their sums: that they are there, and why they end."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import PartialState
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from augury.distributed import Ranks
from augury.errors import AuguryError, UsageError
from augury_train.config import RunConfig
from augury_train.machine import local_size
from augury_train.training.launch import LOST, launched, place
from augury_train.training.waiting import Watch

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long one waits for another, which may have to fetch a data set meanwhile. One that is gone is noticed at once."""
HEARING = timedelta(seconds=3)
"""How long a process that fails waits for the others to say whether they do."""
STARTING = timedelta(seconds=10)
"""The same while they start, which some do faster than others."""

_LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "tcpstore")
_store: Store | None = None
_watch: Watch | None = None


class PeerLost(AuguryError):
    """Another process of the run ended, and this one cannot go on without it."""

    exit_code = LOST


def join(config: RunConfig) -> Ranks:
    """Meet the processes that train together; nothing where this is one alone, or has met them.

    Raises:
        UsageError: more processes than GPUs.
        AuguryError: the others did not come.
    """
    rank, size = place()
    if size > 1 and not PartialState._shared_state:
        cpu = config.device == "cpu" or not torch.cuda.is_available()
        here = local_size()
        if not cpu and here > torch.cuda.device_count():
            raise UsageError(
                f"{here} processes on this machine need as many GPUs, and it has {torch.cuda.device_count()}. Start "
                "fewer of them, or train on the CPU with --set device=cpu."
            )
        try:
            PartialState(cpu=cpu, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            told = " ".join(str(error).split()[:20])
            raise AuguryError(
                f"process {rank} of {size} could not meet the others at {where} ({told}). Start all of them with the "
                "same address, a port that is free, and a network between them."
            ) from error
        atexit.register(_leave)
        if (store := _meet(STARTING)) is not None:
            global _watch
            _watch = Watch(store.clone(), rank, size, time.monotonic())
            _watch.start()
    return Ranks()


def _leave() -> None:
    if _watch is not None:
        _watch.stop()
    if dist.is_initialized():
        dist.destroy_process_group()


def by_the_first(ranks: Ranks, work: Callable[[], None]) -> None:
    """Let the first process do what only one may do, while the others wait.

    Raises:
        AuguryError: what it raised, in all of them.
    """
    _together(ranks, work if ranks.rank == 0 else None)


def one_before_the_others(ranks: Ranks, make: Callable[[], T]) -> T:
    """What `make` gives each process: first that of each machine's first one, and then those of the others, who find
    what it has fetched.

    Raises:
        AuguryError: what one of them raised, in all of them.
    """
    first = int(os.environ.get("LOCAL_RANK", ranks.rank)) == 0
    made = _together(ranks, make if first else None)
    others = _together(ranks, None if first else make)
    return cast(T, made if first else others)


def _together(ranks: Ranks, work: Callable[[], T] | None) -> T | None:
    """Do it, here where there is something to do, and raise in all processes what it raised in one."""
    refused: AuguryError | None = None
    done: T | None = None
    try:
        done = None if work is None else work()
    except AuguryError as error:
        if ranks.size == 1:
            raise
        refused = error
    for rank, told in enumerate(ranks.gather_objects(_plain(refused))):
        if told is not None:
            kind, text = told
            raise kind(text if rank == 0 else f"process {rank}: {text}")
    return done


def _plain(error: AuguryError | None) -> tuple[type[AuguryError], str] | None:
    """What can be sent of it."""
    return None if error is None else (UsageError if isinstance(error, UsageError) else AuguryError, str(error))


@contextlib.contextmanager
def losing_peers_told(ranks: Ranks, folder: Path) -> Iterator[None]:
    """Raise `PeerLost` for what torch says where another process is gone."""
    try:
        yield
    except Exception as error:
        if ranks.size == 1 or not _lost(error):
            raise
        # What is left of the group can only be waited for in vain.
        atexit.unregister(_leave)
        raise PeerLost(
            "another process of this run ended, and this one with it: see what that one says. Go on with: augury "
            f"resume {folder}"
        ) from error


def _lost(error: BaseException) -> bool:
    """Whether it came of torch.distributed, whoever raised it on."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, dist.DistError):
            return True
        if isinstance(cause, RuntimeError) and any(sign in str(cause).lower() for sign in _LOST):
            return True
        cause = cause.__cause__
    return False


def met() -> bool:
    """Whether this process has met the others, and can leave words for them."""
    return _store is not None


def last_words(text: str, tell: Callable[[str], None], error: BaseException | None = None) -> None:
    """Tell the user why this process ends: what all end of is told by the first, and what another one ends of with its
    number before it."""
    rank, size = place()
    # Whoever started them says which one was lost.
    silent = isinstance(error, PeerLost) and launched()
    if rank == 0 and not silent:
        tell(text)
    if size == 1:
        return
    told_already = False
    # They may be gone already, and their store with them.
    with contextlib.suppress(RuntimeError, ValueError, OSError):
        patience = STARTING if _store is None else HEARING
        if (store := _meet(patience)) is not None and rank == 0:
            store.set("words", text)
            _wait_for(store, [f"heard/{other}" for other in range(1, size)], patience)
        elif store is not None:
            told_already = _wait_for(store, ["words"], patience) and store.get("words").decode() == text
            store.set(f"heard/{rank}", "")
    if rank and not told_already and not silent:
        tell(f"process {rank}: {text}")


def _wait_for(store: Store, keys: list[str], patience: timedelta) -> bool:
    """Whether they came in time. The store's own waiting complains at length where they did not."""
    until = time.monotonic() + patience.total_seconds()
    while not (found := store.check(keys)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def _meet(timeout: timedelta) -> Store | None:
    """Where they leave words for each other; None where nobody said where."""
    global _store
    if _store is None and "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        found, _, _ = next(iter(rendezvous("env://", timeout=timeout)))
        _store = PrefixStore("augury", found)
    return _store
