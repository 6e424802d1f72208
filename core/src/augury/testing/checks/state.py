"""What a method must not lose, and what it must leave alone: checkpoints, and the network in evaluation."""

from __future__ import annotations

import io
import math
from typing import Any

import torch
from torch import Tensor, nn

from augury.testing import globals as world
from augury.testing.bench import Bench, CheckFailed, told
from augury.testing.harness import CLASSES, EPOCH, SIDE, STEPS, Trial, clone, differing, same
from augury.testing.network import builder

MIDDLE = EPOCH - 1
CUTS = (0, MIDDLE, EPOCH)
"""Steps after which a training is interrupted: before the first one, in the middle of an epoch, and behind
`post_epoch`, where a real run saves itself."""
ADVICE = (
    "What the method must not lose belongs in a buffer or a parameter that __init__ makes (register_buffer), or in a "
    "module that it freezes; an attribute of Python is gone on resume."
)


def survives(bench: Bench) -> None:
    """Saved, loaded into a fresh one and gone on with, a training is the unbroken one to the last bit."""
    bench.ready()
    unbroken = bench.trial()
    saved: dict[int, bytes] = {}
    rows: list[dict[str, Any]] = []
    for step in range(STEPS):
        if step in CUTS:
            saved[step] = _save(unbroken, bench.name)
        if step == MIDDLE:
            _forget_logged(unbroken)
        rows.append(_one(unbroken))
    for cut in CUTS:
        _compare(bench, cut, saved[cut], rows, unbroken)


def _forget_logged(trial: Trial) -> None:
    """What was logged in an epoch is the loop's to save, not the method's."""
    trial.methods.run.scalars.flush(trial.methods.run.ranks, trial.methods.run.device)


def _one(trial: Trial) -> dict[str, Any]:
    """What one step shows: its loss, and at the end of an epoch what `post_epoch` returns and what was logged."""
    loss = trial.step()
    shown: dict[str, Any] = {} if loss is None else {"the loss": loss}
    if trial.step_number % EPOCH == 0:
        shown |= {f"the epoch's `{key}`": value for key, value in trial.end_epoch().items()}
    return shown


def _save(trial: Trial, name: str) -> bytes:
    content = {
        "network": trial.network.state_dict(),
        "optimizer": trial.optimizer.state_dict(),
        "methods": dict(trial.methods.state_dict()),
    }
    file = io.BytesIO()
    try:
        torch.save(content, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:
        raise CheckFailed(
            f"{name}: its state cannot be saved and loaded without running code of the file: {told(error)}. A state "
            "dict holds tensors, numbers, text, lists and dicts."
        ) from error
    return file.getvalue()


def _load(bench: Bench, content: bytes, cut: int) -> Trial:
    """A fresh training that goes on: what a pre-train stage did is in the checkpoint, or lost."""
    trial = Trial([bench.candidate.chosen], host=bench.host())
    state = torch.load(io.BytesIO(content), weights_only=True)
    trial.network.load_state_dict(state["network"])
    try:
        trial.methods.load_state_dict(state["methods"])
    except Exception as error:
        raise CheckFailed(
            f"{bench.name}: the state saved after {cut} steps does not fit a freshly made method: {told(error)}. All "
            "buffers, parameters and modules are made in __init__, with the shapes they keep."
        ) from error
    trial.optimizer.load_state_dict(state["optimizer"])
    return trial


def _compare(bench: Bench, cut: int, content: bytes, rows: list[dict[str, Any]], unbroken: Trial) -> None:
    resumed = _load(bench, content, cut)
    try:
        for step, wanted in enumerate(rows[cut:], cut):
            if step == MIDDLE:
                _forget_logged(resumed)
            found = _one(resumed)
            if keys := differing(found, wanted):
                raise CheckFailed(
                    f"{bench.name}: saved after {cut} steps and loaded, {keys[0]} of step {step + 1} is "
                    f"{_number(found.get(keys[0]))} instead of {_number(wanted.get(keys[0]))}. {ADVICE}"
                )
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(
            f"{bench.name}: saved after {cut} steps and loaded, it fails: {told(error)}\n{ADVICE}"
        ) from error
    for what, one, other in (
        ("its state", resumed.methods.state_dict(), unbroken.methods.state_dict()),
        ("the network", resumed.network.state_dict(), unbroken.network.state_dict()),
    ):
        if keys := differing(one, other):
            raise CheckFailed(
                f"{bench.name}: saved after {cut} steps, loaded and trained to the end, {what} is another: "
                f"`{keys[0]}`. {ADVICE}"
            )


def _number(value: Any) -> str:
    if value is None:
        return "missing"
    number = float(value)
    return f"{number:.9g}" if math.isfinite(number) else str(number)


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
