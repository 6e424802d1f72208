"""`augury.train`, `augury.resume` and `augury.rehearse`: a run from Python."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from augury.choice import own_name, refuse_no_list
from augury.errors import UsageError
from augury.method import Method
from augury.registry import Register
from augury_train.backbones.starting import with_own_network
from augury_train.config import RunConfig, assign, parse_method, read_config, read_recipe
from augury_train.progress import reporter_of
from augury_train.recipes import find_recipe
from augury_train.training import rehearsal, trainer
from augury_train.training.rehearsal import Rehearsal
from augury_train.training.result import Result
from augury_train.training.watch import Reporter

RunMethod = str | tuple[str, Mapping[str, Any]] | type[Method] | tuple[type[Method], Mapping[str, Any]]
"""A method of a run: text as after `--with`, a name or a class, and either with options."""


def train(
    methods: Iterable[RunMethod] | None = None,
    *,
    dataset: str | Path | None = None,
    model: str | None = None,
    settings: RunConfig | Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    folder: str | Path = "run",
    register: Register | None = None,
    progress: bool | Reporter = True,
) -> Result:
    """Train a network as `augury run` does.

        result = augury.train(["one:option=3", ("other", {"option": 0.5})], dataset="digits", folder="runs/first")
        print(result.best["test"].top1, result.costs.seconds)

    Args:
        methods: in the order of application: texts as after `--with`, names or `augury.Method` classes, either with
            options; those of the recipe or the settings when None. A class is known by its name in lower letters, and
            must be given to `resume` too.
        dataset, model: as `--dataset` and `--model`.
        settings: what else differs from the defaults, or from the recipe: nested, as in a recipe, or with dotted keys
            ({"optim.epochs": 5}), the last one counting; or all settings as a `RunConfig`.
        recipe: the name of a recipe, or a TOML file.
        folder: the run folder; it must not exist.
        register: what method names mean; the built-in and the user's register when None.
        progress: whether to show bars; or who is told.

    Returns:
        how good the network is, of its best and of its last epoch, and what it cost. Its weights are in the folder.

    Raises:
        UsageError: all that is wrong with the settings, a line each; or the folder exists.
        Interrupted: Ctrl-C; go on with `resume`.
    """
    config, register = _config(methods, dataset, model, settings, recipe, register)
    return trainer.train(config, Path(folder), register=register, reporter=reporter_of(progress))


def resume(
    folder: str | Path,
    *,
    methods: Iterable[type[Method]] = (),
    register: Register | None = None,
    progress: bool | Reporter = True,
) -> Result:
    """Go on with an interrupted run from its newest checkpoint; a finished one only returns its result.

    Args:
        folder: the run folder.
        methods: the classes among the run's methods that no installed package offers.
        register: what method names mean; the built-in and the user's register when None.
        progress: whether to show bars; or who is told.

    Raises:
        UsageError: no run folder, a damaged one, or a method that is not to be had.
    """
    refuse_no_list(methods)
    for cls in methods:
        register = (register or Register.load()).offering(own_name(cls), cls)
    return trainer.resume(Path(folder), register=register, reporter=reporter_of(progress))


def rehearse(
    methods: Iterable[RunMethod] | None = None,
    *,
    dataset: str | Path | None = None,
    model: str | None = None,
    settings: RunConfig | Mapping[str, Any] | None = None,
    recipe: str | Path | None = None,
    register: Register | None = None,
) -> Rehearsal:
    """What a run will be made of and cost, as `augury run --dry-run` tells: all is built, two steps are taken on noise,
    nothing is written. Arguments as for `train`.

    Raises:
        UsageError: all that is wrong with the settings, a line each.
    """
    config, register = _config(methods, dataset, model, settings, recipe, register)
    return rehearsal.rehearse(config, register)


def settings_of(
    dataset: str | Path | None,
    model: str | None,
    settings: RunConfig | Mapping[str, Any] | None,
    recipe: str | Path | None = None,
    register: Register | None = None,
) -> dict[str, Any]:
    """Settings from the arguments of a call, nested and not checked yet.

    Raises:
        UsageError: no such recipe, or settings that do not belong in a section.
    """
    if isinstance(settings, RunConfig) and recipe is not None:
        raise UsageError("settings are a whole RunConfig, and so is a recipe. Give one of them, or settings as a dict.")
    values = {} if recipe is None else read_recipe(find_recipe(recipe, register))
    if isinstance(settings, RunConfig):
        # What is not set has the default of the format.
        values = settings.model_dump(exclude_unset=True) | {"format": settings.format}
    else:
        if not isinstance(settings or {}, Mapping):
            raise UsageError(
                f"settings must be a dict or a RunConfig, got {settings!r}. Write {{'optim.epochs': 5}}, say."
            )
        for path, value in _flat(settings or {}):
            assign(values, path, value)
    if dataset is not None:
        assign(values, "data.dataset", str(dataset))
    if model is not None:
        assign(values, "model.name", model)
    return values


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """The settings by dotted keys, so that a section changes what it names and nothing beside it."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and f"{above}{key}" != "model.kwargs":
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _config(
    methods: Iterable[RunMethod] | None,
    dataset: str | Path | None,
    model: str | None,
    settings: RunConfig | Mapping[str, Any] | None,
    recipe: str | Path | None,
    register: Register | None,
) -> tuple[RunConfig, Register | None]:
    """The settings of a run, and the register that knows its methods."""
    values = settings_of(dataset, model, settings, recipe, register)
    if methods is not None:
        named = []
        refuse_no_list(methods)
        for method in methods:
            name, options, cls = _method(method)
            named.append({"name": name, "options": dict(options)})
            if cls is not None:
                register = (register or Register.load()).offering(name, cls)
        values["methods"] = named
    return with_own_network(read_config(values, subject="settings")), register


def _method(method: Any) -> tuple[str, Mapping[str, Any], type[Method] | None]:
    """Name, options, and the class where one is given."""
    match method:
        case str():
            return *parse_method(method), None
        case (str() as name, Mapping() as options):
            return name, options, None
        case (type() as cls, Mapping() as options):
            return own_name(cls), options, cls
        case type() as cls:
            return own_name(cls), {}, cls
    raise UsageError(
        f"a method of a run must be a name, a class, or one of them with options, got {method!r}. "
        "An object of a method is for augury.compose: a run makes its own."
    )
