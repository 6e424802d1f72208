"""A method takes rows out of the parts of a step in two processes: the gradient is the mean over all rows left."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import Plain, small, with_network
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury.choice import Chosen
from augury.composition import Composition

pytestmark = pytest.mark.slow

PATTERNS = {
    "unequal": (3, 1, 2, 2),
    "an empty part": (3, 0, 2, 1),
    "an empty last part": (1, 3, 2, 0),
    "all": (3, 3, 3, 3),
}
"""Images that each process keeps of its 3 in each of 4 parts."""


class Taking(augury.Method):
    """Keeps so many images of each part, and remembers them."""

    class Options(augury.Options):
        kept: tuple[int, ...]

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.images: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        batch.take(torch.arange(self.options.kept[len(self.images) % 4]))
        self.images.append(batch.images)
        self.labels.append(batch.labels[:, 0])


class Stopped(Exception):
    """The first step's gradients are there."""


def step(kept: tuple[int, ...]) -> dict[str, Any]:
    """What the first step of a run leaves in this process's batches, and the gradients it makes."""
    torch.manual_seed(0)
    config = small(optim={"batch_size": 24, "accumulation": 4})
    trainer = with_network(config, Plain())
    chosen = Chosen("taking", Taking, Taking.Options(kept=kept))
    methods = Composition([chosen], trainer.plan.spec, seed=3, ranks=trainer.ranks, host=trainer)
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.module.methods = methods

    def stop() -> None:
        raise Stopped

    trainer.loop._optimise = stop
    with pytest.raises(Stopped):
        trainer.loop.run(lambda row: None)
    return {
        "images": torch.cat(methods["taking"].images),
        "labels": torch.cat(methods["taking"].labels),
        "weights": trainer.network.state_dict(),
        "gradients": {name: p.grad for name, p in trainer.network.named_parameters()},
    }


def work(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    torch.save({name: step(kept) for name, kept in PATTERNS.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("taking")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(folder, port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_gradient_is_the_mean_over_the_rows_left_in_both(found: list[dict[str, Any]], pattern: str) -> None:
    both = [process[pattern] for process in found]
    network = Plain()
    network.load_state_dict(both[0]["weights"])
    network = network.double()
    images, labels = (torch.cat([process[key] for process in both]) for key in ("images", "labels"))
    assert len(labels) == 2 * sum(PATTERNS[pattern])
    torch.nn.functional.cross_entropy(network(images.double()), labels).backward()
    for process in both:
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(process["gradients"][name].double(), parameter.grad, rtol=1e-4, atol=1e-7)
