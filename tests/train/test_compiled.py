"""The forward pass as a run compiles it: one graph for each family, with the outputs and gradients of the plain one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.train.small_runs import losses_of, small
from tests.train.test_networks import SMALL
from torch import Tensor

import augury
from augury_train import backbones
from augury_train.config import ModelConfig
from augury_train.training.plan import make_plan
from augury_train.training.step import Step
from augury_train.training.trainer import Trainer

FAMILIES: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_vit": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "densenetbc100_12_cifar": SMALL["densenetbc100_12_cifar"],
    "wrn28_10_cifar": {**SMALL["wrn28_10_cifar"], "drop_rate": 0.3},
    "shakeshake26_2x32d_cifar": {"depth": 8, "width": 4},
    "shakepyramidnet110_cifar": {"depth": 8, "alpha": 6},
}
QUICK = ("wrn28_10_cifar",)


@contextlib.contextmanager
def compiled_by(backend: str) -> Iterator[None]:
    """While this is open, torch.compile takes this backend, and refuses a pass that is not one graph."""
    compile_ = torch.compile
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function: compile_(function, backend=backend, fullgraph=True))
        yield
    torch._dynamo.reset()


def steps(
    name: str, size: int, *, compiled: bool, channels_last: bool = False, bf16: bool = False
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The losses and logits of three batches as `Step` makes them, in training, and the gradients that they add."""
    torch.manual_seed(0)
    network = backbones.build(ModelConfig(name=name, kwargs=FAMILIES[name]), 5, (3, size, size)).train()
    if channels_last:
        network.to(memory_format=torch.channels_last)
    methods = augury.compose([], num_classes=5, classifier=network.get_classifier(), total_steps=3)
    step = Step(network, methods, compiled=compiled, channels_last=channels_last)
    made = []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        batch = methods.batch(torch.randn(4, 3, size, size, generator=draw), torch.arange(4))
        torch.manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, logits = step(batch)
        loss.backward()
        made += [loss.detach(), logits]
    return made, {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def assert_one_graph(name: str, backend: str, **how: bool) -> None:
    size = 32 if name.startswith("test_") else 16
    with compiled_by(backend):
        counted = torch._dynamo.utils.counters
        made, gradients = steps(name, size, compiled=True, **how)
        assert counted["stats"]["unique_graphs"] == 1, "all batches run the same graph"
        assert not counted["graph_break"]
    expected, wanted = steps(name, size, compiled=False, **how)
    near = {"rtol": 0.05, "atol": 0.05} if how.get("bf16") else {"rtol": 1e-3, "atol": 1e-4}
    assert gradients.keys() == wanted.keys()
    for one, other in zip([*made, *gradients.values()], [*expected, *wanted.values()], strict=True):
        torch.testing.assert_close(one, other, **near)


@pytest.mark.parametrize("name", QUICK)
def test_a_compiled_pass_is_one_graph(name: str) -> None:
    assert_one_graph(name, "eager", channels_last=True, bf16=True)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"channels_last": True, "bf16": True}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_is_one_graph_with_the_plain_passs_gradients(name: str, how: dict[str, bool]) -> None:
    assert_one_graph(name, "aot_eager", **how)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_generated_code_has_the_plain_passs_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "wrn28_10_cifar"
    # Dropout draws otherwise in generated code.
    monkeypatch.setitem(FAMILIES, name, {**FAMILIES[name], "drop_rate": 0.0})
    assert_one_graph(name, "inductor", channels_last=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_run_with_methods_trains_to_the_same_losses() -> None:
    """Two steps an epoch, the last batch like the others; epochs, evaluation between them and mixing make no second
    graph."""
    losses = []
    for compiled in (False, True):
        config = small(
            ("dcutmix", {"prob": 1.0}),
            "isda",
            "agmax",
            model={"name": "resnet20_cifar", "kwargs": {"depth": 8}},
            train={"compile": compiled, "ema": 0.9},
        )
        with compiled_by("aot_eager"):
            losses.append(losses_of(Trainer(make_plan(config))))
            graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert graphs == int(compiled)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
