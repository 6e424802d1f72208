"""What is known of a method's name: the installed packages that claim it, held against the register's entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from augury.discovery import Claim, absence, mismatch, unusable
from augury.register_file import Entry

Status = Literal["ready", "not trusted", "not installed", "refused"]


@dataclass(frozen=True)
class Found:
    """What is known of one method's name without importing anything.

    Attributes:
        distribution, version, entry_point: the installed package that offers it; what is listed when none does; all of
            them, joined by "and", when several do.
        entry: the register's entry that it answers to, None when it is not listed.
        status: "ready" when a run may name it.
        problem: one line that says why it is not ready and what to do, "" when it is.
        summary: what its entry says of it, else what the installed package does.
    """

    name: str
    distribution: str
    version: str
    entry_point: str
    entry: Entry | None
    status: Status
    problem: str = ""
    summary: str = ""


def judge(name: str, entries: Sequence[Entry], claims: Sequence[Claim], trusted: bool) -> Found:
    """Hold the claims to a name against its entries; one that is accepted is enough."""
    if not claims:
        entry = entries[0]
        problem = f"{name}: {absence(entry)}"
        return Found(name, entry.distribution, "", entry.entry_point, entry, "not installed", problem, entry.summary)
    first = claims[0]
    found = Found(name, *_joined(claims), None, "ready", summary=first.summary if len(claims) == 1 else "")
    fault = unusable(name, claims)
    if fault:
        return replace(found, status="refused", problem=f"{name}: {fault}")
    if not entries:
        problem = (
            f"{name}: {first} is installed but not listed. Trust it with `augury plugins trust {name}`, "
            f"or with --trust {name} for one run, preview, comparison or resume."
        )
        return found if trusted else replace(found, status="not trusted", problem=problem)
    problems = []
    for entry in entries:
        problem = mismatch(first, entry)
        if not problem:
            return replace(found, entry=entry, summary=entry.summary or found.summary)
        problems.append(problem)
    return replace(found, entry=entries[0], status="refused", problem=f"{name}: {problems[0]}")


def _joined(claims: Sequence[Claim]) -> tuple[str, str, str]:
    """Distribution, version and entry point; of several claims all of each."""
    parts = ([claim.distribution for claim in claims], [c.version for c in claims], [c.entry_point for c in claims])
    distributions, versions, targets = (" and ".join(dict.fromkeys(part)) for part in parts)
    return distributions, versions, targets
