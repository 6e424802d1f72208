"""Counted randomness: every draw is a function of what it is for, so nothing has to be replayed to get it again.

An image's transforms draw from (run seed, epoch, view, image); a method draws from (run seed, its name, step, rank).
Adding a method therefore changes no other draw, and resuming needs no generator state.
"""

from __future__ import annotations

import hashlib
import random

import torch


def derive(seed: int, *keys: int | str) -> int:
    """A seed in [0, 2**63) that depends on `seed` and on every key, in order."""
    text = repr((seed, *keys)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded by `derive`."""
    return torch.Generator(device).manual_seed(derive(seed, *keys))


class Draws:
    """The random numbers of one method in one of its hooks: reseeded when the step changes, so they depend on the step
    and on nothing before it."""

    def __init__(self, seed: int, *keys: int | str, rank: int) -> None:
        self._seed, self._keys, self._rank = seed, keys, rank
        self._torch, self._device = torch.Generator(), torch.device("cpu")
        self._host = random.Random()
        self._torch_step: object = None
        self._host_step: object = None

    def torch(self, step: int | str, device: torch.device, again: bool = False) -> torch.Generator:
        """The generator on the training device, for tensors; `again`: from the step's beginning once more."""
        if device != self._device:
            self._torch, self._device, self._torch_step = torch.Generator(device), device, None
        if (step, again) != self._torch_step:
            self._torch.manual_seed(derive(self._seed, *self._keys, step, "device", self._rank))
            self._torch_step = step, again
        return self._torch

    def host(self, step: int | str, again: bool = False) -> random.Random:
        """The generator on the host, for decisions that Python takes (reading a device's number would stall it).

        All processes decide alike: a batch that one of them mixes and another does not could not be gathered.
        """
        if (step, again) != self._host_step:
            self._host.seed(derive(self._seed, *self._keys, step, "host"))
            self._host_step = step, again
        return self._host
