"""Where numbers stopped being finite: the first place of a step at which they were not, in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from augury.batch import Batch, ModelOutput
from augury.composition import Composition
from augury.errors import AuguryError
from augury.method import CRITERION
from augury.run import NETWORK
from augury_train.training.trail import LOADER, Mark, Trail

_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


@dataclass(frozen=True)
class Place:
    """Where it began.

    Attributes:
        said: a sentence.
        remedy: what to do there beside what always helps, with a space behind it.
        after_weights: whether the network's weights may be the reason.
    """

    said: str
    remedy: str = ""
    after_weights: bool = False

    def in_process(self, rank: int) -> Place:
        """The same, of one of several processes."""
        return dataclasses.replace(self, said=f"{self.said[:-1]} (in process {rank}).")


def first_broken(trails: Iterable[Trail]) -> Place | None:
    """The first place on the way of a step's parts at which something is not finite; waits for the device."""
    for trail in trails:
        for mark in trail.marks:
            if names := mark.broken():
                return _place(mark, names)
    return None


def _place(mark: Mark, names: Sequence[str]) -> Place:
    told = " and ".join(f"`{name}`" for name in names)
    if mark.who == LOADER:
        return Place(
            "It begins with the images, before any method: the transforms of a pipeline made numbers that are not "
            "finite.",
            "Look at data.base, data.augmented, data.mean and data.std (augury preview). ",
        )
    if mark.who == NETWORK:
        return Place(f"It begins with the network's own {told}.", after_weights=True)
    if mark.who == CRITERION:
        return Place("It begins with the criterion: all that it was given is finite.")
    remedy = f"Change {mark.who}'s options, or leave it out. "
    if mark.kind == "batch":
        return Place(f"It begins with {mark.who}: its `augment_batch` left {told} of the batch not finite.", remedy)
    if mark.kind == "output":
        return Place(f"It begins with {mark.who}: its `compute_loss` set {told} that are not finite.", remedy)
    return Place(f"It begins with {mark.who}: what its `compute_loss` returned, of a finite loss.", remedy)


def with_weights(place: Place, parameters: Iterable[tuple[str, Tensor]]) -> Place:
    """A place that may have the weights for a reason, which the steps before made."""
    largest = {_known_as(name): float(p.detach().abs().max()) for name, p in parameters if p.numel()}
    broken = [name for name, value in largest.items() if not math.isfinite(value)]
    if broken:
        return Place(
            f"It begins with {len(broken)} parameter(s), {broken[0]} the first: finite gradients took them beyond "
            "float32."
        )
    name = max(largest, key=lambda name: largest[name])
    return dataclasses.replace(place, said=f"{place.said} Its weights are finite, the largest {largest[name]:.3g}.")


def first_broken_gradient(names: Sequence[str], norms: Tensor | None, whose: Place | None) -> Place | None:
    """The parameter at which the backward pass met it first: the last one in the order of the network."""
    if norms is None:
        return None
    broken = [name for name, fine in zip(names, norms.isfinite().tolist(), strict=True) if not fine]
    if not broken:
        return None
    origin = "" if whose is None else f"{whose.said} "
    return Place(
        f"{origin}The loss is finite; the gradients of {len(broken)} of {len(names)} parameters are not, that of "
        f"{_known_as(broken[-1])} first.",
        "" if whose is None else whose.remedy,
    )


def whose_gradient(methods: Composition, parts: Sequence[tuple[Batch, Trail]]) -> Place | None:
    """Whose term of the loss has such a gradient: of what the network made, or of a method's parameters. The loss is
    computed once more, which changes the methods' state, and leaves torch's generators as they are.

    Args:
        methods: as they were before the optimiser's step.
        parts: the batches of the step, and their trails, which hold the network's output.

    Returns:
        None where it is the network's own backward pass.
    """
    for batch, trail in parts:
        if trail.made is None:
            continue
        made = [value.clone().requires_grad_() for value in trail.made]
        try:
            again = _once_more(methods, batch, ModelOutput(*made))
        except AuguryError:
            # What cannot be done twice with one batch is left unsaid.
            return None
        inputs = [*made, *(p for p in methods.parameters() if p.requires_grad)]
        for mark in again.marks:
            if mark.kind == "loss" and not _fine_gradient(mark.seen["loss"], inputs):
                return _of_term(mark, again.marks)
    return None


def _once_more(methods: Composition, batch: Batch, output: ModelOutput) -> Trail:
    trail = Trail(keep_graph=True)
    methods.run.trail = trail
    # A run that is resumed asks where it begins once more, and draws the same afterwards.
    with torch.random.fork_rng(devices=[batch.device] if batch.device.type == "cuda" else []):
        try:
            with methods.again():
                loss = methods.compute_loss(batch, output)
        finally:
            methods.run.trail = None
    if not trail.has_loss:
        trail.loss(CRITERION, loss)
    return trail


def _fine_gradient(loss: Tensor, inputs: Sequence[Tensor]) -> bool:
    if not loss.requires_grad:
        return True
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return all(g is None or bool(g.isfinite().all()) for g in gradients)


def _of_term(mark: Mark, marks: Sequence[Mark]) -> Place:
    if mark.who != CRITERION:
        said = f"It begins with {mark.who}: the gradient of what its `compute_loss` returned."
        return Place(said, f"Change {mark.who}'s options, or leave it out. ")
    for other in marks:
        seen = {name: value for name, value in other.seen.items() if value.requires_grad}
        # What comes down to it is finite, and what goes on from there is not.
        set_here = other.kind == "output" and other.who != NETWORK and seen
        if set_here and _fine_gradient(mark.seen["loss"], [*seen.values()]):
            told = " and ".join(f"`{name}`" for name in seen)
            said = f"It begins with {other.who}: the gradient of the {told} that its `compute_loss` set."
            return Place(said, f"Change {other.who}'s options, or leave it out. ")
    return Place("It begins with the gradient of the criterion.")


def _known_as(name: str) -> str:
    """A parameter of the step's module as users know it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    owner, _, rest = name.partition(".")
    if owner == "methods":
        _, method, parameter = rest.split(".", 2)
        return f"{method}'s `{parameter}`"
    return f"the network's `{rest}`"
