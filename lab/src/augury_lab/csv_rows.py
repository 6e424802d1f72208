"""Rows of CSV as a spreadsheet may open them: no text is a formula, and no character in one is hidden."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from augury.errors import plain

_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?", re.ASCII)
# The four of East Asian width are formulas to some spreadsheets, too.
_FORMULA = tuple("=+-@'\uff1d\uff0b\uff0d\uff20")
# Bytes of a file's name that are no UTF-8, as Python reads them.
_NO_BYTES = re.compile("[^\udc80-\udcff]+")
ERRORS = "surrogateescape"
"""Error handler to encode rows with: it keeps the bytes of file names that are no UTF-8."""


def csv_row(cells: Sequence[object]) -> str:
    """Return one line of a CSV file, with its line break.

    A text that begins with `=`, `+`, `-` or `@` gets an apostrophe before it, so that no spreadsheet takes it for a
    formula. So does a text that begins with an apostrophe; removing the first apostrophe gives the text back.
    Control characters are written out (`\\x1b`, `\\n`). Numbers stay as they are, as texts too; None is empty.
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([_harmless(c) if isinstance(c, str) else c for c in cells])
    return line.getvalue()


def _harmless(text: str) -> str:
    text = _NO_BYTES.sub(lambda found: plain(found[0]), text).replace("\n", "\\n")
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
