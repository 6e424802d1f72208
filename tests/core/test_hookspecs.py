"""The contract is what the design says, and the example of every hook runs as it stands in its docstring."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import nn

import augury
from augury import hookspecs

DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
PARAMETERS = {
    "pre_train_stage": ["run"],
    "augment_batch": ["batch", "run"],
    "compute_loss": ["batch", "output", "run"],
    "post_epoch": ["run", "metrics"],
}


def test_four_hooks_with_the_designs_parameters() -> None:
    assert list(PARAMETERS) == list(hookspecs.HOOKS)
    declared = {name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")}
    assert declared == PARAMETERS.keys()
    for name, parameters in PARAMETERS.items():
        signature = inspect.signature(getattr(hookspecs, name))
        assert list(signature.parameters) == parameters, name
        assert all(p.default is p.empty for p in signature.parameters.values()), name


def test_only_the_loss_is_the_first_result() -> None:
    marks = {name: getattr(hookspecs, name).augury_spec for name in hookspecs.HOOKS}
    assert [name for name, mark in marks.items() if mark["firstresult"]] == ["compute_loss"]
    assert not any(mark["historic"] for mark in marks.values())


def test_the_page_of_the_design_has_the_same_hooks() -> None:
    rows = re.findall(r"^\| `(\w+)\(([\w, ]*)\)` \|", DESIGN.read_text(encoding="utf-8"), re.MULTILINE)
    assert {name: parameters.split(", ") for name, parameters in rows} == PARAMETERS


def example(hook: str) -> str:
    """The code in a hook's docstring: what is indented deeper than its text."""
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    found = re.findall(r"(?:^    .*\n?|^\n)+", text, re.MULTILINE)
    (code,) = (textwrap.dedent(block) for block in found if block.strip())
    return code


def with_example(hook: str) -> type[augury.Method]:
    """A method that has what the examples use, and this one's hook."""
    names: dict[str, Any] = {"augury": augury, "torch": torch}
    exec(example(hook), names)

    class Example(augury.Method):
        class Options(augury.Options):
            scale: float = Field(0.5, ge=0)
            weight: float = Field(2.0, ge=0)

        def __init__(self, options: Any, spec: augury.Spec) -> None:
            super().__init__(options, spec)
            self.register_buffer("count", torch.zeros(()))

    setattr(Example, hook, names[hook])
    return Example


class Lender:
    """Lends eight rows of base images in two batches."""

    folder = None

    def loader(self, pipeline: str) -> Iterable[augury.Batch]:
        assert pipeline == "base"
        for _ in range(2):
            yield augury.Batch.of(torch.zeros(4, 1, 2, 2), torch.zeros(4))

    def train_network(self, pipeline: str, key: str) -> nn.Module:
        raise NotImplementedError

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        raise NotImplementedError


@pytest.fixture
def methods(request: pytest.FixtureRequest) -> augury.Composition:
    return augury.compose([with_example(request.param)], num_classes=3)


def batch_of(methods: augury.Composition) -> augury.Batch:
    return methods.batch(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("methods", ["pre_train_stage"], indirect=True)
def test_the_stages_example_counts_the_images(methods: augury.Composition) -> None:
    methods.pre_train_stage(Lender())
    assert methods["example"].count == 8


@pytest.mark.parametrize("methods", ["augment_batch"], indirect=True)
def test_the_batchs_example_adds_noise(methods: augury.Composition) -> None:
    batch, again = batch_of(methods), batch_of(methods)
    methods.augment_batch(batch)
    augury.compose([type(methods["example"])], num_classes=3).augment_batch(again)
    assert batch.images.any()
    assert torch.equal(batch.images, again.images), "drawn from the run's generator"
    louder = batch_of(methods)
    augury.compose([(type(methods["example"]), {"scale": 1.5})], num_classes=3).augment_batch(louder)
    torch.testing.assert_close(louder.images, 3 * batch.images)


@pytest.mark.parametrize("methods", ["compute_loss"], indirect=True)
def test_the_losss_example_adds_a_term(methods: augury.Composition) -> None:
    features = torch.full((4, 5), 3.0)
    loss = methods.compute_loss(batch_of(methods), augury.ModelOutput(features, torch.zeros(4, 3)))
    torch.testing.assert_close(loss, torch.tensor(3.0).log() + 2 * 9)


@pytest.mark.parametrize("methods", ["post_epoch"], indirect=True)
def test_the_epochs_example_joins_the_row(methods: augury.Composition) -> None:
    methods["example"].count.fill_(5)
    assert methods.post_epoch({"epoch": 1}) == {"example/count": 5.0}
