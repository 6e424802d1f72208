"""A run built from its plan: network, data, methods and loop, and what the methods are lent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from augury import passes
from augury.batch import Batch
from augury.composition import Composition
from augury.errors import UsageError, one_line
from augury.randomness import derive
from augury_train.backbones.sync_bn import synchronised
from augury_train.backbones.teachers import NETWORKS, read_teacher
from augury_train.data.loader import Feed, Order
from augury_train.data.memory import MemoryFeed
from augury_train.data.pipeline import Pipeline
from augury_train.data.stream import StreamFeed
from augury_train.measures import average_statistics
from augury_train.pictures import batch_picture, captioned_picture
from augury_train.training.facts import stage_facts
from augury_train.training.kept import Kept
from augury_train.training.labels import LabelPolicy
from augury_train.training.loop import Loop
from augury_train.training.optimisation import make_accelerator
from augury_train.training.plan import Plan, images_of
from augury_train.training.processes import join
from augury_train.training.recorder import Recorder
from augury_train.training.watch import Reporter, Silent, StopRequest


class Built:
    """The parts of one run, ready to train. It lends methods the data, a trainer for auxiliary networks and a place for
    figures (`augury.run.Host`)."""

    def __init__(self, plan: Plan, *, reporter: Reporter | None = None, others: Sequence[Path] = ()) -> None:
        """Build what the plan says; nothing is written yet.

        Args:
            plan: a checked run.
            reporter: who watches.
            others: folders of runs that may have made what this one's pre-train stages would make.

        Raises:
            UsageError: an image that cannot be read, or trained weights that cannot be had.
        """
        self.plan, self.config, self.data = plan, plan.config, plan.data
        self.ranks = join(plan.config)
        # The first process speaks for all.
        self.reporter = reporter if reporter is not None and self.ranks.rank == 0 else Silent()
        self.folder: Path | None = None
        self.recorder: Recorder | None = None
        self.stop = StopRequest()
        self.figures: dict[str, Any] = {}
        """What methods showed while there was no run folder."""
        self.notes: list[str] = []
        """What the user may not expect."""
        self._others = others
        self._alone = 0
        for line in plan.notes:
            self.note(line)
        self.accelerator = make_accelerator(self.config)
        device, seed = self.accelerator.device, self.config.seed
        form = self.data.format
        self.pipelines = {
            name: Pipeline(transforms, form.frame, form.std, device) for name, transforms in plan.transforms.items()
        }
        shown = form.test or form
        self._shown = Pipeline([], shown.frame, shown.std, device)
        torch.manual_seed(derive(seed, "network"))
        self.network = self._in_step(plan.build_network().to(device))
        self.feed = self._feed(device)
        self.methods = Composition(
            plan.chosen,
            plan.spec,
            seed=seed,
            device=device,
            ranks=self.ranks,
            network=self.network,
            classifier=passes.classifier_of(self.network),
            host=self,
        )
        self.loop = self._loop(self.accelerator, self.network, self.methods, seed)
        self.loop.on_augmented = self._draw_batch

    def note(self, line: str) -> None:
        """Tell the reporter, and keep it for the result."""
        line = one_line(line)
        self.notes.append(line)
        self.reporter.note(line)

    @property
    def passes(self) -> int:
        """Rows that went through a network to train so far, whoever's, in all processes."""
        return self.loop.passes + self.side_passes

    @property
    def side_passes(self) -> int:
        """Those of other networks than the one in training: frozen ones', and pre-train stages'."""
        return self._made_passes + self._kept.passes

    @property
    def _made_passes(self) -> int:
        return self._alone + self.methods.frozen_passes * self.ranks.size

    def _feed(self, device: torch.device) -> Feed:
        if self.plan.loader == "stream":
            return StreamFeed(self.data, device, self.config.data.workers)
        total, done = self.data.images, 0

        def read(more: int) -> None:
            nonlocal done
            done += more
            self.reporter.read(done, total)

        return MemoryFeed(self.data, device, read)

    def _loop(self, accelerator: Accelerator, network: nn.Module, methods: Composition, seed: int) -> Loop:
        optim, train = self.config.optim, self.data.splits.train
        order = Order(
            len(train),
            optim.batch_size,
            methods.views,
            methods.pipeline_shares,
            seed,
            self.ranks,
            parts=optim.accumulation,
            view_pipelines=methods.view_pipelines,
        )
        loader = self.feed.training(order, self.pipelines)
        labels = LabelPolicy(self.config.train, train.labels, len(self.data.classes), accelerator.device)
        return Loop(accelerator, network, methods, loader, labels, self.config, self.reporter, self.stop)

    # What methods are lent.

    def loader(self, pipeline: str, images: Tensor | None = None) -> Iterator[Batch]:
        """One pass over the training images, as `Run.loader` says."""
        return self.loop.loader.one_pass(pipeline, images)

    def keep(self, key: str, make: Callable[[], Mapping[str, Tensor]], given: Mapping[str, Any]) -> dict[str, Tensor]:
        """What a pre-train stage makes, as `Run.keep` says."""
        return self._kept.recall_or(key, make, given)

    @cached_property
    def _kept(self) -> Kept:
        device = self.accelerator.device
        facts = stage_facts(self.plan) | {
            "device": device.type,
            "precision": self.accelerator.mixed_precision,
            "processes": self.ranks.size,
        }
        return Kept(facts, self.ranks, self.folder, self._others, device, lambda: self._made_passes, self.note)

    def train_network(self, pipeline: str, key: str) -> nn.Module:
        """Train a fresh network without methods, as `Run.train_network` says; its last epoch is returned, its draws
        are `key`'s."""
        if self.loop.sharding is not None:
            raise UsageError(f"{key}: trains a network of its own, which does not go with FSDP. Leave {key} out.")
        key = f"{key}/network-{pipeline}"
        made: list[nn.Module] = []

        def make() -> Mapping[str, Tensor]:
            made.append(self._train_alone(pipeline, key))
            return made[0].state_dict()

        weights = self.keep(key, make, {})
        if not made:
            with torch.random.fork_rng(devices=[]):
                made.append(self.plan.from_scratch().build_network().to(self.accelerator.device))
            with self._kept.fitting(key):
                made[0].load_state_dict(weights)
        return made[0].eval()

    def _train_alone(self, pipeline: str, key: str) -> nn.Module:
        seed, started = derive(self.config.seed, key), time.perf_counter()
        torch.manual_seed(seed)
        # An accelerator of its own, since one keeps all that it prepared.
        accelerator = make_accelerator(self.config)
        network = self._in_step(self.plan.build_network().to(accelerator.device))
        alone = Composition([], self.plan.spec, seed=seed, device=accelerator.device, ranks=self.ranks)
        alone.pipeline_shares = {name: float(name == pipeline) for name in alone.pipelines}
        loop = self._loop(accelerator, network, alone, seed)
        loop.guard.what = f"{key.partition('/')[0]}: pre-train stage"
        kept, before = self._kept, self._kept.seconds
        if (state := kept.progress(key, {})) is not None:
            with kept.fitting(key):
                loop.restore(state)
            kept.passes += loop.passes
        found, spent = loop.passes, kept.seconds - before
        loop.run(
            lambda row: None,
            lambda: kept.save_progress(key, {}, alone.run.step, loop.state(), spent + time.perf_counter() - started),
            what=f"{key.partition('/')[0]}: pre-train stage",
        )
        self._alone += loop.passes - found
        self._share_statistics(loop.network, loop.result)
        return loop.result

    def _in_step(self, network: nn.Module) -> nn.Module:
        """The network whose normalisation sees the rows of all processes, where the settings ask for that."""
        return synchronised(network, self.ranks) if self.config.train.sync_bn else network

    def _share_statistics(self, *networks: nn.Module) -> None:
        """Before a network is measured or handed on, all processes have the same one."""
        if not self.config.train.sync_bn:
            for network in dict.fromkeys(networks):
                average_statistics(network, self.ranks)

    def read_network(self, place: str) -> nn.Module:
        """A trained network of any architecture, as `Run.read_network` says; kept in the run's folder."""
        keep = None if self.folder is None else self.folder / NETWORKS
        found = read_teacher(str(place), self.config.model, images_of(self.data), keep, self.ranks)
        found.precision = self.accelerator.mixed_precision
        return found

    def log_images(self, name: str, images: Tensor, captions: Sequence[str], step: int) -> None:
        """Keep images with captions as a figure likewise."""
        form = self.data.format
        self.log_figure(name, captioned_picture(images, captions, form.mean, form.std), step)

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Keep a figure in the run folder and in TensorBoard."""
        if self.folder is None:
            self.figures[name] = figure
        if self.recorder is not None:
            # Trackers count in epochs, as the rows do: one that has gone further refuses what comes late.
            self.recorder.figure(name, figure, self.loop.position.epoch)

    def _draw_batch(self, batch: Batch) -> None:
        if self.recorder is not None:
            self.recorder.figure("batch", self.picture(batch), 0)

    def picture(self, batch: Batch, columns: int = 8) -> Any:
        """A matplotlib figure of what the first `columns` images of a batch became."""
        form = self.data.format
        images = self.feed.originals(batch.indices[: min(columns, len(batch) // batch.views)])
        originals = self.pipelines["base"].normalise(images)
        return batch_picture(batch, originals, self.data.classes, form.mean, form.std)
