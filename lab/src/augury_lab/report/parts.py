"""The parts of a page as plain values, which the template lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from augury_lab.report.images import Picture


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row heads it.

    Attributes:
        title: above it, where a section has several.
        words: places of the columns that hold words; numbers, in the others, are aligned to the right.
        caption: what it holds, where the title does not say.
        marks: for each row, a class of the style sheet for its words.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    words: Sequence[int] = ()
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is left out.

    Attributes:
        key: unique in the page.
        text: a paragraph.
        facts: labels and their texts.
        pictures: by the title of each group.
        folded: titles and texts that are shown when asked for.
    """

    key: str
    title: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[tuple[str, Sequence[Picture]]] = ()
    folded: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Header:
    """The top of the page.

    Attributes:
        title: of the window.
        kicker: what it is about.
        headline, lead: the answer, and sentences that explain it.
        facts: labels and their texts.
        unfinished: runs that are not over, a line each.
        notes: what the runs told that the user may not expect, a line each.
    """

    title: str
    kicker: str
    headline: str
    lead: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
