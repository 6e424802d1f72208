"""What a comparison is of: compositions x seeds, and which of them the others are held against."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from augury.errors import UsageError, refuse_all, shown
from augury.randomness import derive
from augury.registry import Register
from augury.validation import Strict, explain
from augury_train.config import MethodConfig, RunConfig, parse_composition, read_config, read_recipe
from augury_train.files import write_text
from augury_train.training.plan import lasting

BASELINE = "baseline"
"""No method at all: always part of a suite unless another base is named."""
SUITE = "suite.json"
LONGEST = 100
"""Letters of a composition's folder."""
MOST = 1000
"""Seeds, and compositions."""
TAKEN = (".json", ".csv", ".md", ".png", ".html")
"""Endings of what lies beside those folders."""

Equal = Literal["epochs", "compute"]


@dataclass(frozen=True)
class Composition:
    """One line of a comparison.

    Attributes:
        methods: (name, options) pairs in the order of application.
        settings: what it changes of the suite's settings, nested as in a recipe; not which images there are.
    """

    methods: Sequence[tuple[str, Mapping[str, Any]]] = ()
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Suite:
    """Compositions x seeds.

    Attributes:
        config: settings of all runs; its seed is the first one, its methods are left out.
        compositions: by name, the base first.
        seeds: how many, counted up from `config.seed`.
        equal: what all runs have alike: `epochs`, or `compute`, the base's forward passes.
        epochs: of each composition where they differ.
    """

    config: RunConfig
    compositions: Mapping[str, Composition]
    seeds: int = 5
    equal: Equal = "epochs"
    epochs: Mapping[str, int] | None = None

    @property
    def base(self) -> str:
        """The composition that the others are held against."""
        return next(iter(self.compositions))

    @property
    def all_seeds(self) -> range:
        """Every seed."""
        return range(self.config.seed, self.config.seed + self.seeds)

    def run_config(self, name: str, seed: int) -> RunConfig:
        """The settings of one run."""
        composition = self.compositions[name]
        chosen = [MethodConfig(name=method, options=dict(options)) for method, options in composition.methods]
        config = self.config
        if composition.settings:
            config = read_config(_merged(config.model_dump(), composition.settings), f"composition {name}")
        config = config.model_copy(update={"methods": chosen, "seed": seed})
        epochs = (self.epochs or {}).get(name)
        return lasting(config if epochs is None else _of_length(config, epochs))

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "base": self.base,
            "seeds": list(self.all_seeds),
            "equal": self.equal,
            "epochs": dict(self.epochs) if self.epochs else None,
            "compositions": {
                name: {
                    "methods": [{"name": method, "options": dict(options)} for method, options in c.methods],
                    "settings": c.settings or {},
                }
                for name, c in self.compositions.items()
            },
            "config": self.config.model_dump(mode="json", exclude={"methods"}),
        }


def make_suite(
    config: RunConfig,
    compositions: Mapping[str, Composition],
    *,
    base: str = BASELINE,
    seeds: int = 5,
    equal: Equal = "epochs",
) -> Suite:
    """Put the base first; `baseline` is no method at all, any other base must be one of the compositions.

    Raises:
        UsageError: no such composition, or settings that a composition may not change.
    """
    found = dict(compositions)
    if base == BASELINE:
        found.setdefault(BASELINE, Composition())
    if base not in found:
        raise UsageError(
            f"the base `{base}` must be `{BASELINE}` or one of the compositions: {', '.join(found) or 'none'}. "
            f"Add it with --with {base}, or leave out --base."
        )
    folders = Counter(_as_folder(name).casefold() for name in found)
    for name in found:
        if not name or folders[_as_folder(name).casefold()] > 1 or _as_folder(name).endswith(TAKEN):
            raise UsageError(
                f"the composition's name `{name}` cannot be a folder's, or is too much like another's. "
                "Give it another name in the suite's file."
            )
    first = {base: found.pop(base)}
    suite = Suite(config, first | found, seeds, equal)
    refuse_all([line for name, c in suite.compositions.items() for line in _faults(name, c)])
    return suite


_OWN = {"base", "augmented"}


def _faults(name: str, composition: Composition) -> list[str]:
    settings = dict(composition.settings or {})
    data = settings.get("data", {})
    keys = [f"data.{key}" for key in data if key not in _OWN] if isinstance(data, dict) else ["data"]
    keys += [key for key in ("format", "seed", "methods") if key in settings]
    return [
        f"composition {name}: `{key}` must be alike in all runs of a comparison; what happens to images "
        "(data.base, data.augmented), model, optim, schedule and train may differ. Set it for the whole suite."
        for key in keys
    ]


class _Entry(Strict):
    methods: str | None = Field(None, description="methods with + between them, as after --with")
    settings: dict[str, Any] = Field(default_factory=dict, description="what differs from the suite's settings")


class _Section(Strict):
    """The section `[suite]` of a suite's file."""

    compositions: list[str] | dict[str, str | _Entry] = Field(description="what to compare")
    base: str = Field(BASELINE, description="what the others are held against")
    seeds: Annotated[int, Field(ge=1, le=MOST)] = 5
    equal: Equal = "epochs"


def read_suite(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A suite's file: a recipe with a section `[suite]`.

    Returns:
        the settings of all runs as nested values, and the arguments of `make_suite` beside them.

    Raises:
        UsageError: no such file, or what is wrong in it.
    """
    values = read_recipe(path, kind="suite")
    said = values.pop("suite", None)
    if not isinstance(said, dict):
        raise UsageError(
            f'suite {path}: has no section [suite]. Add one, with compositions = ["METHOD", "METHOD+METHOD"] in it.'
            if said is None
            else f"suite {path}: [suite] must be a table, got {shown(said)}."
        )
    try:
        section = _Section.model_validate(said)
    except ValidationError as error:
        raise UsageError("\n".join(_explained(error, path))) from None
    named = section.compositions
    if len(named) > MOST:
        raise UsageError(f"suite {path}: suite.compositions has {len(named):,} compositions; {MOST:,} are allowed.")
    entries = {text: text for text in named} if isinstance(named, list) else named
    compositions = {name: _composition(name, entry) for name, entry in entries.items()}
    return values, {"compositions": compositions, "base": section.base, "seeds": section.seeds, "equal": section.equal}


def _explained(error: ValidationError, path: Path) -> list[str]:
    """A line for each key; a composition may be text or a table, and pydantic tells of both."""
    places = [e["loc"] for e in error.errors() if e["loc"][0] == "compositions"]
    if places and error.errors()[0]["type"] != "missing":
        named = sorted({str(place[2]) for place in places if len(place) > 2})
        return [
            f"suite {path}: suite.compositions{f' `{named[0]}`' if named else ''} must be a list of compositions, or a "
            'table of them: name = "METHOD+METHOD", or name = { methods = "METHOD", settings = { train.ema = 0.99 } }.'
        ]
    return explain(error, _Section, f"suite {path}", "key", "{path} = {value} in [suite]")


def _composition(name: str, entry: str | _Entry) -> Composition:
    if isinstance(entry, str):
        return Composition(_methods(entry))
    return Composition(_methods(entry.methods) if entry.methods is not None else (), entry.settings)


def _methods(text: str) -> Sequence[tuple[str, Mapping[str, Any]]]:
    return () if text.strip() == BASELINE else parse_composition(text)


def parse_compositions(texts: Sequence[str]) -> dict[str, Composition]:
    """Compositions as the command line has them, each under its own text."""
    return {text: Composition(_methods(text)) for text in texts}


EACH = "all"
"""What stands for every listed method."""


def each_method(names: Sequence[str], register: Register | None = None) -> tuple[list[str], list[str]]:
    """Put every method that is installed and listed in the place of the name `all`.

    Args:
        names: methods, with options or without.
        register: what is listed; the built-in and the user's register when None.

    Returns:
        the names, each once, and a line for each method that is left out since it cannot be used without an option.
    """
    if EACH not in names:
        return list(names), []
    register = register or Register.load()
    found, notes = [], []
    for method in (found.name for found in register.methods() if found.status == "ready"):
        given = register.defaults.get(method, {})
        fields = register.load_class(method).Options.model_fields
        missing = [key for key, info in fields.items() if info.is_required() and key not in given]
        if missing:
            notes.append(
                f"{method} is left out: its option `{missing[0]}` must be given. "
                f"Name it: --with {method}:{missing[0]}=..."
            )
        else:
            found.append(method)
    position = names.index(EACH)
    return list(dict.fromkeys([*names[:position], *found, *names[position + 1 :]])), notes


def folder_of(folder: Path, name: str, seed: int) -> Path:
    """Where a run of a suite goes: a composition's name may hold anything that its options hold."""
    return folder / _as_folder(name) / f"seed-{seed}"


def _as_folder(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9+=,._-]", "_", name.replace(":", "_"))
    if plain == name.replace(":", "_") and len(plain) <= LONGEST and not plain.startswith("."):
        return plain
    # Another name may look the same.
    return f"{plain[:LONGEST].lstrip('.')}-{derive(0, name):016x}"


def save_suite(suite: Suite, folder: Path) -> None:
    """Write what was asked for."""
    write_text(folder / SUITE, json.dumps(suite.describe(), indent=2) + "\n")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in changes.items():
        inner = merged.get(key)
        # Further arguments of a model or an optimiser are one value, and replaced whole.
        if isinstance(value, dict) and isinstance(inner, dict) and key != "kwargs":
            value = _merged(inner, value)
        merged[key] = value
    return merged


def _of_length(config: RunConfig, epochs: int) -> RunConfig:
    """The same training in another number of epochs: what its schedule counts in epochs is scaled."""
    factor, schedule = epochs / config.optim.epochs, config.schedule
    decay = schedule.decay_epochs
    if decay is not None and (decay >= 1 or schedule.name == "step"):
        decay *= factor
    changed = {
        "milestones": [max(1, round(at * factor)) for at in schedule.milestones],
        # A warm-up is shorter than the training.
        "warmup_epochs": min(round(schedule.warmup_epochs * factor), epochs - 1),
        "length": None if schedule.length is None else max(epochs, round(schedule.length * factor)),
        # Below 1 it is a share of the curve, but for `step`.
        "decay_epochs": decay,
    }
    return config.model_copy(
        update={
            "optim": config.optim.model_copy(update={"epochs": epochs}),
            "schedule": schedule.model_copy(update=changed),
        }
    )
