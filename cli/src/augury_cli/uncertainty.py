"""`augury uncertainty`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augury_cli.settings import AsJson, Trust, open_register
from augury_cli.tables import print_fields, print_json, print_rows

if TYPE_CHECKING:
    from augury_lab.evaluation.uncertainty import Uncertainty

NAMED = 5
"""Of the most uncertain images."""


def uncertainty(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="METHOD[:OPTION=VALUE,...]",
            help="What mixes the images; those of the run's methods that do, when left out. Repeatable.",
        ),
    ] = None,
    passes: Annotated[
        int, typer.Option("--passes", metavar="N", help="Mixes of each image; more make the order surer.")
    ] = 30,
    keep: Annotated[
        float | None,
        typer.Option("--keep", metavar="SHARE", help="Write a subset of so much of each class, for --subset."),
    ] = None,
    end: Annotated[
        str,
        typer.Option("--end", metavar="WHICH", help="With --keep, what the subset keeps: uncertain or certain images."),
    ] = "uncertain",
    weights: Annotated[str, typer.Option("--weights", metavar="WHICH", help="Of the best or the last epoch.")] = "best",
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of all that is drawn.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="For the files; RUN/uncertainty when left out.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    trust: Trust = None,
    as_json: AsJson = False,
) -> None:
    """Measure how sure a network is of each of its training images, and choose a smaller set to train on.

    augury uncertainty runs/first --with dcutmix:k=3 --keep 0.15
    """
    from augury.outside import given_path
    from augury_train.config import load_config, parse_method

    named = None if methods is None else [parse_method(text) for text in methods]
    run = given_path(run, "RUN")
    used = [m.name for m in load_config(run / "config.json").methods] if named is None else [name for name, _ in named]
    register = open_register(used, trust)
    from augury_cli.progress import Terminal
    from augury_lab.evaluation.uncertainty import check_choice, choose_subset, measure_uncertainty
    from augury_lab.evaluation.uncertainty_files import check_output, write_uncertainty

    folder = output or run / "uncertainty"
    # Before the passes, which may take hours.
    check_choice(keep, end)
    check_output(folder)
    with Terminal(epochs=False) as terminal:
        found = measure_uncertainty(
            run,
            named,
            passes=passes,
            weights=weights,  # type: ignore[arg-type]  # which it refuses itself
            seed=seed,
            device=device,
            register=register,
            reporter=terminal,
        )
    files = write_uncertainty(found, folder, keep, end)
    summary: dict[str, Any] = {
        "images": len(found.entropy),
        "passes": found.passes,
        "reliability": found.reliability,
        "entropy": float(found.entropy.mean()),
        "expected": float(found.expected.mean()),
        "information": float(found.information.mean()),
        "margin": float(found.margin.mean()),
        "files": [str(file) for file in files],
    }
    if as_json:
        print_json(summary)
        return
    mixed = " and ".join(name for name, _ in found.methods)
    told = [("images", f"{summary['images']:,}, each mixed {passes} times by {mixed}")]
    told += [(key, f"{summary[key]:.3f} on average") for key in ("entropy", "expected", "information", "margin")]
    if found.reliability is not None:
        told.append(("reliability", f"{found.reliability:.2f} of 1; more with more --passes"))
    print_fields([*told, ("files", ", ".join(summary["files"]))])
    _print_most_uncertain(found)
    if keep is not None:
        words = ["augury", "run", "--recipe", str(run / "config.json"), "--subset", str(files[-1])]
        words += [*_fitting(found, len(choose_subset(found, keep, end))), "--output"]
        typer.echo()
        typer.echo(f"train on the subset: {shlex.join([*words, str(_beside(run))])}")


def _print_most_uncertain(found: Uncertainty) -> None:
    from augury_lab.evaluation.uncertainty_files import entropy_cells, most_uncertain

    places, split = most_uncertain(found)[:NAMED], found.subject.split
    names = [split.source.name(row) for row in split.rows[places].tolist()]
    classes = [found.subject.classes[label] for label in split.labels[places].tolist()]
    entropies = entropy_cells(found.entropy[places].tolist())
    margins = [f"{margin:.2f}" for margin in found.margin[places].tolist()]
    rows = list(zip(names, classes, entropies, margins, strict=True))
    titles = ("most uncertain", "class", "entropy", "margin")
    typer.echo()
    print_rows(titles, rows, wraps=titles[:2], right=titles[2:])


def _fitting(found: Uncertainty, images: int) -> list[str]:
    """The settings that a run on so few images needs: a batch of the run's own size may be more than there are."""
    optim = found.subject.config.optim
    if optim.batch_size <= images:
        return []
    # The parts of a step must be alike.
    parts = optim.accumulation if optim.accumulation <= images else 1
    words = ["--set", f"optim.batch_size={parts * 2 ** ((images // parts).bit_length() - 1)}"]
    return words if parts == optim.accumulation else [*words, "--set", "optim.accumulation=1"]


def _beside(run: Path) -> Path:
    """Where a run on the subset may go: beside this one, or beside its suite, which holds its own runs alone."""
    from augury_lab.experiment.suite import SUITE

    folder = run.resolve()
    suite = folder.parent.parent
    if (suite / SUITE).exists():
        return suite.parent / f"{suite.name}-{folder.parent.name}-{folder.name}-subset"
    return folder.parent / f"{folder.name}-subset"
