"""Methods with one fault each, and some without, which the contract suite must tell apart."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

import augury
from augury import Batch, ModelOutput, Run, Spec, hookimpl

Wrapper = Generator[None, Tensor, Tensor]


class Noise(augury.Method):
    """Without a fault: noise on the images."""

    class Options(augury.Options):
        strength: float = Field(0.1, ge=0, description="standard deviation of the noise")
        kind: Literal["normal", "uniform"] = Field("normal", description="its distribution")
        scale: int | None = Field(None, ge=1, le=9, description="pixels that share a draw; one when unset")

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        noise = torch.randn(batch.images.shape, generator=run.generator, device=batch.device)
        batch.images += self.options.strength * noise


class Whole(augury.Method):
    """Without a fault, with everything: a stage, draws in both hooks, dropout, parameters, buffers, images left out."""

    class Options(augury.Options):
        keep: float = Field(0.75, gt=0, le=1, description="share of a batch's images that stay")

    views = 2
    views_alike = False
    min_rows = 4
    mixes = True
    reads_images = True

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.head = nn.Sequential(nn.Linear(spec.num_classes, 6), nn.Dropout(0.3), nn.Linear(6, spec.num_classes))
        self.aux = self.freeze(spec.build_network())
        self.register_buffer("mean", torch.zeros(spec.num_classes))
        self.register_buffer("level", torch.zeros(()))

    @hookimpl
    def pre_train_stage(self, run: Run) -> None:
        self.aux.copy_from(run.train_network("base"))
        total = [batch.images.double().sum() for batch in run.loader("augmented")]
        self.level.copy_(torch.stack(total).sum() / 1e4 + torch.rand((), generator=run.generator) + run.random.random())

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        n = len(batch) // batch.views
        batch.take(torch.randperm(n, generator=run.generator)[: max(1, int(n * self.options.keep))])
        if run.random.random() < 0.5:
            rows = torch.arange(len(batch))
            share = torch.rand(len(batch), generator=run.generator)
            sources, shares = (
                torch.stack([rows, batch.permutation(run.generator)], 1),
                torch.stack([share, 1 - share], 1),
            )
            mixed = (shares[:, :, None, None, None] * batch.images[sources]).sum(1)
            batch.mix(mixed, sources, shares)

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput, run: Run) -> Wrapper:
        if not run.again:
            self.mean += 0.1 * (run.ranks.mean(output.logits.detach().mean(0)) - self.mean)
        noise = 0.01 * torch.randn(output.logits.shape, generator=run.generator)
        with torch.no_grad():
            wanted = self.aux(batch.images)
        loss = yield
        gap = (self.head(output.logits + noise) - wanted - self.mean * self.level).square().mean()
        run.log("gap", gap)
        return loss + 0.1 * gap

    @hookimpl
    def post_epoch(self, run: Run, metrics: dict[str, Any]) -> dict[str, float]:
        return {"mean": float(self.mean.norm())}


class MixesInside(augury.Method):
    """Without a fault: rows are mixed at a layer's output."""

    mixes_hidden = True

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        sources = torch.stack([torch.arange(len(batch)), batch.permutation(run.generator)], 1)
        share = run.random.random()
        batch.mix_hidden(
            run.random.choice(["conv1", "layer1", "layer2"]),
            lambda hidden: share * hidden + (1 - share) * hidden[sources[:, 1]],
            sources,
            torch.tensor([share, 1 - share]).expand(sources.shape),
        )


class HardestHalf(augury.Method):
    """Without a fault: each process keeps the images that differ most from their neighbours among its own."""

    min_rows = 2

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        images = batch.view(0).images
        apart = (images - images.roll(1, 0)).flatten(1).norm(dim=1)
        batch.take(apart.topk(len(images) // 2).indices)


class SharesOff(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.shares = batch.shares * 0.9


class SmoothsTwice(augury.Method):
    """Adds to what may be 0.1 already."""

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.smoothing = batch.smoothing + 0.95


class DrawsGlobally(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.images += 0.1 * torch.randn_like(batch.images)


class DrawsGloballyInTheLoss(augury.Method):
    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput) -> Wrapper:
        output.logits = output.logits + 0.01 * torch.randn_like(output.logits)
        return (yield)


class Reseeds(Noise):
    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        torch.manual_seed(run.step)
        batch.images += 0.1 * torch.randn(batch.images.shape, generator=run.generator)


class OwnGenerator(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.images += 0.1 * torch.randn(batch.images.shape, generator=torch.Generator().manual_seed(0))


class Detaches(augury.Method):
    @hookimpl(wrapper=True)
    def compute_loss(self) -> Wrapper:
        loss = yield
        return loss.detach()


class UnusedParameter(augury.Method):
    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.unused = nn.Parameter(torch.zeros(3))

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.images = batch.images.flip(-1)


class Forgets(augury.Method):
    """Counts its steps in an attribute of Python."""

    seen = 0

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Wrapper:
        loss = yield
        return loss * (1 + 0.01 * self.seen)

    @hookimpl
    def post_step(self) -> None:
        self.seen += 1


class ForgetsItsStage(augury.Method):
    level: Tensor | None = None

    @hookimpl
    def pre_train_stage(self, run: Run) -> None:
        self.level = torch.stack([batch.images.mean() for batch in run.loader("base")]).mean()

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Wrapper:
        loss = yield
        assert self.level is not None
        return loss * (1 + self.level)


class StageOfChance(augury.Method):
    """What its stage makes depends on numpy's global generator."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.register_buffer("level", torch.zeros(()))

    @hookimpl
    def pre_train_stage(self, run: Run) -> None:
        self.level.fill_(np.random.rand())

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Wrapper:
        loss = yield
        return loss * (1 + self.level)


class LeavesHook(augury.Method):
    """The hook does nothing in training."""

    @hookimpl
    def augment_batch(self, run: Run) -> None:
        run.classifier.register_forward_hook(lambda layer, _, output: None if layer.training else output + 1)


class LeavesEvalMode(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        run.network.eval()
        batch.images = batch.images - run.network(batch.images).mean(1)[:, None, None, None]


class OwnStatistic(augury.Method):
    """Each process averages its own features."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.register_buffer("mean", torch.zeros(spec.num_features))

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput, run: Run) -> Wrapper:
        if not run.again:
            self.mean += 0.1 * (output.features.detach().mean(0) - self.mean)
        loss = yield
        return loss + (output.features - self.mean).square().mean()


class OwnEntropy(augury.Method):
    """A function of the mean that is not linear, of each process alone."""

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput) -> Wrapper:
        loss = yield
        mean = output.logits.softmax(1).mean(0)
        return loss + 10 * (mean * mean.log()).sum()


class OwnCoin(augury.Method):
    """Each process decides for itself whether to mix."""

    mixes = True

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        if torch.rand((), generator=run.generator) < 0.5:
            sources = torch.stack([torch.arange(len(batch)), batch.permutation(run.generator)], 1)
            batch.mix(batch.images[sources].mean(1), sources, torch.full(sources.shape, 0.5))


class BoundInWords(augury.Method):
    class Options(augury.Options):
        strength: float = Field(0.1, description="of the noise; must be >= 0")

    augment_batch = Noise.augment_batch


class BoundInTheTest(augury.Method):
    class Options(augury.Options):
        strength: float = Field(0.1, description="standard deviation of the noise")

    augment_batch = Noise.augment_batch


class TakesAnything(augury.Method):
    class Options(augury.Options):
        model_config = ConfigDict(extra="allow")

        strength: float = Field(0.1, ge=0, description="standard deviation of the noise")

    augment_batch = Noise.augment_batch


class Undescribed(augury.Method):
    class Options(augury.Options):
        strength: float = 0.1

    augment_batch = Noise.augment_batch


class EvenOnly(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        pairs = batch.images.unflatten(0, (-1, 2))
        batch.images = pairs.flip(3).flatten(0, 1)


class NotAlone(augury.Method):
    """Divides by the number of rows less one, so to speak."""

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch) -> Wrapper:
        loss = yield
        return loss + 0 * torch.tensor(len(batch) - 1.0).log()


class ColourOnly(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.images = batch.images - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)


class ManyDigits(augury.Method):
    """What it adds changes with digits that bfloat16 does not have."""

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput) -> Wrapper:
        loss = yield
        return loss + 0.01 * output.features.square().mean() + 2 * (1e3 * output.logits.detach().sum(1)).sin().mean()


class LongRunsOnly(augury.Method):
    """Divides by a fraction of the steps, which a short run does not have."""

    @hookimpl(wrapper=True)
    def compute_loss(self, run: Run) -> Wrapper:
        loss = yield
        return loss * (1 + run.step % (run.total_steps // 4))


class DoubleLoss(augury.Method):
    @hookimpl(wrapper=True)
    def compute_loss(self) -> Wrapper:
        loss = yield
        return loss.double()


class DropsRows(augury.Method):
    """Without `batch.take`."""

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        rows = len(batch)
        for name, value in vars(batch).items():
            if isinstance(value, Tensor) and rows > 2:
                setattr(batch, name, value[:-2])


class MixesUndeclared(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        sources = torch.stack([torch.arange(len(batch)), batch.permutation(run.generator)], 1)
        batch.mix(batch.images[sources].mean(1), sources, torch.full(sources.shape, 0.5))


class OneLabelOnly(augury.Method):
    """Takes a row to have one label."""

    @hookimpl(wrapper=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Wrapper:
        loss = yield
        own = output.logits.gather(1, batch.labels.view(len(batch), 1))
        return loss - 0.01 * own.mean()


class OverwritesShares(augury.Method):
    """Right where a row has one label."""

    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.shares = torch.ones_like(batch.shares)


class UnknownParameter(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch, images: Tensor) -> None:
        pass


class Raises(augury.Method):
    @hookimpl
    def augment_batch(self, batch: Batch) -> None:
        batch.images = batch.images @ torch.zeros(3)
