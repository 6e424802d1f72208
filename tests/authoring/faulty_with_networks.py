"""Methods that use the network, another network, or rows' weights: each with one fault, or sound."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from tests.authoring.faulty_methods import Wrapper
from torch import Tensor, nn

import augury
from augury import Batch, ModelOutput, Run, Spec, hookimpl


def spread(logits: Tensor) -> Tensor:
    """M x 1 x 1 x 1, of each row by itself."""
    return logits.std(1)[:, None, None, None]


class SetsRowWeights(augury.Method):
    """Throws away the row weights that were there."""

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.row_weights = 1 / (1 + batch.images.flatten(1).norm(dim=1))


class SetsRowWeightsInTheLoss(augury.Method):
    """Of some rows alone, where the criterion is about to read them."""

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch) -> Wrapper:
        batch.row_weights[::2] = 0.5
        return (yield)


class SetsSmoothing(augury.Method):
    """Throws away the smoothing that was there."""

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.smoothing = torch.full_like(batch.smoothing, 0.2)


class MultipliesRowWeights(augury.Method):
    """Without a fault; some rows have the weight 0, and some are smoothed wholly."""

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        size = batch.images.flatten(1).norm(dim=1)
        large = size >= 0.9 * size.mean()
        batch.row_weights = batch.row_weights * size * large
        batch.row_weights = batch.row_weights / batch.row_weights.mean()
        batch.smoothing = batch.smoothing + (1 - batch.smoothing) * (~large)[:, None]


class Distils(augury.Method):
    """Without a fault: a frozen teacher that a stage trains."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        assert spec.build_network is not None
        self.keep(spec.build_network())

    def keep(self, network: nn.Module) -> None:
        self.teacher: Any = self.freeze(network)

    def answers(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher(images).softmax(1)

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Wrapper:
        loss = yield
        return loss + F.cross_entropy(output.logits, self.answers(batch.images))

    reads_images = True


class TeacherInAList(Distils):
    """The teacher is in no checkpoint; a resumed run builds another one."""

    def keep(self, network: nn.Module) -> None:
        self.teacher = [network.eval()]

    def answers(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.teacher[0](images).softmax(1)


class TeacherOfTheStage(Distils):
    """Likewise; the stage trains it, and a resumed run has no stage."""

    def keep(self, network: nn.Module) -> None:
        self.__dict__["teacher"] = network.eval()

    @hookimpl
    def pre_train_stage(self, run: Run) -> None:
        self.keep(run.train_network())


class ExtraPass(augury.Method):
    """A pass in training mode, which counts the images twice in BatchNorm's statistics."""

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        batch.images = batch.images * (1 + 0.01 * spread(run.network(batch.images)))


class ExtraPassInTheLoss(augury.Method):
    reads_images = True

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput, run: Run) -> Wrapper:
        loss = yield
        other = run.network(batch.images + 0.01)
        return loss + 0.1 * (other - output.logits).square().mean()


class ExtraPasses(augury.Method):
    """Without a fault: a pass in evaluation mode, and one in training mode that puts the statistics back."""

    reads_images = True

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        modes = {module: module.training for module in run.network.modules()}
        run.network.eval()
        batch.images = batch.images * (1 + 0.01 * spread(run.network(batch.images)))
        for module, mode in modes.items():
            module.training = mode

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput, run: Run) -> Wrapper:
        loss = yield
        kept = {name: buffer.clone() for name, buffer in run.network.named_buffers()}
        other = run.network(batch.images + 0.01)
        for name, buffer in run.network.named_buffers():
            buffer.copy_(kept[name])
        return loss + 0.1 * (other - output.logits).square().mean()


class ChangesWeights(augury.Method):
    """Leaves the weights a little larger."""

    @hookimpl
    def augment_batch(self, run: Run) -> None:
        for parameter in run.network.parameters():
            parameter.mul_(1.01)


class ResetsTheClassifier(augury.Method):
    """After each epoch, so that other weights are saved than were measured."""

    @hookimpl
    def post_epoch(self, run: Run) -> None:
        with torch.no_grad():
            run.classifier.bias.fill_(0.5)


class StepsApart(augury.Method):
    """After each step, every process moves the weights by itself."""

    @hookimpl
    def post_step(self, run: Run) -> None:
        run.network.fc.bias.add_(0.1 * (1 + run.ranks.rank))


class Ends(augury.Method):
    """Without a fault: bounds the weights after each step, and moves them by a mean over the images after the last."""

    @hookimpl
    def post_step(self, run: Run) -> None:
        for parameter in run.network.parameters():
            parameter.clamp_(-1, 1)
        if run.step + 1 == run.total_steps:
            means = torch.stack([batch.images.mean() for batch in run.loader("augmented")])
            run.network.fc.bias.add_(0.1 * run.ranks.mean(means.mean()))


class LooksAround(augury.Method):
    """Without a fault: its loss is that of weights nearby, which it puts back; its stage changes the weights."""

    @hookimpl
    def pre_train_stage(self, run: Run) -> None:
        with torch.no_grad():
            run.classifier.bias.fill_(0.5)

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        kept = copy.deepcopy(run.network.state_dict())
        for parameter in run.network.parameters():
            parameter.mul_(1.1)
        batch.images = batch.images * (1 + 0.01 * spread(run.network(batch.images)))
        run.network.load_state_dict(kept)


class GradientPenalty(augury.Method):
    """Without a fault: differentiates the loss by the logits, and the features by a weight."""

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput, run: Run) -> Wrapper:
        loss = yield
        (by_logits,) = torch.autograd.grad(loss, output.logits, create_graph=True)
        first = next(run.network.parameters())
        (by_weight,) = torch.autograd.grad(output.features.mean(0).sum(), first, create_graph=True)
        return loss + (len(by_logits) * by_logits).square().mean() + 0.1 * run.ranks.mean(by_weight).square().sum()


class UsesUpTheGraph(augury.Method):
    """Without a fault: its gradient frees the graph of a part of its own."""

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput) -> Wrapper:
        loss = yield
        logits = output.logits.detach().requires_grad_()
        (steepness,) = torch.autograd.grad(logits.softmax(1).square().sum(), logits)
        return loss + (steepness * output.logits).mean()


class ReadsTheRow(augury.Method):
    """Without a fault: looks at what every row of an epoch has."""

    @hookimpl
    def post_epoch(self, metrics: dict[str, Any]) -> dict[str, float]:
        return {"x": metrics["train_loss"] * metrics["lr"] + metrics["train_seconds"] + metrics["epoch"]}
