"""What a method must not lose: saved, loaded and gone on with."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from augury_authoring.testing.bench import Bench, CheckFailed, told
from augury_authoring.testing.harness import EPOCH, STEPS, Facts, Trial, differing

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
    trial = Trial([bench.candidate.chosen], Facts(resumed=True), host=bench.host())
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
    advice = " ".join([ADVICE, *_unsaved(unbroken, bench.name)])
    try:
        for step, wanted in enumerate(rows[cut:], cut):
            if step == MIDDLE:
                _forget_logged(resumed)
            found = _one(resumed)
            if keys := differing(found, wanted):
                raise CheckFailed(
                    f"{bench.name}: saved after {cut} steps and loaded, {keys[0]} of step {step + 1} is "
                    f"{_number(found.get(keys[0]))} instead of {_number(wanted.get(keys[0]))}. {advice}"
                )
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(
            f"{bench.name}: saved after {cut} steps and loaded, it fails: {told(error)}\n{advice}"
        ) from error
    for what, one, other in (
        ("its state", resumed.methods.state_dict(), unbroken.methods.state_dict()),
        ("the network", resumed.network.state_dict(), unbroken.network.state_dict()),
    ):
        if keys := differing(one, other):
            raise CheckFailed(
                f"{bench.name}: saved after {cut} steps, loaded and trained to the end, {what} is another: "
                f"`{keys[0]}`. {advice}"
            )


def _unsaved(trial: Trial, name: str) -> Iterator[str]:
    """A line for each attribute of the method, or of a part of it, that holds a network or a tensor which is no part of
    its state."""
    method = trial.methods[name]
    known = {id(part) for root in (method, trial.network) for part in root.modules()}
    for path, part in method.named_modules():
        for key, value in vars(part).items():
            held = [one for one in _held(value) if id(one) not in known]
            if key.startswith("_") and key in vars(nn.Module()) or not held:
                continue
            place = ".".join(filter(None, [path, key]))
            if isinstance(held[0], nn.Module):
                yield f"`self.{place}` holds a network that is not saved; self.freeze(network) is."
            else:
                yield f"`self.{place}` holds a tensor that is not saved; a buffer (register_buffer) is."


def _held(value: Any) -> list[nn.Module | Tensor]:
    """The networks and tensors in a value of Python."""
    parts: Any = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, nn.Module | Tensor)]


def _number(value: Any) -> str:
    if value is None:
        return "missing"
    number = float(value)
    return f"{number:.9g}" if math.isfinite(number) else str(number)
