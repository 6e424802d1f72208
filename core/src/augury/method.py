"""The base class of a method: options, needs, state."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from augury import hookspecs
from augury.batch import PIPELINES
from augury.errors import UsageError, refuse_all, unknown
from augury.frozen import Frozen
from augury.hookspecs import CONTRACT_VERSION, HOOKS, PROJECT
from augury.validation import Strict

CRITERION = "criterion"
"""What the criterion is called among the methods."""


class Options(Strict):
    """Base of every method's options: a pydantic model that is frozen and refuses what it does not know."""


@dataclass(frozen=True)
class Spec:
    """The facts known before training. None: not known (a hand-written loop need not tell everything).

    Attributes:
        num_classes: C.
        num_features: A, width of the classifier's input.
        image_size: (channels, height, width).
        total_steps: optimiser steps of the whole training.
        steps_per_epoch: optimiser steps of one epoch.
        starts_trained: whether the network starts from trained weights, which a method must not draw anew.
        num_images: images of the training split.
        class_counts: training images of each class, C numbers.
        mean, std: of each channel on the scale of [0, 1], with which images are normalised.
        build_network: makes a network as the run's own starts, images M x ch x H x W -> logits M x C. On torch's meta
            device it costs neither memory nor weights, to look at its layers.
        read_weights: makes the run's own network with the weights of a run folder or a file.
        read_network: makes a trained network of any architecture, from a run folder, a file or a name of timm's, that
            takes the run's images; to check in `check`, while hooks use `run.read_network`. Both raise a UsageError
            that says why they cannot.
        classes: their names.
        sharded: whether the network's weights are spread over processes (FSDP).
    """

    num_classes: int
    num_features: int | None = None
    image_size: tuple[int, int, int] | None = None
    total_steps: int | None = None
    steps_per_epoch: int | None = None
    starts_trained: bool = False
    num_images: int | None = None
    class_counts: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    build_network: Callable[[], nn.Module] | None = None
    read_weights: Callable[[str], nn.Module] | None = None
    read_network: Callable[[str], nn.Module] | None = None
    classes: tuple[str, ...] | None = None
    sharded: bool = False


class Method(nn.Module):
    """One method of a paper: a module with options whose parameters join the optimiser and whose buffers are its state.

    Both are checkpointed and restored with the run; neither is exported with the network.

    Class attributes:
        Options: the pydantic model of its options.
        views: how many versions of each image it needs at least; a batch may have more, for another method.
        view_pipelines: the pipeline that makes each of these views, by name; nothing where it does not care.
        views_alike: whether it compares views row by row, so that they must be mixed alike: refused beside methods that
            mix, since these mix each view with other partners. A method of several views says True or False.
        linear_classifier: whether it needs the network's classifier to be one `nn.Linear`.
        min_rows: the smallest number of rows it works on.
        facts: names of `Spec` fields it cannot do without.
        mixes: whether it mixes images in `augment_batch` (`batch.mix`).
        mixes_hidden: whether it may mix rows inside the network (`batch.mix_hidden`): then no method may mix after it.
        unmixed: whether its `augment_batch` must see rows before any method mixes them.
        reads_images: whether its `compute_loss` looks at `batch.images`, as a teacher does: refused beside methods that
            mix inside the network, since these leave the images unmixed.
        sets_class_logits: whether it sets `output.class_logits`.
        reads_class_logits: whether the criterion that it brings takes them into account; else it is refused beside
            methods that set them.
        keeps_last: whether what it makes of the network is there after the last step alone, an average say: no earlier
            epoch is chosen as the best then.
        sharded: whether it can train a network whose weights are spread over processes (FSDP): it reads those of the
            classifier alone, in `compute_loss` alone, trains no other network and copies none.
        batchwise: what of it is of a batch as a whole, in a few words: with `optim.accumulation` it is that of a part.
        contract: the version of the contract, `augury.CONTRACT_VERSION`, that it was written for. An installed method
            that does not say was written for 1.0; a class of one's own program is taken for one of today's.
    """

    Options: ClassVar[type[Options]] = Options
    views: ClassVar[int] = 1
    view_pipelines: ClassVar[tuple[str, ...]] = ()
    views_alike: ClassVar[bool | None] = None
    linear_classifier: ClassVar[bool] = False
    min_rows: ClassVar[int] = 1
    facts: ClassVar[tuple[str, ...]] = ()
    mixes: ClassVar[bool] = False
    mixes_hidden: ClassVar[bool] = False
    unmixed: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False
    sets_class_logits: ClassVar[bool] = False
    reads_class_logits: ClassVar[bool] = False
    keeps_last: ClassVar[bool] = False
    sharded: ClassVar[bool] = False
    batchwise: ClassVar[str] = ""
    contract: ClassVar[str | None] = None

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__()
        self.options = options
        self.spec = spec

    @classmethod
    def pipelines(cls, options: Any) -> Mapping[str, float] | None:
        """Return the share of rows that each pipeline is to make, by name, summing to 1; None when the method does not
        care."""
        return None

    @classmethod
    def declares(cls, options: Any) -> Collection[str]:
        """Return the names of the class attributes, True or False, that are True with these options beside those that
        are True with all."""
        return ()

    @classmethod
    def check(cls, options: Any, spec: Spec) -> None:
        """Refuse, before anything is built, options that do not go with the run's facts.

        Not asked again when a run is resumed.

        Raises:
            UsageError: why, and what to do.
        """

    def freeze(self, module: nn.Module) -> Frozen:
        """A copy of `module` that is never trained: assign it to an attribute.

        It stays in evaluation mode, its weights are this method's buffers: saved, moved and restored, but in no
        optimiser, EMA or gradient. `copy_from` sets its weights later.
        """
        return Frozen(module)


def hook_implementations(cls: type[Method]) -> dict[str, dict[str, Any]]:
    """The hooks that a class implements, with the options of their `hookimpl` marks."""
    marker = f"{PROJECT}_impl"
    found = {name: getattr(inspect.getattr_static(cls, name, None), marker, None) for name in dir(cls)}
    return {name: options for name, options in found.items() if options is not None}


def declared(cls: type[Method], options: Any, name: str) -> bool:
    """Tell whether a method declares something, with all options or with these."""
    return bool(getattr(cls, name)) or name in cls.declares(options)


def replaces_criterion(cls: type[Method]) -> bool:
    """Whether its `compute_loss` returns row losses itself instead of wrapping the others'."""
    mark = hook_implementations(cls).get("compute_loss")
    return mark is not None and not mark["wrapper"]


def taken_name(name: str) -> bool:
    """Whether no method can have this name: it is held among torch's modules, beside the criterion."""
    # Some names of modules are those of objects, `training` say, and not of the class.
    return name == CRITERION or hasattr(nn.ModuleDict(), name)


def check_method(cls: object, name: str, unsaid: str = CONTRACT_VERSION) -> type[Method]:
    """Return `cls` if it is a method whose hooks can be called as meant; one that says no contract has `unsaid`.

    Raises:
        UsageError: not a Method subclass, one for another contract, untyped options, a hook name that does not exist, a
            signature that pluggy would not fill, or a mark that would break the order of calls; every fault on a line
            of its own.
    """
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UsageError(f"{name}: {cls!r} is no method: it must be a subclass of augury.Method.")
    if other := _other_contract(cls.contract or unsaid, name):
        # Whatever else is wrong would be judged by rules that it was not written for.
        raise UsageError(other)
    problems = []
    if not (isinstance(cls.Options, type) and issubclass(cls.Options, Options)):
        problems.append(
            f"{name}: its Options must be a subclass of augury.Options, with a type for each option "
            f"(`weight: float = 0.5`), got {cls.Options!r}."
        )
    if cls.view_pipelines and len(cls.view_pipelines) != cls.views:
        problems.append(f"{name}: `view_pipelines` names {len(cls.view_pipelines)} pipelines for {cls.views} view(s).")
    for pipeline in cls.view_pipelines:
        if pipeline not in PIPELINES:
            problems.append(f"{name}: `view_pipelines`: " + unknown("pipeline", pipeline, PIPELINES, label="Pipelines"))
    if taken_name(name):
        problems.append(f"{name}: torch's modules, or augury, use this name themselves. Give the method another.")
    marks = hook_implementations(cls)
    if not marks:
        problems.append(f"{name}: implements no hook. Mark at least one of {', '.join(HOOKS)} with @augury.hookimpl.")
    for hook in HOOKS:
        if hasattr(cls, hook) and hook not in marks:
            problems.append(f"{name}: `{hook}` is not marked, so nothing would call it. Mark it with @augury.hookimpl.")
    for hook, mark in marks.items():
        if hook not in HOOKS:
            problems.append(f"{name}: " + unknown("hook", hook, HOOKS, label="Hooks"))
            continue
        problems += [f"{name}: hook `{hook}` {fault}" for fault in _hook_faults(getattr(cls, hook), mark, hook)]
    refuse_all(problems)
    return cls


def _other_contract(contract: object, name: str) -> str:
    """Why a method of another version of the contract cannot be used; "" when it can."""
    words = contract.split(".") if isinstance(contract, str) else []
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return f"{name}: `contract` must be a version such as {CONTRACT_VERSION!r}, got {contract!r}."
    (major, minor), (ours, newest) = map(int, words), map(int, CONTRACT_VERSION.split("."))
    told = f"{name}: was written for contract {contract}, and this augury-core has contract {CONTRACT_VERSION}."
    if major < ours:
        return f"{told} Upgrade its package; its author finds in docs/moving.md how it is moved."
    return f"{told} Upgrade augury-core." if (major, minor) > (ours, newest) else ""


def _hook_faults(function: Callable[..., Any], mark: Mapping[str, Any], hook: str) -> list[str]:
    allowed = list(inspect.signature(getattr(hookspecs, hook)).parameters)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    faults = []
    for p in parameters:
        if p.name not in allowed:
            faults.append(f"has a parameter `{p.name}`; allowed: {', '.join(allowed)}.")
        elif p.default is not p.empty:
            faults.append(
                f"gives its parameter `{p.name}` a default, so pluggy would never fill it. Remove the default."
            )
        elif p.kind is not p.POSITIONAL_OR_KEYWORD:
            faults.append(f"takes `{p.name}` as {p.kind.description}; make it an ordinary parameter.")
    if mark["tryfirst"] or mark["trylast"]:
        faults.append("is marked tryfirst or trylast; the user's order is the order of calls. Remove the mark.")
    if mark["hookwrapper"]:
        faults.append("is an old-style hookwrapper; use hookimpl(wrapper=True).")
    if mark["wrapper"] and not inspect.isgeneratorfunction(function):
        faults.append("is a wrapper but never yields.")
    if inspect.isgeneratorfunction(function) and not mark["wrapper"]:
        faults.append("yields but is no wrapper. Mark it with hookimpl(wrapper=True).")
    return faults
