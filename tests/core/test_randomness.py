"""Counted randomness: a draw is a function of what it is for, and of nothing that was drawn before."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from augury.randomness import Draws, derive, generator

CPU = torch.device("cpu")


def test_a_derived_seed_depends_on_the_seed_and_on_every_key_in_order() -> None:
    keys = [(), (0,), (1,), ("1",), (0, 1), (1, 0), ("isda",), ("isda", 0), ("isda0",), ("is", "da")]
    seeds = [derive(seed, *key) for seed in (0, 1) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derived_seeds_are_those_of_every_machine_and_version() -> None:
    """A run started before an update must go on with the same draws after it."""
    assert derive(0, "isda", 0, 1) == 4871279309627025169
    assert derive(2**32 - 1, 3, 0, 17) == 3296679637694495326


def test_a_generator_is_its_keys() -> None:
    first, again, other = (torch.rand(4, generator=generator(0, "x", n)) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def numbers(draws: Draws, step: int | str) -> tuple[list[float], float]:
    return torch.rand(3, generator=draws.torch(step, CPU)).tolist(), draws.host(step).random()


def test_draws_go_on_within_a_step_and_start_anew_with_the_next() -> None:
    draws = Draws(0, "isda", rank=0)
    first, more = numbers(draws, 5), numbers(draws, 5)
    later = numbers(draws, 6)
    for tensors_or_hosts in zip(first, more, later, strict=True):
        assert len({str(n) for n in tensors_or_hosts}) == 3
    assert numbers(draws, 5) == first, "no memory of what was drawn before"
    assert numbers(Draws(0, "isda", rank=0), 6) == later, "nor of steps that were taken"


@pytest.mark.parametrize("other", [(1, "isda"), (0, "agmax"), (0, "isda", "loss")], ids=["seed", "name", "hook"])
def test_another_seed_or_name_draws_other_numbers(other: tuple[Any, ...]) -> None:
    (tensor, host), (other_tensor, other_host) = numbers(Draws(0, "isda", rank=0), 3), numbers(Draws(*other, rank=0), 3)
    assert tensor != other_tensor
    assert host != other_host


def test_processes_draw_apart_on_the_device_and_decide_alike_on_the_host() -> None:
    (tensor, host), (other_tensor, other_host) = (numbers(Draws(0, "isda", rank=rank), 3) for rank in (0, 1))
    assert tensor != other_tensor
    assert host == other_host


def test_the_stage_leaves_the_first_steps_draws_alone() -> None:
    draws = Draws(0, "resmooth", rank=0)
    stage = numbers(draws, "stage")
    assert numbers(draws, 0) == numbers(Draws(0, "resmooth", rank=0), 0)
    assert stage != numbers(Draws(0, "resmooth", rank=0), 0)


def test_the_device_and_the_host_draw_apart_and_no_global_generator_moves() -> None:
    torch_state, host_state = torch.get_rng_state(), random.getstate()
    alone, both = Draws(0, "isda", rank=0), Draws(0, "isda", rank=0)
    both.host(0).random()
    assert torch.equal(torch.rand(3, generator=both.torch(0, CPU)), torch.rand(3, generator=alone.torch(0, CPU)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == host_state
