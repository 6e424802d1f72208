"""Sums, means and gathers over processes, and that one process needs none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp

from augury.distributed import Ranks

SIZE = 2
ROWS = torch.tensor([[[0.1, 0.7], [0.4, 0.2]], [[0.9, 0.3], [0.6, 0.8]]], dtype=torch.float64)
"""SIZE x R x A: each process's rows."""


def entropy(marginal: Tensor) -> Tensor:
    """A function of the mean that is not linear."""
    return -(marginal * marginal.log()).sum()


def contrast(rows: Tensor, gathered: Tensor) -> Tensor:
    """Mean over `rows` of a function of each of them and of all that were gathered, which is not linear."""
    return (rows @ gathered.t() * 3).logsumexp(1).mean() + (rows @ gathered.cos().t()).square().mean()


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE)
    ranks = Ranks()
    found: dict[str, Any] = {"rank": ranks.rank, "size": ranks.size}

    own = torch.full((3,), float(rank + 1), requires_grad=True)
    total = ranks.sum(own)
    (total * torch.arange(3.0) * (rank + 1)).sum().backward()
    found |= {"sum": total.detach(), "own": own.detach().clone(), "sum_grad": own.grad}

    rows = ROWS[rank].clone().requires_grad_()
    loss = entropy(ranks.mean(rows.mean(0)))
    loss.backward()
    found |= {"loss": loss.detach(), "loss_grad": rows.grad}

    transposed = torch.arange(6).view(2, 3).t() + 10 * rank
    gathered = ranks.gather_rows(rows)
    found |= {"gathered": gathered, "needs_grad": gathered.requires_grad, "transposed": ranks.gather_rows(transposed)}

    # Transposed twice: rows that do not lie one after the other, and a gradient that does not either.
    leaf = ROWS[rank].t().contiguous().requires_grad_()
    joined = ranks.gather_rows(leaf.t(), differentiable=True)
    loss = contrast(leaf.t(), joined)
    loss.backward()
    found |= {"joined": joined.detach(), "contrast": loss.detach(), "contrast_grad": leaf.grad.t()}

    leaf = ROWS[rank].clone().requires_grad_()
    # Each process weighs what it gathered otherwise, in a gradient that is an expanded view.
    (ranks.gather_rows(leaf, differentiable=True).sum() * (rank + 1)).backward()
    whole = ranks.gather_rows(torch.arange(3) + rank, differentiable=True)
    empty = torch.zeros(0, 2, requires_grad=True)
    nothing = ranks.gather_rows(empty, differentiable=True)
    nothing.sum().backward()
    found |= {"expanded_grad": leaf.grad, "whole": whole, "nothing": nothing.detach(), "nothing_grad": empty.grad}

    alone = Ranks([dist.new_group([r]) for r in range(SIZE)][rank])
    found |= {"alone": (alone.rank, alone.size), "alone_sum": alone.sum(own.detach())}
    leaf = ROWS[rank].clone().requires_grad_()
    contrast(leaf, alone.gather_rows(leaf, differentiable=True)).backward()
    found |= {"alone_grad": leaf.grad}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(folder,), nprocs=SIZE)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(SIZE)]


def test_every_process_knows_its_place(results: list[dict[str, Any]]) -> None:
    assert [(found["rank"], found["size"]) for found in results] == [(0, 2), (1, 2)]


def test_a_sum_is_of_all_and_so_is_its_gradient(results: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(results):
        assert found["sum"].tolist() == [3.0, 3.0, 3.0]
        assert found["own"].tolist() == [rank + 1.0] * 3, "the summand is left as it was"
        # d/d own of sum_r (r+1) <total, (0, 1, 2)>
        assert found["sum_grad"].tolist() == [0.0, 3.0, 6.0]


def test_a_function_of_the_mean_has_the_joined_batchs_gradient(results: list[dict[str, Any]]) -> None:
    joined = ROWS.flatten(0, 1).requires_grad_()
    loss = entropy(joined.mean(0))
    loss.backward()
    for rank, found in enumerate(results):
        torch.testing.assert_close(found["loss"], loss.detach())
        # Gradients are averaged over processes afterwards: what each row gets then is a half of this.
        torch.testing.assert_close(found["loss_grad"] / SIZE, joined.grad.view_as(ROWS)[rank])


def test_gathered_rows_come_in_the_order_of_processes_without_gradient(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert torch.equal(found["gathered"], ROWS.flatten(0, 1))
        assert not found["needs_grad"]
        assert found["transposed"].tolist() == [[0, 3], [1, 4], [2, 5], [10, 13], [11, 14], [12, 15]]


def test_rows_gathered_with_gradient_have_the_joined_batchs(results: list[dict[str, Any]]) -> None:
    joined = ROWS.flatten(0, 1).requires_grad_()
    loss = contrast(joined, joined)
    loss.backward()
    for rank, found in enumerate(results):
        assert torch.equal(found["joined"], ROWS.flatten(0, 1))
        # Each process's loss is of its own rows; gradients are averaged over processes afterwards.
        torch.testing.assert_close(found["contrast_grad"] / SIZE, joined.grad.view_as(ROWS)[rank], rtol=1e-12, atol=0)
    mean = torch.stack([found["contrast"] for found in results]).mean()
    torch.testing.assert_close(mean, loss.detach(), rtol=1e-12, atol=0)


def test_the_gradient_of_gathered_rows_is_the_sum_over_processes(results: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(results):
        assert torch.equal(found["expanded_grad"], torch.full_like(ROWS[rank], 1 + 2))
        assert found["whole"].tolist() == [0, 1, 2, 1, 2, 3]
        assert not found["whole"].requires_grad
        assert found["nothing"].shape == (0, 2)
        assert found["nothing_grad"].shape == (0, 2)


def test_a_group_of_its_own_is_all_there_is(results: list[dict[str, Any]]) -> None:
    for found in results:
        assert found["alone"] == (0, 1)
        assert torch.equal(found["alone_sum"], found["own"])
    for rank, found in enumerate(results):
        own = ROWS[rank].clone().requires_grad_()
        contrast(own, own).backward()
        assert torch.equal(found["alone_grad"], own.grad)


def test_one_process_is_itself() -> None:
    ranks = Ranks()
    tensor = torch.randn(3, 2, requires_grad=True)
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.sum(tensor) is tensor
    assert ranks.mean(tensor) is tensor
    gathered = ranks.gather_rows(tensor)
    assert torch.equal(gathered, tensor)
    assert not gathered.requires_grad
    rows = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: ranks.gather_rows(rows.t(), differentiable=True), rows)
