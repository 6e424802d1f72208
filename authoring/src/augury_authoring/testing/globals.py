"""Torch's, numpy's and Python's global generators: seeded for a while, and told apart when something touched them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from augury.randomness import derive
from augury.run import Run

State = dict[str, Any]


def state() -> State:
    """The generators' states, by name, comparable."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": tuple(torch.get_rng_state().tolist()),
        "numpy": (name, tuple(np.asarray(keys).tolist()), *rest),
        "Python": random.getstate(),
    }


def seed(*keys: int | str, only: str = "") -> None:
    """Seed the generators by the keys; those beside `only` by nothing, so that they are alike at every call."""
    seeds = {kind: derive(0, kind, *(keys if only in ("", kind) else ())) for kind in ("torch", "numpy", "Python")}
    # torch.manual_seed, without GPUs, notes a stack for each kind that it would seed later: 2 ms a call.
    torch.default_generator.manual_seed(seeds["torch"])
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seeds["torch"])
    np.random.seed(seeds["numpy"] % 2**32)
    random.seed(seeds["Python"])


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Afterwards the generators are as they were."""
    saved = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(saved[0])
        np.random.set_state(saved[1])
        random.setstate(saved[2])


def touched(call: Callable[[], object]) -> dict[str, str]:
    """What a call does to each generator that it does not leave alone: `reseeds` it, so that the state before no longer
    matters, or `draws` from it. It is called twice."""
    ends: list[State] = []
    starts: list[State] = []
    for start in ("one", "other"):
        seed(start)
        starts.append(state())
        call()
        ends.append(state())
    found = {}
    for kind in starts[0]:
        if [end[kind] for end in ends] == [start[kind] for start in starts]:
            continue
        found[kind] = "reseeds" if ends[0][kind] == ends[1][kind] else "draws"
    return found


@contextlib.contextmanager
def asked() -> Iterator[set[str]]:
    """The names of the methods that ask for `run.generator` or `run.random` while this is open."""
    names: set[str] = set()
    properties = {name: vars(Run)[name] for name in ("generator", "random")}

    def noting(own: property) -> property:
        def read(run: Run) -> object:
            names.add(run._method)
            return own.__get__(run)

        return property(read)

    for name, own in properties.items():
        setattr(Run, name, noting(own))
    try:
        yield names
    finally:
        for name, own in properties.items():
            setattr(Run, name, own)
