"""What a method's hooks cost in each step of a training, measured on a stated reference: noise and a small network."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from augury.batch import Batch, ModelOutput
from augury.composition import Composition
from augury.method import hook_implementations
from augury.passes import classifier_of
from augury.registry import Register
from augury_train.config import read_config
from augury_train.training.built import Built
from augury_train.training.costs import hardware
from augury_train.training.plan import make_plan

IMAGES, SIDE, CLASSES, MODEL = 128, 32, 10, "resnet20_cifar"
STEPS = 4
"""Steps whose draws are measured: a method may do different things in different steps."""
REPEATS = 5


@dataclass(frozen=True)
class HookCosts:
    """Seconds that the hooks of one method add to a step; None for a hook that it does not implement.

    Attributes:
        augment_batch: of the call, and of what it makes the forward pass mix.
        compute_loss: of the loss and its backward pass down to features, classifier and the method's parameters, beyond
            what the criterion alone takes on the same batch.
        post_step: of the call.
        views: factor by which the rows of a batch grow, and with them the step itself.
    """

    augment_batch: float | None
    compute_loss: float | None
    post_step: float | None
    views: int


@dataclass(frozen=True)
class ReferenceStep:
    """The step that costs are held against: forward, criterion, backward and optimiser, of no method.

    Attributes:
        images: of a batch.
        image_size: (channels, height, width).
        classes: C.
        precision: of the forward pass.
        seconds: that it takes.
        hardware: as `augury_train.training.costs.hardware` tells.
    """

    model: str
    images: int
    image_size: tuple[int, int, int]
    classes: int
    precision: str
    seconds: float
    hardware: dict[str, Any]


class CostMeter:
    """Measures methods, one at a time, on one reference."""

    def __init__(self, register: Register, *, images: int = IMAGES, device: str = "auto") -> None:
        """Measure methods of a register.

        Args:
            register: what their names mean.
            images: of a batch.
            device: as a run's setting `device`.
        """
        self._register, self._images, self._device = register, images, device

    @cached_property
    def reference(self) -> ReferenceStep:
        """The step without any method."""
        built = self._build()
        loop, device = built.loop, built.accelerator.device
        loop.step_module.train()

        def step(batch: Batch) -> None:
            loss, _ = loop.step_module(batch)
            loss.backward()
            loop.optimizer.step()
            loop.optimizer.zero_grad()

        batch = _batches(built)[0]
        times = [[_seconds(lambda: step(_copy(batch)), device)] for _ in range(REPEATS)]
        return ReferenceStep(
            model=MODEL,
            images=self._images,
            image_size=built.data.format.size,
            classes=CLASSES,
            precision={"no": "fp32"}.get(built.accelerator.mixed_precision, built.accelerator.mixed_precision),
            seconds=_typical(times),
            hardware=hardware(device),
        )

    def measure(self, name: str) -> HookCosts:
        """What the method of that name costs with the options that the register gives it, after its pre-train stage.

        Raises:
            UsageError: it cannot be used on the reference, as with options that it requires.
            MethodError: a hook of it failed.
        """
        built = self._build(name)
        built.methods.pre_train_stage()
        hooks = hook_implementations(type(built.methods[name]))
        alone = Composition([], built.plan.spec, device=built.accelerator.device)
        batches = _batches(built)
        rounds = [
            [_one_step(built, alone, step, batch, hooks) for step, batch in enumerate(batches)]
            for _ in range(REPEATS + 1)
        ]
        augment, loss, post = ([[taken[n] for taken in steps] for steps in rounds] for n in range(3))
        return HookCosts(
            augment_batch=_typical(augment) if "augment_batch" in hooks else None,
            compute_loss=_typical(loss) if "compute_loss" in hooks else None,
            post_step=_typical(post) if "post_step" in hooks else None,
            views=built.methods.views,
        )

    def _build(self, *methods: str) -> Built:
        # Two steps of images, none of which is held out.
        name = f"synthetic:classes={CLASSES},size={SIDE},images={2 * self._images}"
        data = {"dataset": name, "loader": "memory", "protocol": "paper"}
        values = {
            "device": self._device,
            "data": data | {"augmented": "crop:4 flip"},
            "model": {"name": MODEL},
            "optim": {"epochs": 1, "batch_size": self._images, "lr": 0.01},
            "train": {"trackers": []},
            "methods": [{"name": method, "options": {}} for method in methods],
        }
        return Built(make_plan(read_config(values, subject="reference"), self._register))


def _one_step(
    built: Built, alone: Composition, step: int, batch: Batch, hooks: dict[str, Any]
) -> tuple[float, float, float]:
    """Seconds of augment_batch, of compute_loss beyond the criterion's, and of post_step, in one step."""
    methods, device = built.methods, built.accelerator.device
    methods.run.step, batch = step, _copy(batch)
    augment = _seconds(lambda: methods.augment_batch(batch), device)
    if len(batch) == 0:
        return augment, 0.0, 0.0
    augment += _mixing_inside(built, batch)
    loss = 0.0
    if "compute_loss" in hooks:
        output = _outputs(built, batch)
        # The first backward pass of a shape fills caches that the second finds.
        plain = min(_seconds(lambda: _loss(alone, batch, output()), device) for _ in range(2))
        loss = _seconds(lambda: _loss(methods, batch, output()), device) - plain
    return augment, loss, _seconds(methods.step, device) if "post_step" in hooks else 0.0


def _mixing_inside(built: Built, batch: Batch) -> float:
    """Seconds of what `batch.mix_hidden` left for the forward pass, and its backward pass; 0 where there is nothing."""
    if batch.hidden is None:
        return 0.0
    caught: list[Tensor] = []
    layer = built.network.get_submodule(batch.hidden.layer)
    handle = layer.register_forward_hook(lambda _, __, output: caught.append(output.detach()))
    try:
        with torch.no_grad():
            built.network(batch.images)
    finally:
        handle.remove()
    mix, hidden = batch.hidden.mix, caught[0].requires_grad_()
    # As the forward pass would have said, without which there is no loss.
    batch.hidden.done = True
    return _seconds(lambda: mix(hidden).sum().backward(), built.accelerator.device)


def _outputs(built: Built, batch: Batch) -> Callable[[], ModelOutput]:
    """Makes what a network could have made of the batch: features, and logits that the classifier makes of them."""
    classifier, spec = classifier_of(built.network), built.plan.spec
    assert spec.num_features is not None
    draws = torch.Generator().manual_seed(0)
    drawn = torch.randn(len(batch), spec.num_features, generator=draws).relu().to(batch.device)

    def make() -> ModelOutput:
        features = drawn.clone().requires_grad_()
        return ModelOutput(features, classifier(features))

    return make


def _loss(methods: Composition, batch: Batch, output: ModelOutput) -> None:
    methods.compute_loss(batch, output).backward()


def _batches(built: Built) -> list[Batch]:
    """`STEPS` batches as training makes them."""
    loader = built.loop.loader
    made = itertools.chain.from_iterable(loader.epoch(epoch) for epoch in range(STEPS))
    return list(itertools.islice(made, STEPS))


def _copy(batch: Batch) -> Batch:
    """One that methods can change without changing this one."""
    tensors: dict[str, Any] = {key: value.clone() for key, value in vars(batch).items() if isinstance(value, Tensor)}
    return dataclasses.replace(batch, **tensors)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _typical(times: list[list[float]]) -> float:
    """Seconds a step: the median over repeated rounds, of which the first warms up, then the mean over the steps, which
    may differ by what was drawn in them. Not below 0, which differences of equals can be."""
    return max(0.0, statistics.mean(map(statistics.median, zip(*times[1:], strict=True))))
