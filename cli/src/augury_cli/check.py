"""`augury plugins check`: the methods against the register, the contract and the clock."""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.tables import print_json, print_rows

if TYPE_CHECKING:
    from augury_authoring.checking import Checked, Report
    from augury_train.training.hook_costs import ReferenceStep

_TITLES = (
    "name",
    "package",
    "listed",
    "hooks",
    "contract",
    "suite",
    "augment_batch",
    "compute_loss",
    "post_step",
    "rows",
)
_WRAPS = ("package", "listed", "hooks", "suite")
_RIGHT = ("augment_batch", "compute_loss", "post_step", "rows")
# The least needed first: what is wrong with any of them is a line of its own.
_SPARE = ("contract", "hooks", "package", "listed", "post_step")


def check(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Methods; all of them when none is named.")
    ] = None,
    suite: Annotated[
        bool | None,
        typer.Option(
            "--suite/--no-suite",
            help="Run the contract suite, which takes most of the time.",
            show_default="where pytest is installed",
        ),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Leave out of the suite what takes longest: two processes, and the other methods."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an object and nothing else on stdout.")] = False,
) -> None:
    """Hold methods against the register and the contract: what is listed, its hooks, the contract suite, what each
    hook adds to a step. Those that no register lists are told by their metadata alone. Exits with 1 when one fails."""
    from augury.registry import Register
    from augury_authoring.checking import check as run_check

    register = Register.load()
    watch = _Watch()
    try:
        # What a method prints is no part of the answer.
        with contextlib.redirect_stdout(sys.stderr):
            report = run_check(names or (), register, suite=suite, quick=quick, watch=watch)
    finally:
        watch.stop()
    if as_json:
        methods = [asdict(method) | {"passed": method.passed} for method in report.methods]
        print_json(asdict(report) | {"methods": methods, "passed": report.passed})
    else:
        _print(report)
    for line in register.notes:
        typer.echo(line, err=True)
    if not report.passed:
        raise typer.Exit(1)


class _Watch:
    """Says what is being done: in one line that changes on a terminal, else a line when something new begins."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def __call__(self, doing: str, at: str = "") -> None:
        if self._live:
            # A line that wraps could not be taken back.
            line = f"{doing}: {at}" if at else doing
            typer.echo(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}", err=True, nl=False)
        elif not at:
            typer.echo(doing, err=True)

    def stop(self) -> None:
        if self._live:
            typer.echo("\r\x1b[K", err=True, nl=False)


def _print(report: Report) -> None:
    from augury_authoring.checking import failures

    tried = [method for method in report.methods if method.layer and method.version]
    if tried:
        columns = zip(_TITLES, *(_cells(method, report.reference) for method in tried), strict=True)
        titles, *rows = zip(*(column for column in columns if any(column[1:])), strict=True)
        print_rows(titles, rows, wraps=_WRAPS, right=_RIGHT, spare=_SPARE)
    for method in report.methods:
        for line in failures(method):
            typer.echo(f"failed: {line}")
    for method in report.methods:
        for line in method.notes:
            typer.echo(line)
        if method not in tried and method.version:
            needs = f"requires augury-core{method.requires}" if method.requires else "names no version of augury-core"
            typer.echo(f"  {method.name}: {method.distribution} {method.version} {needs}; installed is {report.core}.")
    for line in report.notes:
        typer.echo(line)
    if report.reference is not None:
        _print_reference(report.reference)
    if not report.methods:
        typer.echo("no method is installed or listed.")


def _cells(method: Checked, reference: ReferenceStep | None) -> tuple[str, ...]:
    costs = method.costs
    return (
        method.name,
        f"{method.distribution} {method.version}",
        f"{method.layer} {method.versions}",
        ", ".join(method.listed_hooks if method.hooks is None else method.hooks),
        method.contract or "",
        _suite(method),
        _cost(costs.augment_batch if costs else None, reference),
        _cost(costs.compute_loss if costs else None, reference),
        _cost(costs.post_step if costs else None, reference),
        f"{costs.views}x" if costs else "",
    )


def _suite(method: Checked) -> str:
    if method.suite is None:
        return ""
    counts = {"failed": len(method.suite.failed), "passed": method.suite.passed, "skipped": method.suite.skipped}
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing run"


def _cost(seconds: float | None, reference: ReferenceStep | None) -> str:
    if seconds is None or reference is None:
        return ""
    return f"{_three_digits(1000 * seconds)} ms ({seconds / reference.seconds:.1%})"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _print_reference(reference: ReferenceStep) -> None:
    shape, machine = "x".join(map(str, reference.image_size)), reference.hardware
    where = (
        machine["device"] if machine["device"] != "cpu" else f"{machine['processor']}, {machine['threads']} thread(s)"
    )
    typer.echo(
        f"Costs are per step, beside {1000 * reference.seconds:.0f} ms for a step of no method: {reference.model}, "
        f"{reference.images} images {shape}, {reference.classes} classes, {reference.precision}, on {where} "
        f"({machine['system']}). rows: by which factor the views of a method multiply the step itself."
    )
