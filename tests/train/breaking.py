"""What makes numbers that are not finite: a method, at a place and in a step of one's choice, and networks."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

import augury
from augury import Batch, ModelOutput, Run, Spec, hookimpl

PLACES = {
    "images": "It begins with breaks: its `augment_batch` left `images` of the batch not finite.",
    "in place": "It begins with breaks: its `augment_batch` left `images` of the batch not finite.",
    "weights": "It begins with breaks: its `augment_batch` left `shares` of the batch not finite.",
    "class_logits": "It begins with breaks: its `compute_loss` set `class_logits` that are not finite.",
    "term": "It begins with breaks: what its `compute_loss` returned, of a finite loss.",
    "term's gradient": "It begins with breaks: the gradient of what its `compute_loss` returned. The loss is finite; "
    "the gradients of 9 of 9 parameters are not, that of breaks's `own` first.",
    "class_logits' gradient": "It begins with breaks: the gradient of the `class_logits` that its `compute_loss` set.",
}
"""Where it can break, and what is said of it."""


class Breaks(augury.Method):
    """Breaks one step (from 1), and has state of every kind: a buffer changed in place, one that is replaced, a
    parameter, extra state, and a log."""

    sets_class_logits = True

    class Options(augury.Options):
        step: int = 0
        place: str = "term"
        infinite: bool = False
        part: int = 1
        rank: int = 0

    seen: Tensor
    mean: Tensor

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.own = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(()))
        self.calls = {"made": 0}
        self._part = 0

    def get_extra_state(self) -> dict[str, int]:
        return self.calls

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state

    def _now(self, run: Run, *places: str) -> float | None:
        wanted = self.options.step, self.options.part, self.options.rank
        here = (run.step + 1, self._part, run.ranks.rank) == wanted
        value = math.inf if self.options.infinite else math.nan
        return value if here and self.options.place in places else None

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        # Which part of a step this is; no state.
        self._part = self._part + 1 if getattr(self, "_at", None) == run.step else 1
        self._at = run.step
        self.seen += len(batch)
        if (value := self._now(run, "images")) is not None:
            batch.images = batch.images + value
        if (value := self._now(run, "in place")) is not None:
            batch.images[1] = value
        if (value := self._now(run, "weights")) is not None:
            batch.shares = batch.shares.clone()
            batch.shares[0] = value

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput, run: Run) -> Generator[None, Tensor, Tensor]:
        self.mean = 0.9 * self.mean + 0.1 * output.features.detach().mean()
        self.calls["made"] += 1
        logits = output.logits[:, None].expand(-1, batch.labels.shape[1], -1)
        if (value := self._now(run, "class_logits")) is not None:
            output.class_logits = logits + value
        if self._now(run, "class_logits' gradient") is not None:
            output.class_logits = logits + (logits - logits).sqrt()
        loss = yield
        run.log("norm", self.own.norm())
        loss = loss + 0.01 * self.own.square().sum()
        if (value := self._now(run, "term")) is not None:
            loss = loss + value
        if self._now(run, "term's gradient") is not None:
            loss = loss + (self.own - self.own).sqrt().sum() + (output.logits - output.logits).sqrt().sum()
        return loss


class Passing(augury.Method):
    """Without a fault, before or behind the one that has one."""

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.images = batch.images * 1.5

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput) -> Generator[None, Tensor, Tensor]:
        loss = yield
        return loss + 1e-3 * output.logits.square().mean()


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.nan


class Normed(nn.Module):
    """Three layers with BatchNorm, in timm's shape and with as many features as the default model. One forward pass in
    training may break: the features, or the gradient of what is below `body`."""

    def __init__(self, breaks: str = "", call: int = 0) -> None:
        super().__init__()
        self.num_features = 64
        self.stem, self.norm = nn.Linear(64, 12), nn.BatchNorm1d(12)
        self.body = nn.Linear(12, 64)
        self.fc = nn.Linear(64, 10)
        self.breaks, self.call, self.calls = breaks, call, 0

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        self.calls += self.training
        hidden = self.norm(self.stem(images.flatten(1)))
        now = self.training and self.calls == self.call
        if now and self.breaks == "gradient":
            hidden = _NoGradient.apply(hidden)
        hidden = torch.tanh(self.body(hidden))
        if now and self.breaks == "features":
            hidden = hidden * math.inf
        return self.fc(hidden)


class Greedy(Normed):
    """Finds no memory for more than so many rows at once, from one of its passes in training on."""

    def __init__(self, most: int, since: int = 0) -> None:
        super().__init__()
        self.most, self.since, self.refused = most, since, 0

    def forward(self, images: Tensor) -> Tensor:
        if self.training and len(images) > self.most and self.calls >= self.since:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of ...")
        return super().forward(images)
