"""What the installed distributions offer, read from their metadata alone, and whether it is what an entry lists."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from augury.errors import UsageError
from augury.register_file import NAME, NAME_RULE, TARGET, Entry, one_line

GROUP = "augury.methods"


@dataclass(frozen=True)
class Claim:
    """One installed distribution's claim to a method's name.

    Attributes:
        name: the method's.
        distribution, version, entry_point, summary: as its metadata have them.
        folder: the project's folder that it was installed from, "" for what came from an index or as an archive.
        editable: whether Python imports it out of that folder.
    """

    name: str
    distribution: str
    version: str
    entry_point: str
    summary: str = ""
    folder: str = ""
    editable: bool = False

    def __str__(self) -> str:
        return f"{self.distribution} {self.version} ({self.entry_point})"


def discover() -> tuple[dict[str, list[Claim]], list[str]]:
    """Read which method names the installed distributions claim, from their metadata alone.

    Returns:
        the claims to each name, and a line for each distribution whose metadata cannot be read.
    """
    claims: dict[str, list[Claim]] = {}
    notes: list[str] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        try:
            # Most packages have no methods: their metadata, which is slow to parse, is left alone.
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name = _normal(distribution.metadata["Name"])
            if name not in seen:
                seen.add(name)
                # Of several copies on the path, an editable one and its wheel say, Python imports the first.
                for claim in _claims_of(importlib.metadata.distribution(name)):
                    claims.setdefault(claim.name, []).append(claim)
        except Exception as error:
            folder = distribution.locate_file("")
            reason = one_line(f"{type(error).__name__}: {error}")
            notes.append(f"a distribution in {folder} has unreadable metadata, so its methods are not listed: {reason}")
    return claims, notes


def _claims_of(distribution: importlib.metadata.Distribution) -> Iterator[Claim]:
    metadata = distribution.metadata
    version, summary = (one_line(metadata[key]) if key in metadata else "" for key in ("Version", "Summary"))
    folder, editable = source_folder(distribution)
    for point in distribution.entry_points.select(group=GROUP):
        target = "".join(point.value.split())
        yield Claim(one_line(point.name), one_line(metadata["Name"]), version, target, summary, folder, editable)


def source_folder(distribution: importlib.metadata.Distribution) -> tuple[str, bool]:
    """The folder of a project that a distribution was installed from, as its installer wrote down (PEP 610).

    Returns:
        the absolute path, "" where it came from anywhere else, and whether the install is an editable one.
    """
    try:
        told = json.loads(distribution.read_text("direct_url.json") or "{}")
        url, of_folder = urlsplit(told.get("url", "")), told.get("dir_info")
        if url.scheme != "file" or not isinstance(of_folder, dict):
            return "", False
        folder = url2pathname(url.path)
    except (AttributeError, TypeError, ValueError):  # no such file's content
        return "", False
    return (folder, of_folder.get("editable") is True) if Path(folder).is_absolute() else ("", False)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def unusable(name: str, claims: Sequence[Claim]) -> str:
    """Why no entry could make these claims to a name usable; "" when one could."""
    if len(claims) > 1:
        return f"claimed more than once, by {' and '.join(map(str, claims))}. Uninstall all but one of them."
    if not NAME.fullmatch(name):
        return f"{claims[0]} gives a method a name that cannot be used: {NAME_RULE}. Uninstall it or tell its author."
    if not TARGET.fullmatch(claims[0].entry_point):
        return f"{claims[0]} names no module:Class as its entry point. Uninstall it or tell its author."
    return ""


def mismatch(claim: Claim, entry: Entry) -> str:
    """Why an installed distribution is not the one that an entry lists; "" when it is."""
    way_out = f"Install what is listed, or accept what is installed with `augury plugins trust {entry.name}`."
    if (_normal(claim.distribution), claim.entry_point) != (_normal(entry.distribution), entry.entry_point):
        return f"installed is {claim}, but listed is {entry.distribution} ({entry.entry_point}). {way_out}"
    if entry.folder and (fault := _elsewhere(claim, entry)):
        return fault

    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        accepted = SpecifierSet(entry.versions).contains(Version(claim.version), prereleases=True)
    except (InvalidSpecifier, InvalidVersion) as error:
        return f"{claim}: its version cannot be held against the listed range `{entry.versions}`: {error}. {way_out}"
    return "" if accepted else f"{claim} is not among the listed versions `{entry.versions}`. {way_out}"


def _elsewhere(claim: Claim, entry: Entry) -> str:
    """Why an installed distribution is not from the folder that an entry lists, or cannot be used from there."""
    if not claim.folder or os.path.realpath(claim.folder) != os.path.realpath(entry.folder):
        there = f"{_install(entry)}, or accept" if os.path.isdir(entry.folder) else "It is not there any more. Accept"
        return (
            f"installed is {claim}, {f'from {claim.folder}' if claim.folder else 'not from a folder'}, but listed is "
            f"what was made in {entry.folder}. {there} what is installed with `augury plugins trust {entry.name}`."
        )
    if claim.editable and not os.path.isdir(claim.folder):
        return (
            f"{claim} is imported from {claim.folder}, which is not there any more. Install it with pip install -e "
            f"from where it is now, then `augury plugins trust {entry.name}`."
        )
    return ""


def absence(entry: Entry) -> str:
    """What to say of a listed method that nothing installed offers."""
    missing = f"{entry.distribution} is not installed."
    # No name is said to be installed from an index: anybody may have registered it there.
    if entry.layer != "user":
        return f"{missing} Install it from where you got augury."
    take_off = f"`augury plugins untrust {entry.name}`"
    if not entry.folder:
        return f"{missing} Install it from where you have it, or take it off with {take_off}."
    if os.path.isdir(entry.folder):
        return f"{missing} {_install(entry)}, or take it off with {take_off}."
    return (
        f"{missing} It was made in {entry.folder}, which is not there any more. Install it with pip install -e from "
        f"where it is now, then `augury plugins trust {entry.name}`, or take it off with {take_off}."
    )


def _install(entry: Entry) -> str:
    return f"Install it with pip install -e {shlex.quote(entry.folder)}"


def range_from(claim: Claim) -> str:
    """The range from the installed version to the next major one."""
    from packaging.version import InvalidVersion, Version

    try:
        version = Version(claim.version)
    except InvalidVersion as error:
        raise UsageError(f"{claim.name}: {claim}: its version is not one of PEP 440. Tell its author.") from error
    epoch = f"{version.epoch}!" if version.epoch else ""
    return f">={version.public},<{epoch}{version.major + 1}"
