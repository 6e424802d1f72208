"""How pluggy calls the methods' hooks: in the user's order, each with what is its own, and with errors that name it."""

from __future__ import annotations

import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
from torch import Tensor

from augury import hookspecs
from augury.batch import Batch, ModelOutput
from augury.criterion import Criterion, mean_loss
from augury.errors import AuguryError, MethodError
from augury.method import CRITERION, Method, declared, hook_implementations
from augury.run import Run, RunState


def plugin_manager(members: Iterable[tuple[str, Method]], state: RunState) -> pluggy.PluginManager:
    """The methods' hooks, called in their order, and the criterion behind them."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(Criterion(), CRITERION)
    # pluggy calls the last registered first.
    for name, method in reversed(list(members)):
        manager.register(_bind(name, method, Run(state, name)), name)
    manager.check_pending()
    return manager


def _bind(name: str, method: Method, run: Run) -> SimpleNamespace:
    """The method's hook implementations as pluggy gets them: with what is the method's own, and errors that name it."""
    adapters = {}
    for hook, mark in hook_implementations(type(method)).items():
        implementation = getattr(method, hook)
        adapt = _wrapper if mark["wrapper"] else _criterion if hook == "compute_loss" else _plain
        adapters[hook] = adapt(implementation, name, hook, run, method)
    return SimpleNamespace(**adapters)


def _own_arguments(implementation: Callable[..., Any], run: Run) -> Callable[[tuple[Any, ...]], list[Any]]:
    """What turns the arguments of all methods into this one's: its own `Run`, and a copy of the metrics."""
    names = list(inspect.signature(implementation).parameters)

    def replace(arguments: tuple[Any, ...]) -> list[Any]:
        own: dict[str, Callable[[Any], Any]] = {"run": lambda _: run, "metrics": dict}
        return [own[name](value) if name in own else value for name, value in zip(names, arguments, strict=True)]

    return replace


def _plain(implementation: Callable[..., Any], name: str, hook: str, run: Run, method: Method) -> Callable[..., Any]:
    own = _own_arguments(implementation, run)
    batch_at = _place("batch", implementation) if hook == "augment_batch" else None

    @functools.wraps(implementation)
    def call(*args: Any) -> Any:
        try:
            result = implementation(*own(args))
            if batch_at is not None:
                args[batch_at].check_rows()
            _mark(run, name, hook, None if batch_at is None else args[batch_at], result)
            if hook == "post_epoch" and result is not None:
                return {f"{name}/{key}": float(value) for key, value in result.items()}
        except AuguryError:
            raise
        except (Exception, SystemExit) as error:
            raise named(error, name, hook, type(method)) from error
        return result

    return call


def _criterion(
    implementation: Callable[..., Any], name: str, hook: str, run: Run, method: Method
) -> Callable[..., Any]:
    """Takes the mean of the row losses that a method's own criterion returns."""
    names = list(inspect.signature(implementation).parameters)

    @hookspecs.hookimpl
    def compute_loss(batch: Batch, output: ModelOutput) -> Tensor:
        given = {"batch": batch, "output": output, "run": run}
        try:
            rows = implementation(*(given[parameter] for parameter in names))
        except AuguryError:
            raise
        except (Exception, SystemExit) as error:
            raise named(error, name, hook, type(method)) from error
        if not isinstance(rows, Tensor) or rows.shape != (len(batch),):
            got = f"a tensor of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else f"a {type(rows).__name__}"
            raise MethodError(
                f"{name}: `{hook}` replaces the criterion and must return the losses of the {len(batch)} rows, got "
                f"{got}. augury weighs them by `batch.row_weights` and takes their mean; a term is added by a wrapper."
            )
        loss = mean_loss(batch, output, rows)
        _mark(run, name, hook, None, loss)
        return loss

    return compute_loss


def _wrapper(implementation: Callable[..., Any], name: str, hook: str, run: Run, method: Method) -> Callable[..., Any]:
    """Drives the method's generator itself, to tell the method's errors from those of what it wraps."""
    own = _own_arguments(implementation, run)
    declares_class_logits = declared(type(method), method.options, "sets_class_logits")
    output_at = _place("output", implementation) if hook == "compute_loss" else None
    batch_at = _place("batch", implementation) if hook == "augment_batch" else None

    @functools.wraps(implementation)
    def call(*args: Any) -> Any:
        generator = implementation(*own(args))
        inner: BaseException | None = None
        received: Any = None
        output = None if output_at is None else args[output_at]
        before: Any = copy.copy(output)
        trail = run._state.trail
        versions = trail.versions(output) if trail is not None and output is not None else {}
        try:
            next(generator)
        except StopIteration:
            raise MethodError(f"{name}: `{hook}` is a wrapper and must yield once; it never did.") from None
        except AuguryError:
            raise
        except (Exception, SystemExit) as error:
            raise named(error, name, hook, type(method)) from error
        if output is not None and _lost(output, before):
            raise MethodError(
                f"{name}: `{hook}` changed `output.logits`, and a method named before it has set `class_logits`, which "
                f"the criterion takes instead. Name {name} before that method, or change both."
            )
        # Whoever changes those that another method has set needs not declare it: that one has.
        made = output is not None and before.class_logits is None and output.class_logits is not None
        if made and not declares_class_logits:
            raise MethodError(
                f"{name}: `{hook}` sets `output.class_logits`, which its class does not declare: a criterion that does "
                "not read them could not be refused. Set `sets_class_logits = True` in the class."
            )
        if trail is not None and output is not None:
            trail.output(name, output, versions)
        try:
            received = yield
        except BaseException as error:
            inner = error
        if hook == "compute_loss" and trail is not None and isinstance(received, Tensor):
            received = trail.received(received)
        try:
            generator.send(received) if inner is None else generator.throw(inner)
        except StopIteration as end:
            if hook == "compute_loss" and end.value is None:
                raise MethodError(f"{name}: `{hook}` returned no loss. End it with `return loss`.") from None
            _mark(run, name, hook, None if batch_at is None else args[batch_at], end.value)
            return end.value
        except AuguryError:
            raise
        except (Exception, SystemExit) as error:
            if error is inner:
                raise
            raise named(error, name, hook, type(method)) from error
        generator.close()
        raise MethodError(f"{name}: `{hook}` is a wrapper and must yield once; it yielded again.")

    return call


def _mark(run: Run, name: str, hook: str, batch: Batch | None, result: Any) -> None:
    """Leave a mark of what a method made, where the loop wants to know."""
    if run._state.trail is None:
        return
    if batch is not None:
        run._state.trail.batch(name, batch)
    if hook == "compute_loss" and isinstance(result, Tensor):
        run._state.trail.loss(name, result)


def _lost(output: ModelOutput, before: ModelOutput) -> bool:
    """Whether logits were changed where the criterion does not look: behind conditional ones that stayed."""
    kept = output.class_logits is not None and output.class_logits is before.class_logits
    return kept and output.logits is not before.logits


def _place(parameter: str, implementation: Callable[..., Any]) -> int | None:
    """Which argument of an implementation is the one of that name, None where it takes none such."""
    names = list(inspect.signature(implementation).parameters)
    return names.index(parameter) if parameter in names else None


def named(error: BaseException, name: str, hook: str, kind: type[Method]) -> MethodError:
    """The error as one that names the method, the hook, and where in the method's own code it came from."""
    package, place = kind.__module__.partition(".")[0], ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            place = f" ({Path(frame.f_code.co_filename).name}:{line})"
    return MethodError(f"{name}: `{hook}` raised {type(error).__name__}: {error}{place}")
