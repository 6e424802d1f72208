"""Optimiser, schedule, precision and gradient bounds: timm's and Accelerate's, set up as a run's settings say."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from timm.optim import create_optimizer_v2, get_optimizer_class, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import dispatch_clip_grad
from torch import nn

from augury.errors import UsageError
from augury_train.config import OptimConfig, RunConfig, ScheduleConfig
from augury_train.training.shares import clip_shares


def make_accelerator(config: RunConfig) -> Accelerator:
    """Accelerate's view of the devices and the precision; one is needed for each training, since it keeps all that it
    prepares."""
    precision = choose_precision(config)
    shared = AcceleratorState._shared_state
    if shared and shared.get("_mixed_precision") != precision:
        # Accelerate holds the precision of the first one in this Python process for all that follow.
        AcceleratorState._reset_state()
    # Newer versions of torch say it otherwise, older ones know no other word.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    # Buffers are the methods' state, equal on all ranks by construction, or BatchNorm's, which each rank keeps for
    # itself.
    return Accelerator(
        # Nor Apple's GPUs: they lack the float64 in which sums are kept.
        cpu=config.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def choose_precision(config: RunConfig) -> str:
    """`no`, `bf16` or `fp16`: what `train.precision` means on the run's device."""
    wanted = config.train.precision
    if wanted == "auto":
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no"
    return "no" if wanted == "fp32" else wanted


def make_optimizer(
    config: OptimConfig, network: nn.Module, methods: nn.Module, device: torch.device, *, fused: bool = True
) -> torch.optim.Optimizer:
    """timm's optimiser over what is trained of the network, and over the methods' parameters; `fused` where it can be.

    Raises:
        UsageError: settings that this optimiser does not take.
    """
    decay = 0.0 if config.decay_norm_and_bias else config.weight_decay
    # Position embeddings and the like, as the model says.
    spared = tuple(getattr(network, "no_weight_decay", tuple)())
    groups: list[dict[str, Any]]
    try:
        if config.layer_decay is not None:
            groups = param_groups_layer_decay(
                network, config.weight_decay, no_weight_decay_list=spared, layer_decay=config.layer_decay
            )
        elif decay:
            groups = param_groups_weight_decay(network, config.weight_decay, no_weight_decay_list=spared)
        else:
            groups = [{"params": [p for p in network.parameters() if p.requires_grad]}]
        own = [p for p in methods.parameters() if p.requires_grad]
        if own:
            groups.append({"params": own})
        optimizer = create_optimizer_v2(
            groups,
            opt=config.name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **(_fastest(config.name, device) if fused else {}) | config.kwargs,
        )
    except Exception as error:
        # Arguments that somebody gives can make it fail in any way.
        if not config.kwargs and not isinstance(error, TypeError | ValueError | RuntimeError | AssertionError):
            raise
        raise UsageError(f"optim.name={config.name}: timm cannot make it with these settings: {error}.") from None
    if getattr(optimizer, "is_second_order", False):
        raise UsageError(
            f"optim.name={config.name} needs second derivatives, which training does not compute. Choose another one."
        )
    return optimizer


def _fastest(name: str, device: torch.device) -> dict[str, Any]:
    """One kernel for all parameters, where the optimiser has one: SGD on the CPU takes a fifth of the time."""
    fused = "fused" in inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    return {"fused": True} if fused and device.type in ("cpu", "cuda") else {}


SPANNING = ("cosine", "tanh", "poly", "wsd", "rsqrt")
"""Schedules whose curve has an end, `schedule.length`."""


class Schedule:
    """timm's schedule of the learning rate, as a function of the optimiser steps or epochs that are done."""

    def __init__(
        self, config: ScheduleConfig, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
    ) -> None:
        """Set the rate of the first step.

        Args:
            config: the settings of the schedule.
            optimizer: gets its rates; those that it has are the highest.
            epochs: of the training.
            steps_per_epoch: optimiser steps in each.

        Raises:
            UsageError: timm cannot make this schedule.
        """
        self._by_epoch = config.every == "epoch" or config.name == "plateau"
        # timm decays at the step before a milestone; half a step more is the step after which so many epochs are done.
        late = 0.5 if self._by_epoch else 0.5 / steps_per_epoch
        milestones: list[Any] = [milestone + late for milestone in sorted(config.milestones)]
        # timm counts a prefix on top of the curve's epochs. It moves milestones, which are epochs of the training here.
        # Its wsd and rsqrt begin after the warm-up either way, and end with the epochs only without a prefix.
        prefix = config.warmup_prefix and config.name in ("cosine", "tanh", "poly", "step")
        span = (config.length or epochs) - (config.warmup_epochs if prefix else 0)
        try:
            with warnings.catch_warnings():
                # timm means to drop plateau because its own checkpoints lose that one's state; ours keep it.
                warnings.simplefilter("ignore", FutureWarning)
                self._timm, _ = create_scheduler_v2(
                    optimizer,
                    # timm's `none` is no schedule at all, and only schedules warm up and scale layers' rates.
                    sched="constant" if config.name == "none" else config.name,
                    num_epochs=span,
                    warmup_epochs=config.warmup_epochs,
                    warmup_lr=config.warmup_lr,
                    warmup_prefix=prefix,
                    min_lr=config.min_lr,
                    decay_milestones=milestones,
                    decay_epochs=config.decay_epochs,
                    decay_rate=config.decay_rate,
                    patience_epochs=config.patience,
                    step_on_epochs=self._by_epoch,
                    updates_per_epoch=steps_per_epoch,
                )
        except (ValueError, AssertionError) as error:
            raise UsageError(f"schedule.name={config.name}: timm cannot make it with these settings: {error}") from None
        # Not every curve begins at the optimiser's rate. timm's plateau does, but takes epoch 0 for a warm-up.
        if config.name != "plateau":
            self.step(0)
            self.epoch(0, None)

    def step(self, step: int) -> None:
        """So many optimiser steps are done."""
        if self._timm is not None:
            self._timm.step_update(step)

    def epoch(self, epoch: int, top1: float | None) -> None:
        """So many epochs are done, the last one with this accuracy on the split that chooses."""
        if self._timm is not None:
            self._timm.step(epoch, top1)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs. Only plateau remembers anything: the others are functions of what is done, and
        the optimiser's state holds the present rate."""
        plateau = getattr(self._timm, "lr_scheduler", None)
        return {} if plateau is None else plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        if state:
            self._timm.lr_scheduler.load_state_dict(state)


def clipper(
    config: OptimConfig, accelerator: Accelerator, network: nn.Module, methods: nn.Module, *, sharded: bool = False
) -> Callable[[], None] | None:
    """What bounds the gradients before an optimiser step, of weights that are `sharded` too; None where nothing
    does."""
    if config.clip is None:
        return None
    bound = config.clip
    trained = [p for p in [*network.parameters(), *methods.parameters()] if p.requires_grad]
    if config.clip_mode == "agc":
        # Its authors leave the classifier out.
        left_out = {id(p) for p in network.get_classifier().parameters()}  # type: ignore[operator]
        trained = [p for p in network.parameters() if p.requires_grad and id(p) not in left_out]

    def clip() -> None:
        accelerator.unscale_gradients()
        if sharded:
            clip_shares(trained, bound, config.clip_mode)
        else:
            dispatch_clip_grad(trained, bound, mode=config.clip_mode)

    return clip
