"""`augury run`, `augury resume` and `augury preview`."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.processes import Processes, in_processes, is_first, watching
from augury_cli.settings import (
    AsJson,
    AutoBatch,
    Dataset,
    InitFrom,
    Methods,
    Model,
    OnNan,
    Pretrained,
    Recipe,
    SaveEvery,
    Set,
    SkipBad,
    Subset,
    SyncBn,
    Trust,
    open_register,
    read_settings,
    recipes_network,
)

if TYPE_CHECKING:
    from augury_train.training.rehearsal import Rehearsal
    from augury_train.training.result import Result


def run(
    dataset: Dataset = None,
    model: Model = None,
    methods: Methods = None,
    set_: Set = None,
    recipe: Recipe = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The run folder; it must not exist.")
    ] = Path("run"),
    pretrained: Pretrained = False,
    init_from: InitFrom = None,
    skip_bad: SkipBad = False,
    subset: Subset = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build all, take two steps on noise, and print the plan and its cost.")
    ] = False,
    save_every: SaveEvery = None,
    on_nan: OnNan = None,
    auto_batch: AutoBatch = False,
    processes: Processes = None,
    sync_bn: SyncBn = False,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Train a network, with any methods.

    augury run --dataset digits --with isda:lambda_0=0.25 --with dcutmix --set optim.epochs=5 --output runs/first
    """
    from augury.outside import given_path

    config = read_settings(
        recipe,
        dataset,
        model,
        methods,
        set_,
        pretrained=pretrained,
        init_from=init_from,
        skip_bad=skip_bad,
        subset=subset,
        save_every=save_every,
        on_nan=on_nan,
        auto_batch=auto_batch,
        sync_bn=sync_bn,
    )
    register = open_register([m.name for m in config.methods], trust)
    in_processes(processes, given_path(output, "--output"))
    if dry_run:
        from augury_train.training.rehearsal import rehearse

        with recipes_network(recipe, config):
            found = rehearse(config, register)
        if is_first():
            _print_rehearsal(found, as_json)
        return
    from augury_train.training.trainer import train

    with recipes_network(recipe, config), watching() as reporter:
        result = train(config, output, register=register, reporter=reporter)
    _summary(result, as_json)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an interrupted run.")],
    processes: Processes = None,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Go on with a run from its newest checkpoint."""
    from augury.outside import given_path
    from augury_train.config import load_config

    folder = given_path(folder, "RUN")
    config = load_config(folder / "config.json")
    register = open_register([m.name for m in config.methods], trust)
    in_processes(processes, folder)
    from augury_train.training.trainer import resume as resume_run

    with watching() as reporter:
        result = resume_run(folder, register=register, reporter=reporter)
    _summary(result, as_json)


def preview(
    dataset: Dataset = None,
    model: Model = None,
    methods: Methods = None,
    set_: Set = None,
    recipe: Recipe = None,
    images: Annotated[int, typer.Option("--images", min=1, max=32, help="How many to show.")] = 8,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The batch's picture; PNG, SVG or PDF by its suffix.")
    ] = Path("preview.png"),
    pretrained: Pretrained = False,
    init_from: InitFrom = None,
    skip_bad: SkipBad = False,
    trust: Trust = None,
) -> None:
    """Draw what a batch becomes: images as loaded above, as trained on below, with their labels.

    Methods with a pre-train stage go through it first, and what they show of it is drawn beside.

    augury preview --dataset digits --with dcutmix:k=3 --output preview.png
    """
    from augury.errors import UsageError
    from augury.outside import given_path

    output = given_path(output, "--output")
    if output.is_dir():
        raise UsageError(f"{output} is a folder. Name a file with --output, {output / 'preview.png'} say.")
    output = output if output.suffix else output.with_suffix(".png")
    config = read_settings(
        recipe, dataset, model, methods, set_, pretrained=pretrained, init_from=init_from, skip_bad=skip_bad
    )
    register = open_register([m.name for m in config.methods], trust)
    from augury_cli.progress import Terminal
    from augury_train.training.rehearsal import preview as draw

    with recipes_network(recipe, config), Terminal(epochs=False) as terminal:
        figures = draw(config, columns=images, register=register, reporter=terminal)
    for name, figure in figures.items():
        path = output if name == "batch" else output.with_stem(f"{output.stem}-{name.replace('/', '-')}")
        try:
            figure.savefig(path, dpi=110)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be written: {error}. Choose another --output.") from None
        typer.echo(f"picture {path}")


def _summary(result: Result, as_json: bool) -> None:
    if not is_first():
        return
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(result), indent=2))
        return
    of_average = " (of the averaged weights)" if result.weights == "ema" else ""
    best, last = f"best   epoch {result.best_epoch:>3}", f"last   epoch {result.epochs:>3}"
    for title, measured in ((best, result.best), (last, result.last)):
        told = [f"{split} top-1 {found.top1:.2f} %" for split, found in measured.items()]
        typer.echo("   ".join([title, *told]) + of_average)
    if result.chosen_on == "test":
        typer.echo("protocol paper: the best epoch is the best on the test split, so it flatters")
    costs = result.costs
    peak = "" if costs.peak_bytes is None else f", at most {costs.peak_bytes / 2**30:.2f} GiB of memory"
    typer.echo(
        f"{costs.seconds:.1f} s, {costs.images_per_second:,.0f} images/s in training, "
        f"{costs.forward_passes:,} forward passes{peak}"
    )
    typer.echo(
        f"weights {result.folder}/best.safetensors, metrics {result.folder}/metrics.jsonl, "
        f"pictures {result.folder}/figures"
    )
    typer.echo(f"train on from these weights: {_command(result)}")


def _command(result: Result) -> str:
    """Another run that starts with a run's best weights."""
    folder = Path(result.folder)
    words = ["augury", "run", "--recipe", str(folder / "config.json"), "--init-from", str(folder)]
    return shlex.join([*words, "--output", str(folder.with_name(folder.name + "-2"))])


def _print_rehearsal(found: Rehearsal, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    from augury_train.training.start_lines import labelled

    total = found.epoch_seconds * found.epochs
    fields = {name: " ".join(words) or "nothing" for name, words in found.pipelines.items()} | {
        "loader": found.loader,
        "steps": f"{found.epochs} epochs of {found.steps_per_epoch} steps of {found.batch_size} images",
        "time": f"{found.step_seconds:.3f} s a step, {_duration(found.epoch_seconds)} an epoch, {_duration(total)} "
        "in all, without reading images, evaluation and pre-train stages",
    }
    if found.method_parameters:
        fields["trained"] = f"{found.method_parameters / 1e6:.2f} M parameters of methods beside the network's"
    if found.peak_bytes is not None:
        fields["memory"] = f"at most {found.peak_bytes / 2**30:.2f} GiB"
    for line in (*found.start_lines, *labelled(fields)):
        typer.echo(line)
    for note in found.notes:
        typer.echo(note, err=True)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
