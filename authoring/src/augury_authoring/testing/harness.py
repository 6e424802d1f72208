"""The small world that checks put a method into: a loop by hand, on noise, around the contract suite's network.

Batches depend on their number alone, and torch's, numpy's and Python's global generators are seeded anew before each
step: whatever differs between two trials is the method's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from augury.batch import PIPELINES, Batch
from augury.choice import Chosen
from augury.composition import Composition
from augury.distributed import Ranks
from augury.method import Method, Spec
from augury.passes import forward
from augury.randomness import derive, generator
from augury.run import Host
from augury_authoring.testing import globals as world
from augury_authoring.testing.network import CHANNELS, ContractNet, builder, builder_on_resume

CLASSES, SIDE, SEED = 10, 8, 3
EPOCH, STEPS = 4, 8
"""Steps of an epoch, and of a whole training."""
IMAGES = 12
TRAINING = 1000
"""Images of the training split."""
RATE = 0.05


@dataclass(frozen=True)
class Facts:
    """What a trial is to be like.

    Attributes:
        channels: of the images.
        seed: of the methods' draws.
        world: what the global generators are seeded by, beside the step.
        device: where it runs.
        autocast: whether the forward pass and the loss run under bfloat16.
        resumed: whether the training goes on from a checkpoint; networks that methods build have other weights then.
    """

    channels: int = 3
    seed: int = SEED
    world: int | str = 0
    device: str = "cpu"
    autocast: bool = False
    resumed: bool = False


def spec_of(channels: int, *, resumed: bool = False) -> Spec:
    """What methods are told. It can be sent to another process."""
    build = builder_on_resume if resumed else builder
    return Spec(
        num_classes=CLASSES,
        num_features=CHANNELS[-1],
        image_size=(channels, SIDE, SIDE),
        total_steps=STEPS,
        steps_per_epoch=EPOCH,
        num_images=TRAINING,
        class_counts=(TRAINING // CLASSES,) * CLASSES,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        build_network=build(channels, CLASSES),
        classes=tuple(str(label) for label in range(CLASSES)),
    )


@dataclass
class Trial:
    """A training by hand, in which every step can be looked at.

    Attributes:
        chosen: its methods.
        network, methods, optimizer: what a loop holds.
    """

    chosen: Iterable[Chosen]
    facts: Facts = field(default_factory=Facts)
    ranks: Ranks | None = None
    host: Host | None = None
    network: ContractNet = field(init=False)
    methods: Composition = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        facts, chosen = self.facts, list(self.chosen)
        self.images = _even(max(IMAGES, *(math.ceil(c.cls.min_rows / _views(chosen)) for c in chosen), 0))
        torch.default_generator.manual_seed(derive(0, "network"))
        self.network = builder(facts.channels, CLASSES)().to(facts.device).train()
        world.seed(facts.world, "methods")
        self.methods = Composition(
            chosen,
            spec_of(facts.channels, resumed=facts.resumed),
            seed=facts.seed,
            device=facts.device,
            ranks=self.ranks,
            network=self.network,
            classifier=self.network.fc,
            host=self.host,
        ).train()
        parameters = [p for p in (*self.network.parameters(), *self.methods.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=RATE, momentum=0.9)

    @property
    def step_number(self) -> int:
        """Optimiser steps done."""
        return self.methods.run.step

    def batch(self, number: int | None = None, images: int | None = None, *, alike: bool = False) -> Batch:
        """Batch `number`, the step's own when None, as a loader makes it: every second one with smoothed labels and
        weighted rows, as a run's settings may ask for.

        Args:
            number: what it depends on, with its size.
            images: N.
            alike: make every row of one image.
        """
        number, images = self.step_number if number is None else number, images or self.images
        draws, device = generator(0, "batch", number, images), self.facts.device
        shape = (images, self.facts.channels, SIDE, SIDE)
        pixels = [torch.randn(shape, generator=draws) for _ in range(self.methods.views)]
        labels = torch.randint(0, CLASSES, (images,), generator=draws)
        if alike:
            pixels, labels = [pixels[0][:1].expand(shape).clone() for _ in pixels], labels[:1].expand(images).clone()
        rows = images * self.methods.views
        pipeline = torch.full((rows,), len(PIPELINES) - 1) if alike else self._pipelines(rows, draws)
        given = pixels if len(pixels) > 1 else pixels[0]
        indices = (torch.arange(images) + 100 * number) % TRAINING
        batch = self.methods.batch(given, labels, pipeline=pipeline, indices=indices)
        if number % 2 and not alike:
            batch.smoothing = torch.full_like(batch.smoothing, 0.1)
            batch.label_weights = torch.where(batch.labels < CLASSES // 2, 0.5, 1.5)
        return moved(batch, device)

    def _pipelines(self, rows: int, draws: torch.Generator) -> Tensor:
        """M int64: whole views, or round(share * M) rows of each pipeline, the last one what is left."""
        if self.methods.view_pipelines:
            numbers = [self.methods.pipelines.index(name) for name in self.methods.view_pipelines]
            return torch.tensor(numbers).repeat_interleave(rows // len(numbers))
        shares = self.methods.pipeline_shares
        counts = [round(share * rows) for share in list(shares.values())[:-1]]
        made = torch.repeat_interleave(torch.arange(len(shares)), torch.tensor([*counts, rows - sum(counts)]))
        return made[torch.randperm(rows, generator=draws)]

    def augment(self, batch: Batch) -> None:
        """Let the methods change a batch."""
        self.seed("augment")
        self.methods.augment_batch(batch)

    def seed(self, what: str) -> None:
        """Seed the global generators for a part of this step."""
        world.seed(self.facts.world, self.step_number, what)

    def loss(self, batch: Batch) -> Tensor:
        """The loss of a batch that was augmented."""
        kind = torch.device(self.facts.device).type
        self.seed("loss")
        with torch.autocast(kind, torch.bfloat16, enabled=self.facts.autocast):
            return self.methods.compute_loss(batch, forward(self.network, batch))

    def descend(self, loss: Tensor | None, look: Callable[[], object] = lambda: None) -> None:
        """Finish a step as a loop does: backward and the optimiser, as far as there is a gradient, and count it.
        Gradients are cleared behind the step, so what a hook leaves in them takes part; `look` is called while they are
        there."""
        if isinstance(loss, Tensor) and loss.requires_grad and loss.numel() == 1:
            loss.backward()
            look()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.methods.step()

    def step(self, batch: Batch | None = None) -> Tensor | None:
        """One whole step; returns its loss, None where the methods left no image."""
        batch = self.batch() if batch is None else batch
        self.augment(batch)
        loss = self.loss(batch) if len(batch) else None
        self.descend(loss)
        return None if loss is None else loss.detach()

    def end_epoch(self) -> dict[str, float]:
        """What `post_epoch` makes of an epoch's row."""
        self.seed("epoch")
        return self.methods.post_epoch(epoch_row(self.step_number))


def epoch_row(step: int) -> dict[str, float]:
    """What `post_epoch` is told after so many steps, with every key that a run has."""
    return {
        "epoch": step // EPOCH,
        "step": step,
        "lr": RATE,
        "train_loss": 2.0,
        "train_top1": 40.0,
        "train_top1_share": 1.0,
        "train_seconds": 0.1,
        "images_per_second": 500.0,
        "val_top1": 50.0,
        "val_loss": 1.5,
    }


def with_state_of(made: Method, chosen: Chosen, facts: Facts) -> Chosen:
    """The same method with a copy of what `made` holds."""
    try:
        return Chosen(chosen.name, chosen.cls, chosen.options, made=copy.deepcopy(made))
    except (TypeError, RuntimeError, NotImplementedError):
        # Some things cannot be copied, a generator say; what a method must not lose can be.
        fresh = chosen.cls(chosen.options, spec_of(facts.channels))
        fresh.load_state_dict(made.state_dict())
        return Chosen(chosen.name, chosen.cls, chosen.options, made=fresh)


def moved(batch: Batch, device: str) -> Batch:
    """The batch on a device, in place."""
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            setattr(batch, name, value.to(device))
    return batch


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """Copies of the batch's fields that are tensors."""
    return {name: value.detach().clone() for name, value in vars(batch).items() if isinstance(value, Tensor)}


def clone(state: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a state, which may hold other things than tensors (`get_extra_state`)."""
    return {k: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()}


def gradients(*modules: nn.Module) -> dict[str, Tensor]:
    """The gradients that parameters have, by name."""
    named = [pair for module in modules for pair in module.named_parameters()]
    return {name: p.grad.detach().clone() for name, p in named if p.grad is not None}


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same to the last bit, NaN included."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype
        return alike and bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return not differing(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The keys whose values are not the same to the last bit, or are on one side only."""
    return [k for k in {**one, **other} if k not in one or k not in other or not same(one[k], other[k])]


def _views(chosen: list[Chosen]) -> int:
    return max((c.cls.views for c in chosen), default=1)


def _even(number: int) -> int:
    return number + number % 2
