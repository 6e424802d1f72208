"""`augury compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.settings import (
    AsJson,
    Dataset,
    Model,
    Pretrained,
    Recipe,
    Set,
    SkipBad,
    Trust,
    open_register,
    read_settings,
    recipes_network,
)
from augury_cli.tables import print_rows

if TYPE_CHECKING:
    from augury.experiment import Comparison


def compare(
    dataset: Dataset = None,
    model: Model = None,
    compositions: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="METHOD[:OPTIONS][+METHOD...]", help="A composition: methods with + between. Repeatable."
        ),
    ] = None,
    each: Annotated[
        str | None, typer.Option("--with-each", metavar="METHOD,METHOD", help="Each of these methods alone.")
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Runs of each composition, with seeds counted up from `seed`.")
    ] = 2,
    set_: Set = None,
    recipe: Recipe = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the runs and the comparison go.")
    ] = Path("compare"),
    pretrained: Pretrained = False,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    trust: Trust = None,
) -> None:
    """Train a baseline and compositions of methods with several seeds, and compare them.

    Finished runs in the output folder are not repeated.

    augury compare --dataset digits --with-each isda,agmax --with dcutmix:k=3+isda --seeds 2 --output compare
    """
    from augury.config import parse_composition

    config = read_settings(recipe, dataset, model, None, set_, pretrained=pretrained, skip_bad=skip_bad)
    texts = [name.strip() for name in (each or "").split(",") if name.strip()] + (compositions or [])
    suite = {text: parse_composition(text) for text in texts}
    register = open_register([name for methods in suite.values() for name, _ in methods], trust)
    from augury.experiment import compare as run_comparison
    from augury_cli.progress import Terminal

    with recipes_network(recipe, config), Terminal(epochs=False) as terminal:
        comparison = run_comparison(config, suite, seeds=seeds, folder=output, register=register, reporter=terminal)
    if as_json:
        typer.echo((comparison.folder / "comparison.json").read_text(encoding="utf-8"), nl=False)
    else:
        _print(comparison)


def _print(comparison: Comparison) -> None:
    titles = ("composition", f"{comparison.split} top-1 / %", "difference", "seconds", "images/s")
    rows = []
    for row in comparison.rows:
        spread = f" ± {row.std:.2f}" if row.std is not None else ""
        top1 = f"{row.top1:.2f}{spread}"
        difference = f"{row.difference:+.2f}" if row is not comparison.rows[0] else ""
        rows.append((row.composition, top1, difference, f"{row.seconds:.1f}", f"{row.images_per_second:,.0f}"))
    print_rows(titles, rows, wraps=titles[:1], right=titles[1:], head=titles[:2])
    seeds = comparison.rows[0].seeds
    typer.echo(f"Mean ± standard deviation over {seeds} seed(s), difference to the baseline of the same seed.")
    typer.echo(
        f"curves {comparison.folder}/curves.png, a batch {comparison.folder}/batch.png, "
        f"table {comparison.folder}/comparison.csv, runs {comparison.folder}/*/seed-*"
    )
