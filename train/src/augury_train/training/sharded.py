"""FSDP: a network's weights, their gradients and the optimiser's state spread over the processes, as Accelerate's
configuration asks for it (`accelerate launch --use_fsdp --fsdp_version 2`, or its environment variables).

    network -> units (the blocks that FSDP_AUTO_WRAP_POLICY names) + the rest
    forward:  the rest is gathered and stays; each unit is gathered when it is its turn
    loss:     in the same step, so the classifier's weight is whole there
    backward: each unit once more; its gradient is averaged over processes, and each process keeps its share

torch's `fully_shard` does it, on GPUs and on the CPU alike. Accelerate's own wrapping does not know the CPU, and would
spread the methods' parameters too, which are small and used outside of any forward pass.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from augury.batch import Batch
from augury.distributed import Ranks
from augury.errors import UsageError
from augury.method import Spec
from augury.passes import classifier_of
from augury_train.config import OptimConfig, RunConfig
from augury_train.training.launch import place
from augury_train.training.optimisation import make_optimizer
from augury_train.training.shares import gathered, share
from augury_train.training.step import Step

if TYPE_CHECKING:
    from accelerate import FullyShardedDataParallelPlugin


def wanted() -> bool:
    """Whether Accelerate's configuration asks for FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def problems(config: RunConfig, precision: str, spec: Spec) -> list[str]:
    """A line for each setting, of the run's and of Accelerate's, with which its weights cannot be spread.

    Args:
        config: the run's settings.
        precision: what `train.precision` means here: `no`, `bf16` or `fp16`.
        spec: of the run.
    """
    if os.environ.get("FSDP_VERSION", "1") != "2":
        return ["FSDP: augury spreads weights with version 2 alone. Set --fsdp_version 2 (FSDP_VERSION=2)."]
    train, optim = config.train, config.optim
    settings = {
        "train.ema": (train.ema is not None, "an average would be a whole copy of the network. Leave it out"),
        "train.compile": (train.compile, "shares are not compiled. Leave it out"),
        "optim.sam": (optim.sam is not None, "it moves whole weights. Leave it out"),
        "train.channels_last": (train.channels_last, "shares have no such layout. Leave it out"),
        "train.precision=fp16": (precision == "fp16", "losses are not scaled then. Set train.precision=bf16, or fp32"),
        "optim.clip_mode=agc": (
            optim.clip is not None and optim.clip_mode == "agc",
            "it compares rows of weights, which are spread. Set optim.clip_mode=norm",
        ),
    }
    lines = [f"{name} does not go with FSDP: {why}." for name, (given, why) in settings.items() if given]
    try:
        plugin = _plugin()
    except (ValueError, RuntimeError, LookupError, ImportError) as error:
        return [*lines, f"FSDP: Accelerate refuses its configuration: {' '.join(str(error).split())}"]
    return lines + _plugin_problems(plugin, spec)


def _plugin_problems(plugin: FullyShardedDataParallelPlugin, spec: Spec) -> list[str]:
    from torch.distributed.fsdp import CPUOffloadPolicy

    unsupported = {
        "FSDP_OFFLOAD_PARAMS": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "FSDP_ACTIVATION_CHECKPOINTING": plugin.activation_checkpointing,
        "FSDP_IGNORED_MODULES": plugin.ignored_modules is not None,
        "ACCELERATE_USE_PARALLELISM_CONFIG": _flag("ACCELERATE_USE_PARALLELISM_CONFIG"),
    }
    lines = [
        f"FSDP: augury does not do what {name} asks for. Leave it out." for name, given in unsupported.items() if given
    ]
    network = _on_meta(spec)
    try:
        found = _units(network, plugin)
    except ValueError as error:
        return [*lines, f"FSDP: {' '.join(str(error).split())} {_advice(network)}"]
    if not found and plugin.auto_wrap_policy is not None:
        lines.append(f"FSDP: its wrap policy finds nothing in {type(network).__name__}. {_advice(network)}")
    return lines


def notes(spec: Spec) -> tuple[str, ...]:
    """What the user may not expect of a configuration without `problems`, a line each."""
    if not spec.sharded:
        return ()
    if place()[1] == 1:
        return ("FSDP: there is one process, so nothing is spread. Start several of them.",)
    if _plugin().auto_wrap_policy is not None:
        return ()
    return (
        "FSDP: without a wrap policy all weights are gathered at once, so that gradients and the optimiser's state "
        f"alone are spread. {_advice(_on_meta(spec))}",
    )


def _on_meta(spec: Spec) -> nn.Module:
    """The network without weights."""
    assert spec.build_network is not None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return spec.build_network()


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("true", "1")


def _plugin() -> FullyShardedDataParallelPlugin:
    """Accelerate's settings, which it reads from the environment.

    Raises:
        ValueError, RuntimeError, LookupError: settings that it does not take.
        ImportError: it is older than 1.6, and does not know FSDP's second version.
    """
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy  # noqa: F401

    return FullyShardedDataParallelPlugin()


def _units(network: nn.Module, plugin: FullyShardedDataParallelPlugin) -> list[nn.Module]:
    """What is gathered by itself, from the inside out. What holds the classifier is not, so that the loss sees its
    weights.

    Raises:
        ValueError: the network has no layer of the class that the policy names.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy

    plugin.set_auto_wrap_policy(network)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, network)
    if policy is None:
        return []
    last = set(classifier_of(network).modules())

    def apart(module: nn.Module) -> bool:
        # A list of modules has no forward pass in which to be gathered.
        holds = module in last or last <= set(module.modules())
        return not holds and not isinstance(module, nn.ModuleList | nn.ModuleDict) and policy(module)

    return [module for module in reversed(list(network.modules())) if apart(module)]


def _advice(network: nn.Module) -> str:
    """How to name the blocks of a network: the class of which it has most in a row."""
    rows = [
        [type(m).__name__ for m in row] for row in network.modules() if isinstance(row, nn.Sequential | nn.ModuleList)
    ]
    repeated = Counter(name for row in rows for name, times in Counter(row).items() if times > 1 for _ in range(times))
    # A row of rows (the stages of a convolutional network) is none of blocks.
    blocks = [name for name, _ in repeated.most_common() if name not in ("Sequential", "ModuleList")]
    return (
        "Name its blocks: --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP --fsdp_transformer_layer_cls_to_wrap "
        f"{blocks[0] if blocks else 'CLASS'}."
    )


@dataclass
class Sharding:
    """A network that is spread over processes, in place.

    Attributes:
        network: images -> logits, in every process on its own rows, in all at the same time.
        ranks: the processes.
        units: what is gathered by itself.
        reshard: whether a unit's weights are given up between forward and backward pass.
    """

    network: nn.Module
    ranks: Ranks
    units: list[Any]
    reshard: bool

    @classmethod
    def of(cls, network: nn.Module, device: torch.device, ranks: Ranks) -> Sharding | None:
        """Spread `network`, which all processes hold alike, where Accelerate's configuration asks for it and there are
        several processes."""
        if ranks.size == 1 or not wanted():
            return None
        plugin = _plugin()
        units, reshard = _units(network, plugin), bool(plugin.reshard_after_forward)
        spread = _spreader(device, ranks)
        for unit in units:
            spread(unit, reshard_after_forward=reshard)
        # Gathered again for the backward pass at once, its weights would be given up for nothing.
        spread(network, reshard_after_forward=False)
        return cls(network, ranks, units, reshard)

    def step(self, step: Step, accelerator: Accelerator) -> ShardedStep:
        """What takes the place of DistributedDataParallel."""
        return ShardedStep(step, accelerator, self.ranks)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Every process holds all weights, so that each may compute by itself: how many passes the others make does not
        matter. Weights are not to be changed."""
        for part in (*self.units, self.network):
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                unit.set_reshard_after_forward(self.reshard, recurse=False)
            self._give_up()

    def _give_up(self) -> None:
        """Only shares are held, which is what is saved, loaded and changed."""
        for part in (*self.units, self.network):
            part.reshard()

    def weights(self) -> dict[str, Tensor]:
        """Whole weights and buffers, in the first process; all processes must ask."""
        self._give_up()
        return gathered(self.network.state_dict(), self.ranks.rank == 0)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take over whole weights, which every process was given.

        Raises:
            RuntimeError: they are none of this network, as torch says it.
        """
        self._give_up()
        own = self.network.state_dict()
        self.network.load_state_dict({name: share(value, own.get(name)) for name, value in weights.items()})

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state as a training has it that spreads nothing, in the first process; all processes must ask."""
        return gathered(optimizer.state_dict(), self.ranks.rank == 0)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Take over what `optimizer_state` gave, or a training that spreads nothing."""
        shares, groups = dict(state["state"]), []
        for group, kept in zip(optimizer.param_groups, state["param_groups"], strict=True):
            # How the optimiser computes is its own affair: fused kernels do not know shares.
            groups.append({**kept, **{key: group[key] for key in ("fused", "foreach") if key in group}})
            for parameter, number in zip(group["params"], kept["params"], strict=True):
                if number in shares:
                    shares[number] = {key: share(value, parameter) for key, value in shares[number].items()}
        optimizer.load_state_dict({**state, "state": shares, "param_groups": groups})

    def try_optimizer(self, config: OptimConfig, device: torch.device) -> None:
        """Let the optimiser step two small layers that are spread.

        Raises:
            UsageError: it cannot, or keeps a state that cannot be shared out again when a run is resumed.
        """
        # A training's draws do not depend on what is tried before it.
        with torch.random.fork_rng(devices=[]):
            # Wide enough for those that treat wide layers otherwise.
            trial = nn.Sequential(nn.Conv2d(2, 4, 2), nn.Linear(128, 128 * self.ranks.size)).to(device)
        _spreader(device, self.ranks)(trial)
        plain = config.model_copy(update={"layer_decay": None})
        optimizer = make_optimizer(plain, trial, nn.ModuleList(), device, fused=False)
        for parameter in trial.parameters():
            parameter.grad = parameter.detach().clone()
        why = ""
        try:
            optimizer.step()
        except Exception as error:  # whatever an optimiser computes with
            why = " ".join(f"{type(error).__name__}: {error}".split()[:30])
        for weight, held in optimizer.state.items():
            odd = [k for k, v in held.items() if isinstance(v, Tensor) and v.numel() > 1 and v.shape != weight.shape]
            if odd:
                why = why or f"its state {odd[0]} is of another shape than the weights"
        if why:
            raise UsageError(
                f"optim.name={config.name} does not go with FSDP: {why}. Choose another one: sgd, adamw, lamb, lion."
            )


class ShardedStep(nn.Module):
    """A `Step` whose network is spread and whose methods are not: their gradients are averaged here."""

    def __init__(self, step: Step, accelerator: Accelerator, ranks: Ranks) -> None:
        super().__init__()
        # Named as DistributedDataParallel names what it wraps.
        self.module = step
        self._autocast, self._ranks = accelerator.autocast, ranks
        for parameter in step.methods.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._average)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `Step`, in float32."""
        with self._autocast():
            loss, logits = self.module(batch)
        return loss.float(), logits.float()

    def set_requires_gradient_sync(self, sync: bool) -> None:
        """Nothing: what was not averaged yet would be whole gradients, which are what is to be saved. Accelerate's
        `no_sync` asks for it."""

    @torch.no_grad()
    def _average(self, parameter: Tensor) -> None:
        # The mean of what is a mean already, from an earlier part of the step, is itself.
        if parameter.grad is not None:
            parameter.grad = self._ranks.mean(parameter.grad)


def _spreader(device: torch.device, ranks: Ranks) -> Callable[..., Any]:
    """torch's `fully_shard` over these processes."""
    from functools import partial

    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return partial(fully_shard, mesh=init_device_mesh(device.type, (ranks.size,)))
