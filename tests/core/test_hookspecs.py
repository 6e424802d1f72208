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
    "post_step": ["run"],
    "post_epoch": ["run", "metrics"],
}


def test_five_hooks_with_the_designs_parameters() -> None:
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


def examples(hook: str) -> list[str]:
    """The pieces of code in a hook's docstring: what is indented deeper than its text."""
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    found = re.findall(r"(?:^    .*\n?|^\n)+", text, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") for block in found if block.strip()]


def with_example(hook: str, number: int = 0) -> type[augury.Method]:
    """A method that has what the examples use, and this one's hook."""
    names: dict[str, Any] = {"augury": augury, "torch": torch}
    code = examples(hook)[number]
    if not code.startswith("@"):
        # What a wrapper does behind its `yield`.
        head = f"@augury.hookimpl(wrapper=True)\ndef {hook}(self, batch, output):\n"
        code = head + textwrap.indent(textwrap.dedent(code), "    ")
    exec(code, names)

    class Example(augury.Method):
        class Options(augury.Options):
            scale: float = Field(0.5, ge=0)
            weight: float = Field(2.0, ge=0)
            bound: float = Field(0.5, gt=0)

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


def labelled(logits: torch.Tensor) -> augury.Batch:
    """A batch of two labels a row with shares and weights."""
    batch = augury.Batch.of(torch.zeros(len(logits), 1, 2, 2), torch.zeros(len(logits)))
    batch.labels = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]])
    batch.shares = torch.rand(4, 2).softmax(1)
    batch.label_weights, batch.row_weights = torch.rand(4, 2) + 0.5, torch.rand(4) + 0.5
    batch.smoothing = torch.zeros(4, 2)
    return batch


def test_the_losss_examples_are_three() -> None:
    assert [len(examples(hook)) for hook in hookspecs.HOOKS] == [1, 1, 3, 1, 1]


def test_the_criterions_example_is_weighed_by_augury() -> None:
    logits = torch.randn(4, 3)
    batch = labelled(logits)
    methods = augury.compose([with_example("compute_loss", 1)], num_classes=3)
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(4, 5), logits))
    expected = 0.0
    for m in range(4):
        for k in range(2):
            hinge = max(0.0, 1 - float(logits[m, batch.labels[m, k]]))
            weight = batch.row_weights[m] * batch.shares[m, k] * batch.label_weights[m, k]
            expected += float(weight) * hinge / 4
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_selections_example_leaves_the_rows_of_low_loss() -> None:
    logits = torch.tensor([[4.0, 0, 0], [0, 0, 4], [0, 4, 0], [4, 0, 0]])
    batch = augury.Batch.of(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 1, 2]))
    batch.row_weights = torch.tensor([1.0, 2.0, 3.0, 1.0])
    methods = augury.compose([with_example("compute_loss", 2)], num_classes=3)
    loss = methods.compute_loss(batch, augury.ModelOutput(torch.zeros(4, 5), logits))
    low = -logits[0].log_softmax(0)[0]
    assert float(loss) == pytest.approx(4 * float(low) / 4, rel=1e-5)


@pytest.mark.parametrize("methods", ["post_step"], indirect=True)
def test_the_steps_example_bounds_the_weights(methods: augury.Composition) -> None:
    methods.run.network = nn.Linear(3, 2)
    with torch.no_grad():
        methods.run.network.weight.copy_(torch.tensor([[3.0, -2.0, 0.25], [0.5, -0.5, 9.0]]))
    methods.step()
    assert methods.run.network.weight.tolist() == [[0.5, -0.5, 0.25], [0.5, -0.5, 0.5]]


@pytest.mark.parametrize("methods", ["post_epoch"], indirect=True)
def test_the_epochs_example_joins_the_row(methods: augury.Composition) -> None:
    methods["example"].count.fill_(5)
    assert methods.post_epoch({"epoch": 1}) == {"example/count": 5.0}
