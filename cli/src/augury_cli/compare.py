"""`augury compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from augury_cli.settings import (
    AsJson,
    Dataset,
    InitFrom,
    Model,
    Pretrained,
    Recipe,
    Set,
    SkipBad,
    Subset,
    Trust,
    open_register,
    read_settings,
    recipes_network,
)
from augury_cli.tables import print_rows

if TYPE_CHECKING:
    from augury_lab.experiment.table import Comparison


def compare(
    suite_file: Annotated[
        Path | None,
        typer.Argument(metavar="SUITE", help="A TOML file: a recipe with a section [suite]. Flags change it."),
    ] = None,
    dataset: Dataset = None,
    model: Model = None,
    compositions: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="METHOD[:OPTIONS][+METHOD...]", help="A composition: methods with + between. Repeatable."
        ),
    ] = None,
    each: Annotated[
        str | None,
        typer.Option(
            "--with-each", metavar="METHOD,METHOD", help="Each of these methods alone; `all`: every listed one."
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="COMPOSITION", help="What the others are held against; `baseline`: no method."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, help="Runs of each composition, seeds counted up from `seed`; 5 by default."),
    ] = None,
    equal: Annotated[
        Literal["epochs", "compute"] | None,
        typer.Option("--equal", help="Give all the same epochs (default), or the base's budget of forward passes."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at once, each in a process of its own.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", metavar="DEVICE[,DEVICE]", help="cpu, cuda, or GPUs to spread the runs over: cuda:0,cuda:1."
        ),
    ] = None,
    set_: Set = None,
    recipe: Recipe = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Where all of it goes; the suite's name, or `compare`, by default."
        ),
    ] = None,
    pretrained: Pretrained = False,
    init_from: InitFrom = None,
    skip_bad: SkipBad = False,
    subset: Subset = None,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Train compositions of methods with several seeds, and tell which are better by more than luck.

    Finished runs in the output folder are not repeated, interrupted ones go on.

    augury compare --dataset digits --with-each isda,agmax --with dcutmix:k=3+isda --seeds 5 --output compared
    """
    from augury.errors import UsageError
    from augury_lab.experiment.suite import BASELINE, each_method, make_suite, parse_compositions, read_suite

    if suite_file is not None and recipe is not None:
        raise UsageError("a suite's file is a recipe: give one of SUITE and --recipe.")
    values, said = read_suite(suite_file) if suite_file is not None else ({}, {})
    config = read_settings(
        recipe,
        dataset,
        model,
        None,
        set_,
        pretrained=pretrained,
        init_from=init_from,
        skip_bad=skip_bad,
        subset=subset,
        values=values,
        file=suite_file,
    )
    devices, config = _devices(device, config)
    singles, notes = each_method([name.strip() for name in (each or "").split(",") if name.strip()])
    for note in notes:
        typer.echo(note, err=True)
    texts = [*singles, *(compositions or [])]
    base = base or said.get("base", BASELINE)
    named = {**said.get("compositions", {}), **parse_compositions(texts)}
    if base != BASELINE and base not in named:
        named |= parse_compositions([base])
    suite = make_suite(
        config,
        named,
        base=base,
        seeds=seeds or said.get("seeds", 5),
        equal=equal or said.get("equal", "epochs"),
    )
    if len(suite.compositions) == 1:
        raise UsageError(
            f"there is nothing to compare {base} with. Name compositions: --with-each METHOD,METHOD, --with."
        )
    register = open_register([name for c in suite.compositions.values() for name, _ in c.methods], trust)
    folder = output or Path(suite_file.stem if suite_file is not None else "compare")
    from augury_cli.progress import Terminal
    from augury_lab.experiment.runner import run_suite

    with recipes_network(recipe, config), Terminal(epochs=False) as terminal:
        comparison = run_suite(
            suite, folder, jobs=jobs or max(1, len(devices)), devices=devices, register=register, reporter=terminal
        )
    if as_json:
        typer.echo((comparison.folder / "comparison.json").read_text(encoding="utf-8"), nl=False)
    else:
        _print(comparison)


def _devices(device: str | None, config: Any) -> tuple[list[str], Any]:
    """The GPUs to spread over, or the settings with another kind of device."""
    if device is None:
        return [], config
    devices = [name.strip() for name in device.split(",") if name.strip()]
    if devices in (["cpu"], ["auto"], ["cuda"]):
        return [], config.model_copy(update={"device": devices[0]})
    return devices, config


def _print(comparison: Comparison) -> None:
    from augury_lab.experiment.wording import SPARE, TEXTS, columns, cost_columns, explanation

    titles, rows = columns(comparison)
    numbers = [title for title in titles if title not in TEXTS]
    print_rows(titles, rows, wraps=TEXTS, right=numbers, head=titles[:2], spare=SPARE)
    typer.echo(explanation(comparison))
    typer.echo()
    titles, rows = cost_columns(comparison)
    print_rows(titles, rows, wraps=titles[:1], right=titles[1:], head=titles[:2])
    folder = comparison.folder
    typer.echo(f"tables {folder}/comparison.csv, .md, .json; pictures {folder}/*.png; runs {folder}/*/seed-*")
    typer.echo(f"a page of all of it: augury report {folder}")
