"""A suite carried out: every run once, whatever was done before, and then the comparison."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from augury.errors import AuguryError, RunError, UsageError, counted, refuse_all
from augury.outside import RECORDED, given_path, parse_json, read_text
from augury.registry import Register
from augury_lab.experiment.budget import equal_compute
from augury_lab.experiment.jobs import check_devices, in_processes
from augury_lab.experiment.plots import draw
from augury_lab.experiment.suite import SUITE, Suite, folder_of, save_suite
from augury_lab.experiment.table import Comparison, summarise, write
from augury_lab.experiment.worker import Task, warm_up
from augury_train.config import from_file, load_config, read_config
from augury_train.data.view import DataSet
from augury_train.files import WriteError, refuse_ways_out, replacing
from augury_train.formats import check_format
from augury_train.open_files import too_many_open_files
from augury_train.training.facts import begun, check_same_data
from augury_train.training.folder import CONFIG
from augury_train.training.lock import LOCK, lock
from augury_train.training.plan import Plan, lasting, make_plan, refuse_inside_data
from augury_train.training.result import RESULT, Result
from augury_train.training.start_lines import labelled, start_fields
from augury_train.training.trainer import resume, train
from augury_train.training.watch import Interrupted, Reporter, Silent, StopRequest


def run_suite(
    suite: Suite,
    folder: Path,
    *,
    jobs: int = 1,
    devices: Sequence[str] = (),
    register: Register | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Train every composition with every seed, and compare.

    Runs that are finished in `folder` are not repeated, interrupted ones go on; a run with other settings there is
    refused.

    Args:
        suite: what to run.
        folder: gets `<composition>/seed-<n>/`, `suite.json`, and what `augury_lab.experiment.table` and `plots` write.
        jobs: runs that go on at once, each in a process of its own.
        devices: the GPUs they are spread over, "cuda:0" say.
        register: what method names mean.
        reporter: who watches.

    Raises:
        UsageError: all that is wrong with any composition, before the first is trained.
    """
    reporter = reporter or Silent()
    check_devices(devices)
    folder = given_path(folder, "--output")
    _refuse_foreign(folder)
    config = lasting(suite.config)
    suite = replace(suite, config=config.model_copy(update={"device": "cuda"}) if devices else config)
    suite = _in_format_of(suite, folder)
    refuse_inside_data(folder, suite.config)
    plans = _check(suite, register)
    plan = plans[suite.base]
    with _locked(folder):
        _introduce(suite, plan, reporter)
        suite = _with_loader(suite, folder, plan)
        if suite.equal == "compute":
            reporter.note("equal compute: two short rehearsals of each composition count its forward passes")
            suite = replace(suite, epochs=_lengths(suite, folder, plan.data, register))
        data = {name: plan.data for name, plan in plans.items()}
        refuse_all([line for name, seed in _runs(suite) for line in _clashes(suite, name, seed, folder, data[name])])
        save_suite(suite, folder)
        results = _carry_out(suite, folder, data, jobs, devices, register, reporter)
        splits = plan.data.splits
        judged = results[suite.base][0].judged_on
        comparison = summarise(
            results,
            suite.base,
            judged,
            suite.equal,
            list(suite.all_seeds),
            len(getattr(splits, judged) or ()),
            folder,
        )
        write(comparison)
        draw(comparison)
        _show_batch(comparison)
    return comparison


def _introduce(suite: Suite, plan: Plan, reporter: Reporter) -> None:
    """Tell what all runs of the suite run on, and which compositions there are."""
    fields = start_fields(plan) | {"methods": f"{', '.join(suite.compositions)}; {counted(suite.seeds, 'seed')} each"}
    for line in labelled(fields):
        reporter.note(line)


def _runs(suite: Suite) -> list[tuple[str, int]]:
    # Seed by seed, so that what stands after an interruption compares compositions.
    return [(name, seed) for seed in suite.all_seeds for name in suite.compositions]


def _check(suite: Suite, register: Register | None) -> dict[str, Plan]:
    """The plans of all compositions; those of the same images, as the same network wants them, share the images."""
    problems: list[str] = []
    plans: dict[str, Plan] = {}
    opened: dict[str, DataSet] = {}
    for name in suite.compositions:
        try:
            config = suite.run_config(name, suite.config.seed)
            if suite.equal == "compute" and config.train.patience is not None:
                raise UsageError(
                    f"train.patience={config.train.patience} ends runs early, and --equal compute needs runs that go "
                    "to their end. Leave out one of the two."
                )
            alike = config.data.model_dump_json(exclude={"base", "augmented"}) + config.model.model_dump_json()
            plans[name] = make_plan(config, register, opened.get(alike))
            opened[alike] = plans[name].data
        except UsageError as error:
            problems += [line for line in str(error).splitlines() if line not in problems]
    refuse_all(problems)
    return plans


def _with_loader(suite: Suite, folder: Path, plan: Plan) -> Suite:
    """The suite with one loader for all its runs, whose draws would differ else: `auto` looks at the memory that is
    free, which runs at work take."""
    if suite.config.data.loader != "auto":
        return suite
    loader = plan.loader
    for name, seed in _runs(suite):
        with contextlib.suppress(UsageError):
            loader = begun(folder_of(folder, name, seed)).loader
            break
    data = suite.config.data.model_copy(update={"loader": loader})
    return replace(suite, config=suite.config.model_copy(update={"data": data}))


def _in_format_of(suite: Suite, folder: Path) -> Suite:
    """Return the suite with the meaning that settings had when the comparison in `folder` began, if one did."""
    try:
        begun_in = parse_json(read_text(folder / SUITE, RECORDED))["config"].get("format")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return suite
    if check_format(begun_in, str(folder / SUITE)) >= suite.config.format:
        return suite
    return replace(
        suite, config=read_config(from_file(suite.config.model_dump(exclude_unset=True, exclude={"format"})))
    )


def _lengths(suite: Suite, folder: Path, data: DataSet, register: Register | None) -> dict[str, int]:
    """The epochs of each composition: those that the suite began with, where it did."""
    try:
        said = parse_json(read_text(folder / SUITE, RECORDED))
        before = said["epochs"]
        now = suite.describe()
        if before and not all(type(epochs) is int and epochs > 0 for epochs in before.values()):
            raise ValueError("epochs that no training has")
        # Settings that an older augury did not know are in `now` alone.
        said["config"] = read_config(from_file(said["config"])).model_dump(mode="json", exclude={"methods"})
        if before and {**said, "epochs": None, "seeds": None} == {**now, "seeds": None}:
            return dict(before)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return equal_compute(suite, data, register)


def _clashes(suite: Suite, name: str, seed: int, folder: Path, data: DataSet) -> list[str]:
    """Why the run that is there already is not the one wanted."""
    place = folder_of(folder, name, seed)
    if not (place / CONFIG).exists():
        return []
    before, now = load_config(place / CONFIG).model_dump(), suite.run_config(name, seed).model_dump()
    if before != now:
        return [f"{place} holds a run with {_difference(before, now)}. Choose another --output, or delete it."]
    try:
        check_same_data(place, begun(place), data)
    except UsageError as error:
        return [str(error)]
    return []


def _difference(before: Any, now: Any, path: str = "") -> str:
    """The first setting that is not the same, in words."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        key = next(key for key in now if before[key] != now[key])
        return _difference(before[key], now[key], f"{path}.{key}".lstrip("."))
    return f"other settings: {path} is {before}, now {now}"


def _refuse_foreign(folder: Path) -> None:
    """Raises: UsageError where something else than a comparison is in the folder, or a link leads out of it."""
    refuse_ways_out(folder)
    if folder.is_dir() and not (folder / SUITE).exists() and {p.name for p in folder.iterdir()} - {LOCK}:
        raise UsageError(f"{folder} exists and holds no comparison. Choose another --output.")


def _carry_out(
    suite: Suite,
    folder: Path,
    data: Mapping[str, DataSet],
    jobs: int,
    devices: Sequence[str],
    register: Register | None,
    reporter: Reporter,
) -> dict[str, list[Result]]:
    tasks = [
        Task(
            label=f"{number}/{len(suite.compositions) * suite.seeds} {name}, seed {seed}",
            config=suite.run_config(name, seed),
            folder=folder_of(folder, name, seed),
            others=tuple(folder_of(folder, other, seed) for other in suite.compositions if other != name),
        )
        for number, (name, seed) in enumerate(_runs(suite), 1)
    ]
    try:
        if jobs > 1 or devices:
            found = in_processes(tasks, finish, jobs, devices, register, reporter)
        else:
            warm_up()
            names = [name for name, _ in _runs(suite)]
            found = _one_by_one(tasks, [data[name] for name in names], register, reporter)
    except Interrupted as stopped:
        done = sum((task.folder / RESULT).exists() for task in tasks)
        raise Interrupted(
            f"interrupted; {done} of {len(tasks)} runs are finished, and what was done is kept. "
            "Go on with the same command.",
            stopped.number,
        ) from None
    results: dict[str, list[Result]] = {name: [] for name in suite.compositions}
    for (name, _), result in zip(_runs(suite), found, strict=True):
        results[name].append(result)
    return results


def _one_by_one(
    tasks: Sequence[Task], data: Sequence[DataSet], register: Register | None, reporter: Reporter
) -> list[Result]:
    found = []
    with StopRequest() as stop:
        stop.way_on = "the same command"
        for task, images in zip(tasks, data, strict=True):
            found.append(finish(task, register, reporter.named(task.label), images))
            # Asked when the run had no step left.
            if stop.asked and len(found) < len(tasks):
                raise stop.interrupted()
    return found


def finish(task: Task, register: Register | None, reporter: Reporter, data: DataSet | None = None) -> Result:
    """Carry out one run of a suite, from wherever it is.

    Raises:
        AuguryError: as `train` does; the message names the run.
    """
    try:
        if (task.folder / CONFIG).exists():
            return resume(
                task.folder, register=register, reporter=reporter, data=data, others=task.others, introduced=False
            )
        return train(
            task.config,
            task.folder,
            register=register,
            reporter=reporter,
            data=data,
            others=task.others,
            introduced=False,
        )
    except Interrupted:
        raise
    except AuguryError as error:
        raise type(error)(f"{task.name}: {error}") from None
    except Exception as error:
        if (too_many := too_many_open_files(error)) is not None:
            raise RunError(f"{task.name}: {too_many}") from None
        raise AuguryError(f"{task.name}: {type(error).__name__}: {error}") from error


def _show_batch(comparison: Comparison) -> None:
    """What the last composition made of its first batch."""
    *_, last = comparison.runs.values()
    drawn = Path(last[0].folder) / "figures" / "batch.png"
    # A training of which every batch so far was left empty has drawn none.
    if drawn.exists():
        with replacing(comparison.folder / "batch.png") as partial:
            shutil.copyfile(drawn, partial)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second program from carrying out the same suite at once; the system lets go when this one ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder, f"{folder}: another `augury compare` is at work there. Wait, or choose another --output."):
            yield
    except WriteError as error:
        # A run's own has been told with how that run goes on, and names no file any more.
        if error.filename is None:
            raise
        raise RunError(f"{error}\nOnce that is mended, go on with the same command.") from None
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(folder)):
            raise
        raise UsageError(f"{error.filename}: cannot be written ({error.strerror}). Choose another --output.") from None
