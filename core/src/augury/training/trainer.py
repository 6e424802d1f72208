"""A whole run: from settings to a folder with a trained network."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors.torch import load_file
from torch import Tensor, nn

from augury import backbones
from augury.batch import Batch
from augury.composition import Composition
from augury.config import RunConfig, load_config, save_config
from augury.data.datasets import DataSet
from augury.data.memory import MemoryLoader
from augury.data.transforms import Pipeline
from augury.distributed import Ranks
from augury.errors import UsageError
from augury.evaluation import evaluate
from augury.pictures import batch_picture
from augury.randomness import derive
from augury.registry import Register
from augury.training.checkpoint import load_checkpoint, save_checkpoint, save_weights
from augury.training.loop import Interrupted, Loop, Reporter, Silent, StopRequest
from augury.training.plan import Plan, make_plan
from augury.training.recorder import METRICS, Recorder, read_rows

CONFIG, RESULT = "config.json", "result.json"


@dataclass(frozen=True)
class Result:
    """What a finished run came to; accuracies in percent. `test_*` are None where there is no test split.

    `best_*` is the epoch with the highest validation accuracy, the first of those that share it.
    """

    folder: str
    epochs: int
    best_epoch: int
    best_val_top1: float
    last_val_top1: float
    best_test_top1: float | None
    last_test_top1: float | None
    seconds: float
    images_per_second: float


class Trainer:
    """One run. It is also what lends methods the data, a trainer for auxiliary networks and a place for figures
    (`augury.run.Host`)."""

    def __init__(self, plan: Plan, *, reporter: Reporter | None = None) -> None:
        """Build what the plan says; nothing is written yet.

        Args:
            plan: a checked run.
            reporter: who watches.
        """
        self.plan, self.config, self.data = plan, plan.config, plan.data
        self.reporter = reporter or Silent()
        self.folder: Path | None = None
        self.recorder: Recorder | None = None
        self.stop = StopRequest()
        self.accelerator = _accelerator(self.config.device)
        self.ranks = Ranks()
        device, seed = self.accelerator.device, self.config.seed
        self.pipelines = {
            name: Pipeline(transforms, self.data.mean, self.data.std, device)
            for name, transforms in plan.transforms.items()
        }
        torch.manual_seed(derive(seed, "network"))
        self.network = plan.build_network().to(device)
        self.methods = Composition(
            plan.chosen,
            plan.spec,
            seed=seed,
            device=device,
            ranks=self.ranks,
            network=self.network,
            classifier=backbones.classifier_of(self.network),
            host=self,
        )
        self.loop = self._loop(self.accelerator, self.network, self.methods, seed)
        self.loop.on_augmented = self._draw_batch

    def _loop(self, accelerator: Accelerator, network: nn.Module, methods: Composition, seed: int) -> Loop:
        loader = MemoryLoader(
            self.data.train,
            self.pipelines,
            shares=methods.shares,
            views=methods.views,
            batch_size=self.config.optim.batch_size,
            seed=seed,
            device=accelerator.device,
            ranks=self.ranks,
        )
        return Loop(accelerator, network, methods, loader, self.config.optim, self.reporter, self.stop)

    # What methods are lent.

    def loader(self, pipeline: str) -> Iterator[Batch]:
        """One pass over the training images, as `Run.loader` says."""
        return self.loop.loader.one_pass(pipeline)

    def train_network(self, pipeline: str, key: str) -> nn.Module:
        """Train a fresh network without methods, as `Run.train_network` says; its last epoch is returned, its draws
        are `key`'s."""
        seed = derive(self.config.seed, key, "stage")
        torch.manual_seed(seed)
        # An accelerator of its own, since one keeps all that it prepared.
        accelerator = _accelerator(self.config.device)
        network = self.plan.build_network().to(accelerator.device)
        alone = Composition([], self.plan.spec, seed=seed, device=accelerator.device, ranks=self.ranks)
        alone.shares = {name: float(name == pipeline) for name in alone.shares}
        self._loop(accelerator, network, alone, seed).run(lambda row: None, what=f"{key}: pre-train stage")
        return network.eval()

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Keep a figure in the run folder and in TensorBoard."""
        if self.recorder is not None:
            self.recorder.figure(name, figure, step)

    def _draw_batch(self, batch: Batch, before: Tensor) -> None:
        if self.recorder is not None:
            figure = batch_picture(batch, before, self.data.classes, self.data.mean, self.data.std)
            self.recorder.figure("batch", figure, 0)

    # The run.

    def run(self, folder: Path, *, resume: bool = False) -> Result:
        """Train in `folder`.

        Args:
            folder: must not exist, unless `resume`.
            resume: go on from the newest checkpoint; from the start where there is none yet.

        Raises:
            UsageError: the folder exists, or is none of a run.
            Interrupted: the user asked to stop; a checkpoint is written.
        """
        started = time.perf_counter()
        self.folder = folder
        if not resume:
            _make_folder(folder)
            save_config(self.config, folder / CONFIG)
        (folder / "versions.json").write_text(json.dumps(_versions(), indent=2) + "\n", encoding="utf-8")
        state = load_checkpoint(folder) if resume else None
        self._best: dict[str, Any] = state["best"] if state else {"epoch": 0, "val_top1": -1.0}
        spent = state["seconds"] if state else 0.0
        self._elapsed = lambda: spent + time.perf_counter() - started
        if self.accelerator.is_main_process:
            self.recorder = Recorder(folder, epochs_done=state["loop"]["epoch"] if state else 0)
        try:
            with self.stop:
                if state:
                    self.loop.restore(state["loop"])
                else:
                    self.methods.pre_train_stage()
                    # From here on torch's own generator serves dropout; what a stage drew must not show.
                    torch.manual_seed(derive(self.config.seed, "torch", self.ranks.rank))
                    self._save()
                self.loop.run(self._end_epoch, self._save)
            return self._finish()
        except Interrupted:
            raise Interrupted(f"interrupted; what was done is kept. Go on with: augury resume {folder}") from None
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _evaluate(self, split: str) -> dict[str, float]:
        images = getattr(self.data, split)
        found = evaluate(self.network, images, self.pipelines["base"].normalise, self.accelerator.device)
        return {f"{split}_{key}": value for key, value in found.items()}

    def _end_epoch(self, row: dict[str, Any]) -> None:
        row |= self._evaluate("val")
        row |= self.methods.post_epoch(row)
        if row["val_top1"] > self._best["val_top1"]:
            self._best = {"epoch": row["epoch"], "val_top1": row["val_top1"]}
            self._save_weights("best")
        if self.recorder is not None:
            self.recorder.row(row)
        self._save()

    def _save(self) -> None:
        if self.accelerator.is_main_process and self.folder is not None:
            state = {"loop": self.loop.state(), "best": self._best, "seconds": self._elapsed()}
            save_checkpoint(self.folder, self.methods.run.step, state)

    def _save_weights(self, which: str) -> None:
        if self.accelerator.is_main_process and self.folder is not None:
            metadata = {"model": self.config.model.name, "classes": json.dumps(self.data.classes)}
            save_weights(self.folder / f"{which}.safetensors", self.network.state_dict(), metadata)

    def _finish(self) -> Result:
        assert self.folder is not None
        self._save_weights("last")
        last = self._evaluate("val") | (self._evaluate("test") if self.data.test is not None else {})
        best: dict[str, float] = {}
        if self.data.test is not None:
            self.network.load_state_dict(
                load_file(self.folder / "best.safetensors", device=str(self.accelerator.device))
            )
            best = self._evaluate("test")
        rows = read_rows(self.folder / METRICS)
        seconds = sum(row["train_seconds"] for row in rows)
        result = Result(
            folder=str(self.folder),
            epochs=self.config.optim.epochs,
            best_epoch=self._best["epoch"],
            best_val_top1=self._best["val_top1"],
            last_val_top1=last["val_top1"],
            best_test_top1=best.get("test_top1"),
            last_test_top1=last.get("test_top1"),
            seconds=self._elapsed(),
            images_per_second=self.methods.run.step * self.config.optim.batch_size / seconds,
        )
        if self.accelerator.is_main_process:
            (self.folder / RESULT).write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
        return result


def train(
    config: RunConfig,
    folder: Path,
    *,
    register: Register | None = None,
    reporter: Reporter | None = None,
    data: DataSet | None = None,
) -> Result:
    """Train as `config` says, in a new `folder`.

    Raises:
        UsageError: the folder exists, or anything that `make_plan` refuses.
    """
    _refuse_existing(folder)
    return Trainer(make_plan(config, register, data), reporter=reporter).run(folder)


def resume(
    folder: Path, *, register: Register | None = None, reporter: Reporter | None = None, data: DataSet | None = None
) -> Result:
    """Go on with the run in `folder`; a finished one only returns its result.

    Raises:
        UsageError: no run folder, or a damaged one.
    """
    config = load_config(folder / CONFIG)
    if (folder / RESULT).exists():
        return Result(**json.loads((folder / RESULT).read_text(encoding="utf-8")))
    return Trainer(make_plan(config, register, data), reporter=reporter).run(folder, resume=True)


def _refuse_existing(folder: Path) -> None:
    if folder.exists():
        raise UsageError(f"{folder} exists. Continue it with `augury resume {folder}`, or choose another --output.")


def _make_folder(folder: Path) -> None:
    _refuse_existing(folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}). Choose another --output.") from None


def _accelerator(device: str) -> Accelerator:
    # Buffers are the methods' state, equal on all ranks by construction, or BatchNorm's, which each rank keeps for
    # itself.
    return Accelerator(cpu=device == "cpu", kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("augury-core", "torch", "torchvision", "timm", "accelerate", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
