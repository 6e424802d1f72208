"""Methods that declare other things of themselves than they do, which the contract suite must tell."""

from __future__ import annotations

from typing import Any

import torch
from tests.authoring.faulty_methods import Wrapper
from torch import Tensor

import augury
from augury import Batch, ModelOutput, Run, Spec, hookimpl


class SaysNothingOfViews(augury.Method):
    """Compares two views, and does not say what mixing would do to that."""

    views = 2

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Wrapper:
        loss = yield
        first, second = output.logits.unflatten(0, (batch.views, -1))[:2]
        return loss + (first - second).square().mean()


class DeclaresTheUnknown(augury.Method):
    """A name that no class attribute has."""

    @classmethod
    def declares(cls, options: Any) -> tuple[str, ...]:
        return ("reads_image",)

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput) -> Wrapper:
        loss = yield
        return loss + 0.1 * output.logits.square().mean()


class LooksAtImages(augury.Method):
    """In the loss, without a word."""

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Wrapper:
        loss = yield
        brightness = batch.images.flatten(1).mean(1)
        return loss + (brightness * output.logits.mean(1)).square().mean()


class _Own(augury.Method):
    """A criterion as it should be."""

    def of(self, logits: Tensor, plain: Tensor, batch: Batch) -> Tensor:
        log_p = logits.log_softmax(2).gather(2, batch.labels[:, :, None]).squeeze(2)
        smooth = plain.log_softmax(1).mean(1, keepdim=True)
        per_label = (batch.smoothing - 1) * log_p - batch.smoothing * smooth
        return (batch.shares * batch.label_weights * per_label).sum(1)


class ReadsUndeclared(_Own):
    @hookimpl
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Tensor:
        given = output.logits[:, None].expand(-1, batch.labels.shape[1], -1)
        return self.of(given if output.class_logits is None else output.class_logits, output.logits, batch)


class ClaimsToRead(_Own):
    reads_class_logits = True

    @hookimpl
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Tensor:
        return self.of(output.logits[:, None].expand(-1, batch.labels.shape[1], -1), output.logits, batch)


class SetsUndeclared(augury.Method):
    """Sets logits of each label without a word, at which augury itself refuses it."""

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Wrapper:
        output.class_logits = output.logits[:, None].expand(-1, batch.labels.shape[1], -1) / 2
        return (yield)


class TwoViewsExactly(augury.Method):
    """Takes a batch of three for one of two."""

    views = 2
    views_alike = True

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Wrapper:
        loss = yield
        first, second = output.logits.split(len(batch) // batch.views)
        return loss + (first - second).square().mean()


class CountsTwice(augury.Method):
    """A running mean that moves whenever the loss is computed."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.register_buffer("mean", torch.zeros(spec.num_classes))

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput, run: Run) -> Wrapper:
        self.mean += 0.1 * (run.ranks.mean(output.logits.detach().mean(0)) - self.mean)
        loss = yield
        return loss + 0.1 * (output.logits - self.mean).square().mean()


class RetellsARow(_Own):
    """A criterion whose losses are one number."""

    @hookimpl
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Tensor:
        return self.of(output.logits[:, None].expand(-1, batch.labels.shape[1], -1), output.logits, batch).mean()
