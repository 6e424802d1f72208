"""What a method must leave alone: the network's weights, its statistics, its modes, and its answers in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import augury
from augury_authoring.testing import globals as world
from augury_authoring.testing.bench import Bench, CheckFailed
from augury_authoring.testing.harness import CLASSES, EPOCH, SIDE, STEPS, Trial, clone, differing, same
from augury_authoring.testing.network import builder


def left_alone(bench: Bench) -> None:
    """No hook of the training leaves the network with other weights or other statistics than it found."""
    bench.ready()
    trial = bench.trial()
    while trial.step_number < STEPS:
        batch, losses = trial.batch(), []
        _watch(bench.name, trial, "augment_batch", lambda: trial.augment(batch))  # noqa: B023
        if len(batch):
            output = augury.forward(trial.network, batch)
            trial.seed("loss")
            call = lambda: losses.append(trial.methods.compute_loss(batch, output))  # noqa: B023, E731
            _watch(bench.name, trial, "compute_loss", call)
        trial.descend(losses[0] if losses else None)
        if trial.step_number % EPOCH == 0:
            _watch(bench.name, trial, "post_epoch", trial.end_epoch)


def _watch(name: str, trial: Trial, hook: str, call: Callable[[], object]) -> None:
    """Call a hook, and compare the network behind it with that before it."""
    before = clone(trial.network.state_dict())
    call()
    changed = _changed(before, trial.network.state_dict())
    weights = [key for key, _ in trial.network.named_parameters() if key in changed]
    if weights:
        raise CheckFailed(
            f"{name}: {hook} leaves the network's weights changed: `{weights[0]}`. The optimiser alone trains them. "
            "Put them back before the hook returns, from copies, or work on a copy: self.freeze(network). "
            "pre_train_stage may change them."
        )
    if changed:
        raise CheckFailed(
            f"{name}: {hook} moves BatchNorm's running statistics: `{changed[0]}`. A pass of its own through the "
            "network in training mode counts these images twice. Make it in evaluation mode and put the modes back, "
            "put the statistics back, or pass through a copy: self.freeze(network)."
        )


def _changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The entries that differ by more than rounding. Counts of passes alone change nothing."""
    return [
        key
        for key, value in after.items()
        if value.is_floating_point() and not torch.allclose(value, before[key], rtol=1e-4, atol=1e-6, equal_nan=True)
    ]


def evaluation(bench: Bench) -> None:
    """The network that was trained with the method is the one that is exported: same answers in evaluation, same
    weights' names, no hooks left, modes and gradients as they were; and evaluating changes no state of the method."""
    bench.ready()
    trial = bench.trial()
    modes, trained = _modes(trial.network), _trained(trial.network)
    left = _hooks(trial.network)
    while trial.step_number < STEPS:
        trial.step()
        if trial.step_number % EPOCH == 0:
            trial.end_epoch()
    name, network = bench.name, trial.network
    if found := sorted(_hooks(network) - left):
        raise CheckFailed(
            f"{name}: leaves a hook behind on {', '.join(found)}. It would act in evaluation and be missing on resume. "
            "Remove it before the hook returns; rows are mixed inside the network with batch.mix_hidden."
        )
    if _modes(network) != modes or _trained(network) != trained:
        raise CheckFailed(
            f"{name}: leaves parts of the network in another mode (train or eval), or with another requires_grad, than "
            "it found them. Put them back, or work on a copy: self.freeze(network)."
        )
    reference = builder(trial.facts.channels, CLASSES)()
    try:
        reference.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise CheckFailed(
            f"{name}: the network's weights have other names or shapes with the method, and could not be exported: "
            f"{error}. A method's modules are its own, not the network's."
        ) from error
    before = clone(trial.methods.state_dict())
    images = torch.randn(7, trial.facts.channels, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    world.seed("evaluation")
    logits, wanted = _logits(network, images), _logits(reference, images)
    if not same(logits, wanted):
        raise CheckFailed(
            f"{name}: in evaluation the network answers otherwise than its weights do alone (logits differ by up to "
            f"{float((logits - wanted).abs().max()):.3g}). The method has changed the network's forward pass for good."
        )
    if found := differing(trial.methods.state_dict(), before):
        raise CheckFailed(f"{name}: evaluating the network changes the method's state: `{found[0]}`.")


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = network.eval()(images)
    return logits


def _modes(network: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in network.named_modules()}


def _trained(network: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in network.named_parameters()}


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _hooks(network: nn.Module) -> set[str]:
    """The places that have hooks: modules by name, and all modules of the process."""
    own = {
        f"`{name or 'the network'}`" for name, part in network.named_modules() if any(getattr(part, h) for h in _HOOKS)
    }
    everywhere = [getattr(nn.modules.module, f"_global{h}") for h in _HOOKS]
    return own | ({"all modules"} if any(everywhere) else set())
