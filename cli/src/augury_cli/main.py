"""The `augury` command: its subcommands, and how its errors end."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer

from augury.errors import AuguryError
from augury_cli import backbones, compare, evaluate, export, plugins, predict, recipes, report, run, uncertainty
from augury_cli.processes import refuse_several, say
from augury_cli.quick import QuickCommand, QuickGroup
from augury_train.open_files import refuse_low_limit, too_many_open_files


class Program(QuickGroup):
    """The root command: every error of a subcommand ends here, in a line or two and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the subcommand; with --debug errors keep their traceback."""
        try:
            refuse_low_limit()
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, typer.BadParameter.__base__, BrokenPipeError):  # type: ignore[misc]
            raise
        except AuguryError as error:
            if ctx.params["debug"]:
                raise
            told = too_many_open_files(error) or error
            say(str(told), error)
            raise typer.Exit(told.exit_code) from None
        except KeyboardInterrupt as stopped:
            say("interrupted")
            raise typer.Exit(128 + getattr(stopped, "number", signal.SIGINT)) from None
        except Exception as error:
            if ctx.params["debug"]:
                raise
            if (too_many := too_many_open_files(error)) is not None:
                say(str(too_many), error)
                raise typer.Exit(too_many.exit_code) from None
            say(f"augury failed: {type(error).__name__}: {error}\nShow where with: augury --debug ...", error)
            raise typer.Exit(1) from None


app = typer.Typer(
    name="augury",
    help="Train image classifiers with composable augmentation and regularisation methods.",
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help: rich would take as long to import as all the rest.
    rich_markup_mode=None,
)
app.command("run", cls=QuickCommand)(run.run)
app.command("resume", cls=QuickCommand)(run.resume)
app.command("preview", cls=QuickCommand)(run.preview)
app.command("compare", cls=QuickCommand)(compare.compare)
app.command("report", cls=QuickCommand)(report.report)
app.command("evaluate", cls=QuickCommand)(evaluate.evaluate)
app.command("uncertainty", cls=QuickCommand)(uncertainty.uncertainty)
app.command("predict", cls=QuickCommand)(predict.predict)
app.command("export", cls=QuickCommand)(export.export)
app.command("backbones", cls=QuickCommand)(backbones.backbones)
app.add_typer(recipes.app)
app.add_typer(plugins.app)


def _version(wanted: bool) -> None:
    if wanted:
        from augury import __version__

        typer.echo(f"augury {__version__}")
        raise typer.Exit


@app.callback()
def program(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Train image classifiers with composable augmentation and regularisation methods."""


def main() -> None:
    """Run the command of this line; ends in SystemExit. `--debug` may stand anywhere on the line."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(a for a in arguments if a != "--debug")]
    refuse_several(arguments)
    # Where output goes into a closed pipe (`augury ... | head`), end quietly.
    try:
        app(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
