"""`augury.compare`: a comparison from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from augury.errors import UsageError
from augury.registry import Register
from augury_lab.experiment.runner import run_suite
from augury_lab.experiment.suite import BASELINE, Composition, Equal, make_suite, parse_compositions
from augury_lab.experiment.table import Comparison
from augury_train.backbones.starting import with_own_network
from augury_train.config import RunConfig, parse_method, read_config
from augury_train.progress import reporter_of
from augury_train.runs import settings_of
from augury_train.training.watch import Reporter

Methods = str | Sequence[str | tuple[str, Mapping[str, Any]]]


def compare(
    compositions: Sequence[str] | Mapping[str, Methods | Composition],
    *,
    dataset: str | Path | None = None,
    model: str | None = None,
    settings: RunConfig | Mapping[str, Any] | None = None,
    base: str = BASELINE,
    seeds: int = 5,
    equal: Equal = "epochs",
    folder: str | Path = "compare",
    jobs: int = 1,
    devices: Sequence[str] = (),
    register: Register | None = None,
    progress: bool | Reporter = True,
) -> Comparison:
    """Train compositions of methods with several seeds on the same splits, and tell which are better than the base by
    more than luck.

        found = augury.compare(["one", "other:option=3+one"], dataset="digits", seeds=5, folder="compared")
        for row in found.rows:
            print(row.composition, row.best_top1.mean, row.difference and row.difference.verdict)

    Runs that are finished in `folder` are not repeated, interrupted ones go on.

    Args:
        compositions: texts as after `--with`; or, by name, such texts, lists of names and (name, options) pairs, or
            `augury_lab.experiment.suite.Composition`s, which may change settings too.
        dataset, model: as `--dataset` and `--model`.
        settings: what else differs from the defaults: nested, as in a recipe, or with dotted keys
            ({"optim.epochs": 5}); or all settings as a `RunConfig`.
        base: what the others are held against: `baseline` (no method), or one of the compositions.
        seeds: runs of each composition, counted up from the setting `seed`.
        equal: give all runs the same `epochs`, or no more `compute` (forward passes) than the base takes.
        folder: where the runs and the comparison go.
        jobs: runs that go on at once, each in a process of its own. A script needs `if __name__ == "__main__":` then.
        devices: GPUs that they are spread over: ["cuda:0", "cuda:1"].
        register: what method names mean; the built-in and the user's register when None.
        progress: whether to show bars; or who is told.

    Raises:
        UsageError: all that is wrong with any composition, before the first is trained.
    """
    if isinstance(compositions, str):
        raise UsageError(f"compositions must be a list or a mapping, got {compositions!r}. Write [{compositions!r}].")
    if seeds < 1 or jobs < 1:
        raise UsageError(f"seeds and jobs must be at least 1, got seeds={seeds}, jobs={jobs}.")
    if equal not in get_args(Equal):
        raise UsageError(f"equal must be one of {', '.join(get_args(Equal))}, got {equal!r}.")
    if isinstance(devices, str):
        raise UsageError(f"devices must be a list, got {devices!r}. Write {devices.split(',')!r}.")
    config = with_own_network(read_config(settings_of(dataset, model, settings), subject="settings"))
    if isinstance(compositions, Mapping):
        named = {name: _composition(methods) for name, methods in compositions.items()}
    else:
        for text in compositions:
            if not isinstance(text, str):
                raise UsageError(f"compositions in a list must be text, got {text!r}. Name it: {{'mine': [...]}}.")
        named = parse_compositions(compositions)
    suite = make_suite(config, named, base=base, seeds=seeds, equal=equal)
    return run_suite(suite, Path(folder), jobs=jobs, devices=devices, register=register, reporter=reporter_of(progress))


def _composition(methods: Methods | Composition) -> Composition:
    if isinstance(methods, Composition):
        return methods
    if isinstance(methods, str):
        return next(iter(parse_compositions([methods]).values()))
    if not isinstance(methods, Sequence):
        raise UsageError(f"a composition must be text, or a list of names and (name, options) pairs, got {methods!r}.")
    return Composition([_method(method) for method in methods])


def _method(method: Any) -> tuple[str, Mapping[str, Any]]:
    if isinstance(method, str):
        return parse_method(method)
    match method:
        case (str() as name, Mapping() as options):
            return name, options
    raise UsageError(
        f"a method of a comparison must be a name or a (name, options) pair, got {method!r}: its runs are resumed by "
        "name. Let a package of yours offer it, or train it with augury.compose."
    )
