"""`augury evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augury.errors import one_line
from augury_cli.settings import AsJson
from augury_cli.tables import print_json, print_rows

if TYPE_CHECKING:
    from augury_lab.evaluation.results import Evaluated, Evaluation

ALL_FGSM, ALL_PGD = "1,2,4,8", "4"
"""What --all attacks with."""
FEW_CLASSES = 20
"""Of which a table is printed; that of more is in the file alone."""
LETTERS = 28
"""Of a class's name."""


def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, of the same data and splits.")],
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="The images: test, val or train.")] = "test",
    weights: Annotated[str, typer.Option("--weights", metavar="WHICH", help="Of the best or the last epoch.")] = "best",
    fgsm: Annotated[
        str, typer.Option("--fgsm", metavar="E,E,...", help="Attack by FGSM, changing pixels by E/255: 1,2,4,8 say.")
    ] = "",
    pgd: Annotated[
        str, typer.Option("--pgd", metavar="E,E,...", help="Attack by PGD of 20 steps, within E/255: 4 say.")
    ] = "",
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Noise, blur, weather and digital faults, at five severities.")
    ] = False,
    shifts: Annotated[bool, typer.Option("--shifts", help="Occlusion, crops and colour jitter, growing.")] = False,
    ood: Annotated[
        list[str] | None,
        typer.Option("--ood", metavar="NAME|DIR", help="Other data, of which it should be unsure. Repeatable."),
    ] = None,
    landscape: Annotated[
        bool, typer.Option("--landscape", help="The loss around the weights: 441 passes over 512 images, slow.")
    ] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help=f"All of that but --ood: --fgsm {ALL_FGSM} --pgd {ALL_PGD}, unless they are given."),
    ] = False,
    images: Annotated[
        int | None,
        typer.Option("--images", metavar="N", help="So many, drawn at random, for all but the accuracy; else all."),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", metavar="N", help="Of the landscape, both ways; an odd number.")
    ] = 21,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of all that is drawn.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="For the files; RUN/evaluation, or ./evaluation for several runs."
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", help="Most images at once: fewer take less memory.")
    ] = 256,
    as_json: AsJson = False,
) -> None:
    """Look closely at trained networks: classes, confusion, worst images, calibration, and how they bear changes.

    augury evaluate runs/first runs/second --fgsm 1,2,4 --corruptions --images 500 --output evaluation
    """
    attacks = {
        "fgsm": _epsilons(fgsm or (ALL_FGSM if everything else ""), "--fgsm"),
        "pgd": _epsilons(pgd or (ALL_PGD if everything else ""), "--pgd"),
    }
    from augury_cli.progress import Terminal
    from augury_lab.evaluation.evaluator import evaluate as run_evaluation

    with Terminal(epochs=False) as terminal:
        found = run_evaluation(
            runs,
            split=split,  # type: ignore[arg-type]  # which it refuses itself
            weights=weights,  # type: ignore[arg-type]
            fgsm=attacks["fgsm"],
            pgd=attacks["pgd"],
            corruptions=corruptions or everything,
            shifts=shifts or everything,
            ood=ood or (),
            landscape=landscape or everything,
            images=images,
            points=points,
            seed=seed,
            output=output,
            device=device,
            batch_size=batch_size,
            progress=terminal,
        )
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)


def _epsilons(text: str, flag: str) -> list[float]:
    from augury.errors import UsageError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(
            f"{flag} takes numbers with commas between them, in units of 1/255, got {text!r}. Write {flag} 1,2,4,8."
        ) from None


def _print(found: Evaluation) -> None:
    names = [run.name for run in found.runs]
    typer.echo(f"{found.runs[0].images:,} images of the {found.split} split, {found.weights} weights")
    typer.echo()
    measured = [_measured(run) for run in found.runs]
    # Of the same data and asked the same, but for a temperature that one could not be given.
    titles = list(dict.fromkeys(title for run in measured for title in run))
    rows = [[*title, *(run.get(title, "-") for run in measured)] for title in titles]
    print_rows(["", "better", *names], rows, right=names, head=[""])
    typer.echo()
    _print_classes(found.runs)
    for run in found.runs:
        _print_confusions(run, several=len(names) > 1)
    typer.echo()
    typer.echo(f"files in {found.folder}: {', '.join(found.files)}")


Title = tuple[str, str]
"""What a number is, and which end of it is better."""


def _measured(run: Evaluated) -> dict[Title, str]:
    """The numbers of the table, in its order."""
    found: dict[Title, str] = {("top-1 / %", "higher"): f"{run.measures.top1:.2f}"}
    if run.measures.top5 is not None:
        found["top-5 / %", "higher"] = f"{run.measures.top5:.2f}"
    found["balanced accuracy / %", "higher"] = f"{run.classes.balanced:.2f}"
    found["macro F1 / %", "higher"] = f"{run.classes.macro_f1:.2f}"
    found["negative log-likelihood / nats", "lower"] = f"{run.measures.nll:.3f}"
    found["calibration error / %", "lower"] = f"{run.calibration.before.ece:.2f}"
    if run.calibration.after is not None:
        found["  temperature", "near 1"] = f"{run.calibration.temperature:.2f}"
        found["  calibration error with it / %", "lower"] = f"{run.calibration.after.ece:.2f}"
        found["  log-likelihood with it / nats", "lower"] = f"{run.calibration.after.nll:.3f}"
    return found | _changed(run)


def _changed(run: Evaluated) -> dict[Title, str]:
    found: dict[Title, str] = {}
    for attack in run.attacks:
        for epsilon, top1 in zip(attack.epsilons, attack.top1, strict=True):
            what = f"{epsilon:g}/255" if epsilon else "not attacked"
            found[f"{attack.attack.upper()} {what}, top-1 / %", "higher"] = f"{top1:.2f}"
    if run.corruptions is not None:
        found["not corrupted, top-1 / %", "higher"] = f"{run.corruptions.clean:.2f}"
        found["corrupted, mean top-1 / %", "higher"] = f"{run.corruptions.mean:.2f}"
        for group, top1 in run.corruptions.groups.items():
            found[f"  {group}", "higher"] = f"{top1:.2f}"
    if run.shifts:
        found["not shifted, top-1 / %", "higher"] = f"{next(iter(run.shifts.values())).clean:.2f}"
    for name, shift in run.shifts.items():
        mean = sum(shift.top1) / len(shift.top1)
        found[f"  {name.replace('_', ' ')}, mean of {len(shift.top1)} strengths", "higher"] = f"{mean:.2f}"
    for other in run.outliers:
        found[f"{other.name} as outliers, AUROC / %", "higher"] = f"{other.auroc:.2f}"
        found[f"{other.name} taken for own / %", "lower"] = f"{other.fpr95:.2f}"
    if run.landscape is not None:
        rise = run.landscape.rise
        found["rise of the loss nearby / nats", "lower"] = "not finite" if rise is None else f"{rise:.3f}"
    return found


def _print_classes(runs: list[Evaluated]) -> None:
    classes = runs[0].classes.rows
    if len(classes) > FEW_CLASSES:
        return
    if len(runs) == 1:
        titles = ["class", "images", "recall / %", "precision / %", "F1 / %"]
        rows = [[_short(c.name), str(c.support), *map(_share, (c.recall, c.precision, c.f1))] for c in classes]
    else:
        titles = ["recall / %", "images", *(run.name for run in runs)]
        rows = [
            [_short(c.name), str(c.support), *(_share(run.classes.rows[label].recall) for run in runs)]
            for label, c in enumerate(classes)
        ]
    print_rows(titles, rows, right=titles[1:], head=titles[:1])
    typer.echo()


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _print_confusions(run: Evaluated, *, several: bool) -> None:
    """The classes that are taken for another most often."""
    names = [_short(row.name) for row in run.classes.rows]
    pairs = [
        (count, names[true], names[taken])
        for true, counts in enumerate(run.classes.confusion)
        for taken, count in enumerate(counts)
        if taken != true and count
    ]
    most = sorted(pairs, key=lambda pair: -pair[0])[:3]
    told = ", ".join(f"{true} for {taken} ({count})" for count, true, taken in most) or "nothing"
    typer.echo(one_line(f"{run.name + ': ' if several else ''}most often taken for another: {told}"))
