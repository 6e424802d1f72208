"""A comparison in words: the cells of its tables, what they mean, and Markdown to paste."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from augury.errors import plain
from augury_lab.experiment.statistics import Spread

if TYPE_CHECKING:
    from augury_lab.experiment.table import Comparison, Row

TEXTS = ("composition", "verdict")
"""Titles of the columns that hold words; numbers, in the others, are aligned to the right."""
SPARE = ("last epoch / %", "top-5 / %", "NLL / nats", "ECE / %")
"""Titles of the columns that a narrow terminal can do without."""


def columns(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """How good the compositions are, as text: titles, and for each composition its cells.

    Columns that nothing stands in are left out: top-5 of few classes, an interval of one seed.
    """
    titles = ["composition", "top-1 / %", "last epoch / %", "top-5 / %", "NLL / nats", "ECE / %"]
    titles += ["difference", "95 % interval", "p (Holm)", "verdict"]
    return _filled(titles, [_quality(row) for row in comparison.rows])


def cost_columns(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """What the compositions cost, as text: titles, and for each composition its cells; means over the seeds."""
    titles = ["composition", "epochs", "forward passes", "time", "of it stages", "images/s", "peak memory"]
    return _filled(titles, [_cost(row) for row in comparison.rows])


def _filled(titles: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    kept = [number for number in range(len(titles)) if any(row[number] for row in rows)]
    return [titles[number] for number in kept], [[row[number] for number in kept] for row in rows]


def _quality(row: Row) -> list[str]:
    cells = [row.composition, _spread(row.best_top1, 2), _spread(row.last_top1, 2)]
    cells += [_spread(row.top5, 2) if row.top5 else "", _spread(row.nll, 3), _spread(row.ece, 2)]
    found = row.difference
    if found is None:
        return [*cells, "", "", "", ""]
    interval = "" if found.low is None or found.high is None else f"{found.low:+.2f} to {found.high:+.2f}"
    mean = f"{found.mean:+.2f}" if math.isfinite(found.mean) else ""
    return [*cells, mean, interval, "" if found.p_holm is None else _p(found.p_holm), found.verdict]


def _cost(row: Row) -> list[str]:
    return [
        row.composition,
        f"{row.epochs:.1f}".removesuffix(".0"),
        _count(row.forward_passes),
        duration(row.seconds),
        duration(row.stage_seconds) if row.stage_seconds >= 0.05 else "",
        _count(row.images_per_second),
        "" if row.peak_bytes is None else memory(row.peak_bytes),
    ]


def _spread(found: Spread, decimals: int) -> str:
    if not math.isfinite(found.mean):
        return "not finite"
    mean = f"{found.mean:.{decimals}f}"
    return mean if found.std is None else f"{mean} ± {found.std:.{decimals}f}"


def _p(value: float) -> str:
    # 0.0496 must not read as 0.05, which would not be better or worse.
    return "< 0.001" if value < 0.001 else f"{value:.4f}" if 0.04 < value < 0.06 else f"{value:.3f}"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is read best."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def memory(value: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def explanation(comparison: Comparison) -> str:
    """What the numbers of `columns` and `cost_columns` are, as a paragraph."""
    seeds, others = len(comparison.seeds), len(comparison.rows) - 1
    images = f"{comparison.images:,} {'test' if comparison.split == 'test' else 'validation'} images"
    spreads = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    chosen = {run.chosen_on for runs in comparison.runs.values() for run in runs}
    if comparison.split in chosen:
        epoch = "of the epoch that was best on these same images, which flatters"
    else:
        epoch = "of the epoch that was best on the validation images"
    lines = [f"{spreads}, on {images}; top-1, NLL and ECE {epoch}."]
    if others and seeds > 1:
        lines.append(
            f"Difference: percentage points of top-1, composition minus {comparison.base}, paired by seed, with the "
            "95 % interval of its mean by Student's t, each by itself; p: paired t-test, corrected by Holm's method "
            f"for {others} composition{'s' * (others > 1)}, which the verdict goes by. "
            "Both speak of the luck of training, judged on these images."
        )
        if any(row.difference and row.difference.needed for row in comparison.rows):
            lines.append(
                "As many seeds as are said to be needed find a difference as large as the one seen in 80 % of cases."
            )
    elif others:
        lines.append("One seed cannot tell a difference from luck.")
    if comparison.equal == "compute":
        lines.append(f"None had more forward passes than {comparison.base}, pre-train stages included.")
    lines.append("Costs are means over the seeds, pre-train stages included; peak memory is the largest of any seed.")
    return " ".join(lines)


def markdown(comparison: Comparison) -> str:
    """Both tables as Markdown, and the paragraph that says what their numbers are."""
    tables = [_markdown_table(*columns(comparison)), _markdown_table(*cost_columns(comparison))]
    return "\n\n".join([*tables, _escaped(explanation(comparison))]) + "\n"


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rules = [":--" if title in TEXTS else "--:" for title in titles]
    cells = [titles, rules, *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _escaped(text: str) -> str:
    # A composition's name may hold anything that its options hold.
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", plain(" ".join(text.split())))
