"""The page: facts, charts and pictures put into the template, and one file written."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from augury import __version__
from augury.errors import UsageError
from augury.outside import given_path
from augury_lab.report.charts import Chart, as_json, run_curves, suite_curves
from augury_lab.report.compared import cost, differences
from augury_lab.report.gather import Facts, gather
from augury_lab.report.sections import results, sections
from augury_lab.report.top import header
from augury_train.files import write_text

REPORT = "report.html"
ASSETS = Path(__file__).with_name("assets")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write one self-contained HTML page about a run, a comparison or an evaluation.

    What is damaged or missing in the folder is named on the page.

    Args:
        folder: that `augury run`, `compare` or `evaluate` has made, finished or not.
        output: the file to write; `report.html` in the folder when None.

    Returns:
        The file.

    Raises:
        UsageError: the folder is none of them, or the file cannot be written.
    """
    folder = given_path(folder, "FOLDER")
    facts = gather(folder)
    output = folder / REPORT if output is None else given_path(output, "--output")
    if output.is_dir():
        raise UsageError(f"{output} is a folder. Name a file: --output {output / REPORT}.")
    try:
        # JSON can hold halves of characters, which no file can.
        write_text(output, render(facts).encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{output}: cannot be written ({error.strerror}). Choose another --output.") from None
    return output


def render(facts: Facts) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["parts"] = _parts
    problems = list(facts.problems)
    charts = _charts(facts)
    below = sections(facts, problems)
    scripts = _scripts() if charts else []
    return environment.get_template("page.html").render(
        header=header(facts),
        problems=problems,
        charts=charts,
        results=results(facts),
        sections=below,
        style=_asset("style.css"),
        scripts=scripts,
        policy=_policy(scripts),
        data=_embedded(as_json(charts)),
        version=__version__,
    )


def _parts(name: str) -> list[str]:
    """Where a name may be broken into lines: behind its signs."""
    return re.split(r"(?<=[+:,/_])|(?<=\.)(?=\D)", name)


def _charts(facts: Facts) -> list[Chart]:
    if facts.kind == "run":
        found = [run_curves(facts.runs[0])]
    elif facts.comparison:
        comparison = facts.comparison
        found = [differences(comparison), suite_curves(facts.names, facts.of), cost(comparison)]
    else:
        found = [suite_curves(facts.names, facts.of)]
    return [chart for chart in found if chart is not None]


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _scripts() -> list[str]:
    from plotly.offline import get_plotlyjs

    return [get_plotlyjs(), _asset("charts.js")]


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which the page can ask nothing of a network, and runs its own scripts alone."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
    return f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"


def _embedded(value: Sequence[Mapping[str, Any]]) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
