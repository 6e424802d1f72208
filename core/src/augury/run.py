"""What a hook may use of the run it takes part in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from augury.batch import Batch, ModelOutput
from augury.distributed import Ranks
from augury.errors import UsageError
from augury.frozen import Frozen
from augury.randomness import Draws

if TYPE_CHECKING:
    from augury.method import Spec


class Host(Protocol):
    """What a trainer lends to the methods of its run. A loop of one's own may lend less: whatever is missing is refused
    where a method cannot do without it."""

    folder: Path | None

    def loader(self, pipeline: str, images: Tensor | None = None) -> Iterable[Batch]:
        """One pass over the training images, or over some of them, each made by `pipeline`."""

    def train_network(self, pipeline: str, key: str) -> nn.Module:
        """Train a fresh network as the run trains its own, without methods, on the images of `pipeline`."""

    def read_network(self, place: str) -> nn.Module:
        """Read a trained network, as `Run.read_network` says."""

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Show a matplotlib figure wherever the run's figures go."""

    def log_images(self, name: str, images: Tensor, captions: Sequence[str], step: int) -> None:
        """Show normalised images with a caption each likewise."""

    def keep(
        self, key: str, make: Callable[[], Mapping[str, Tensor]], given: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """What `make` makes, kept for when it would be made again."""


NETWORK = "network"
"""Who made an output, where no method did."""


OWN_DRAWS = {"compute_loss": ("loss",), "post_step": ("post_step",), "post_epoch": ("post_epoch",)}
"""Hooks that draw by themselves, with what tells their draws apart; the others draw one after the other."""


class Trail(Protocol):
    """Is told what becomes of a batch, place by place, by a trainer that says where numbers stopped being finite."""

    def batch(self, who: str, batch: Batch) -> None:
        """A method has changed the batch."""

    def versions(self, output: ModelOutput) -> Mapping[str, Any]:
        """The fields of an output as they are now."""

    def output(self, who: str, output: ModelOutput, before: Mapping[str, Any] | None = None) -> None:
        """The network, or a method, has set fields of the output: those that differ from `before`."""

    def loss(self, who: str, loss: Tensor) -> None:
        """A method has returned a loss."""

    def received(self, loss: Tensor) -> Tensor:
        """The loss, as a wrapper is to get it from what it wraps."""


class Scalars:
    """Means of what was logged since the last `flush`, kept on the device: logging never waits for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        value = value.detach().double() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def flush(self, ranks: Ranks, device: torch.device) -> dict[str, float]:
        """The means by name, over all processes, which must have logged the same names; forgets them."""
        means = {name: float(ranks.mean(total.to(device))) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means


@dataclass
class RunState:
    """The one state behind every method's `Run`; the composition owns it, the trainer fills in what it lends."""

    spec: Spec
    seed: int
    device: torch.device
    ranks: Ranks
    network: nn.Module | None = None
    classifier: nn.Module | None = None
    host: Host | None = None
    step: int = 0
    in_stage: bool = False
    hook: str = ""
    again: bool = False
    networks: dict[str, Frozen] = field(default_factory=dict)
    scalars: Scalars = field(default_factory=Scalars)
    trail: Trail | None = None
    """Where the loop wants to know what becomes of a batch."""

    @property
    def draws_for(self) -> int | str:
        """What draws are counted by: the step, or the pre-train stage, which leaves the first step's draws alone."""
        return "stage" if self.in_stage else self.step


class Run:
    """A run as one method sees it. It reaches no other method, and not the trainer."""

    def __init__(self, state: RunState, method: str) -> None:
        self._state = state
        self._method = method
        # Each hook draws by itself, so that a loss can be computed again with the same draws.
        self._draws = {
            hook: Draws(state.seed, method, *keys, rank=state.ranks.rank)
            for hook, keys in {"": (), **OWN_DRAWS}.items()
        }

    @property
    def step(self) -> int:
        """Optimiser steps completed, from 0."""
        return self._state.step

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self._fact("total_steps")

    @property
    def progress(self) -> float:
        """Share of the training that is done, step / total_steps, in [0, 1]."""
        return min(self.step / self.total_steps, 1.0)

    @property
    def epoch(self) -> int:
        """Epochs completed, from 0."""
        return self.step // self._fact("steps_per_epoch")

    @property
    def epochs(self) -> int:
        """Epochs of the whole training."""
        return -(-self.total_steps // self._fact("steps_per_epoch"))

    @property
    def num_classes(self) -> int:
        """C."""
        return self._state.spec.num_classes

    @property
    def network(self) -> nn.Module:
        """The network in training, images -> logits."""
        return self._given(self._state.network, "network")

    @property
    def classifier(self) -> nn.Linear:
        """The network's last layer, features -> logits; declare `linear_classifier` to be sure of it."""
        return self._given(self._state.classifier, "classifier")

    @property
    def device(self) -> torch.device:
        """Where the training runs."""
        return self._state.device

    @property
    def ranks(self) -> Ranks:
        """The processes that train together: sums and gathers over them."""
        return self._state.ranks

    @property
    def generator(self) -> torch.Generator:
        """This method's generator on the device; its draws depend on the run's seed, the method's name, the step and
        the rank alone. It goes to torch.rand, randn, randint and randperm; torch.distributions takes none, and a
        gamma of each row, of which Beta and Dirichlet are made, is torch._standard_gamma(a, generator=...)."""
        state = self._state
        return self._draws[state.hook].torch(state.draws_for, state.device, state.again)

    @property
    def random(self) -> random.Random:
        """The same on the host, for what Python decides; it decides alike in all processes."""
        state = self._state
        return self._draws[state.hook].host(state.draws_for, state.again)

    @property
    def again(self) -> bool:
        """Whether the loss of a step is computed once more, on the same batch with the same draws and other weights:
        running statistics and queues then stay as the first time left them."""
        return self._state.again

    @property
    def folder(self) -> Path | None:
        """The run's folder, None where there is none."""
        return getattr(self._state.host, "folder", None)

    def log(self, name: str, value: Tensor | float) -> None:
        """Record a number; the epoch's row shows its mean as `<method>/<name>`. A tensor stays on its device until
        then."""
        if not self._state.again:
            self._state.scalars.add(f"{self._method}/{name}", value)

    def log_figure(self, name: str, figure: Any) -> None:
        """Show a matplotlib figure as `<method>/<name>`; dropped where the loop has no place for figures."""
        if show := getattr(self._state.host, "log_figure", None):
            show(f"{self._method}/{name}", figure, self.step)

    def log_images(self, name: str, images: Tensor, captions: Sequence[str]) -> None:
        """Show images as one figure `<method>/<name>`, eight side by side; dropped where the loop has no place for it.

        Args:
            name: of the figure.
            images: n x ch x H x W float, normalised as batches are.
            captions: a text below each.
        """
        if show := getattr(self._state.host, "log_images", None):
            show(f"{self._method}/{name}", images, captions, self.step)

    def loader(self, pipeline: str, images: Tensor | None = None) -> Iterable[Batch]:
        """One pass over the training images, every row made by the pipeline of that name, one view, in the data set's
        order; the same draws each time.

        Args:
            pipeline: its name.
            images: numbers in the training split, int64, on the host: only these, in this order, in every process; when
                None all of them, an equally long share in each process. Where they do not divide, the last image fills
                up the shares: `batch.indices` tells.
        """
        load = self._lent("loader", "the data")
        return load(pipeline) if images is None else load(pipeline, images)

    def keep(
        self, name: str, make: Callable[[], Mapping[str, Tensor]], given: Mapping[str, Any] | None = None
    ) -> Mapping[str, Tensor]:
        """In a pre-train stage: what `make` makes, kept in the run's folder.

        A stage that goes on after an interruption finds it there, and so do other runs of a comparison that would make
        the same: with the same seed and settings, other methods aside. A loop that keeps nothing calls `make`.

        Args:
            name: of what is made; a file name.
            make: makes tensors by name, the same in all processes.
            given: what decides them beside the run's settings, options of this method say, as JSON has it.

        Returns:
            the tensors, on the CPU where the run keeps them.
        """
        keep = getattr(self._state.host, "keep", None)
        return make() if keep is None else keep(f"{self._method}/{name}", make, given or {})

    def train_network(self, pipeline: str = "base") -> nn.Module:
        """Train a fresh network as this run trains its own, without any method, on images of one pipeline; returns it
        in eval mode. Kept as `keep` keeps things, and gone on with where it was interrupted."""
        return self._lent("train_network", "a trainer")(pipeline, self._method)

    def read_network(self, place: str) -> Frozen:
        """Return a trained network of any architecture, frozen, to compare with: images of the batch M x ch x H x W ->
        logits M x C float32. It normalises images as its own training did, and computes in the run's precision.

        Read once, and kept in the run's folder, so that the run goes on without `place`. It is no state of the method.

        Args:
            place: a run's folder, whose best weights are meant, an exported folder, a file of weights that augury
                wrote, or a name of timm's, whose pretrained weights are meant.

        Raises:
            UsageError: there are no such weights, they are of other classes or channels, or the loop reads none.
        """
        networks, name = self._state.networks, str(place)
        if name not in networks:
            network = self._lent("read_network", "a reader of networks")(place)
            networks[name] = Frozen(network).to(self.device)
        return networks[name]

    def _lent(self, name: str, what: str) -> Callable[..., Any]:
        lent = getattr(self._state.host, name, None)
        if lent is None:
            raise UsageError(
                f"{self._method}: needs {what}, and this loop lends none (`augury.Host.{name}`). Give what it makes "
                "as an option."
            )
        return lent

    def _fact(self, name: str) -> int:
        return self._given(getattr(self._state.spec, name), name)

    def _given(self, value: Any, name: str) -> Any:
        if value is None:
            raise UsageError(f"{self._method}: needs `{name}`, which augury.compose(...) was not given. Pass {name}=….")
        return value
