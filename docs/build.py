"""Builds the documentation as a site: `python docs/build.py`, or `make docs`.

The pages are copied as they lie in the repository, so that a link between two of them leads the same way on a code host
and in the site. Zensical (zensical.toml) makes HTML of them. A link that leads nowhere, a page that is not in the
navigation, or anything that a browser would load from a network ends the build.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = "zensical.toml"
PAGES = ("README.md", "docs/*.md", "plugins/*/README.md", "examples/*/README.md")
ASSETS = "docs/assets/*"
COLOUR = re.compile(r"\x1b\[[\d;]*m")
TAG = re.compile(r"<(\w+)\s[^>]*?\b(?:href|src)=\"?([^\"\s>]*)")


def build(into: Path, root: Path = ROOT) -> None:
    """Make the site of a repository; what is in `into` already is replaced when the new one has no fault.

    Raises:
        SystemExit: what is wrong with the pages.
    """
    if faults := unlisted(root):
        raise SystemExit("\n".join(faults))
    with tempfile.TemporaryDirectory() as folder:
        workshop = Path(folder)
        for pattern in (*PAGES, ASSETS):
            for page in root.glob(pattern):
                copy = workshop / "pages" / page.relative_to(root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(page, copy)
        shutil.copyfile(root / CONFIG, workshop / CONFIG)
        command = [sys.executable, "-m", "zensical", "build", "--strict"]
        done = subprocess.run(command, cwd=workshop, check=False, capture_output=True, text=True)
        if done.returncode:
            # Its own report comes before the traceback that strictness ends with.
            raise SystemExit(COLOUR.sub("", (done.stdout + done.stderr).partition("Traceback")[0]))
        # It is for a server, and its links lead to the server's root.
        (workshop / "site" / "404.html").unlink()
        if faults := list(_dead_ends(workshop / "site")):
            raise SystemExit("\n".join(faults))
        shutil.rmtree(into, ignore_errors=True)
        shutil.move(workshop / "site", into)


def unlisted(root: Path = ROOT) -> list[str]:
    """A line for each page that the navigation lacks, and for each entry of it that is no page."""
    navigation = list(_leaves(tomllib.loads((root / CONFIG).read_text(encoding="utf-8"))["project"]["nav"]))
    pages = {path.relative_to(root).as_posix() for pattern in PAGES for path in root.glob(pattern)}
    found = [f"{page}: not in the navigation. Add it to {CONFIG}." for page in sorted(pages - set(navigation))]
    found += [f"{page}: in {CONFIG} and not there." for page in navigation if page not in pages]
    return found + [f"{page}: twice in {CONFIG}." for page in set(navigation) if navigation.count(page) > 1]


def _leaves(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    else:
        for inner in part.values() if isinstance(part, dict) else part:
            yield from _leaves(inner)


def _dead_ends(site: Path) -> Iterator[str]:
    """A line for each link of a built page to a file that is not there, and for each thing loaded from a network."""
    for page in sorted(site.rglob("*.html")):
        for tag, target in TAG.findall(page.read_text(encoding="utf-8")):
            name = page.relative_to(site).as_posix()
            path = target.partition("#")[0].partition("?")[0]
            if re.match(r"(https?:)?//", target):
                if tag != "a":
                    yield f"{name}: a browser would load {target}."
            elif path and ":" not in path and not (page.parent / path).exists():
                yield f"{name}: leads to {target}, which is not in the site."


if __name__ == "__main__":
    build(ROOT / "site")
    print(f"open {ROOT / 'site' / 'index.html'}")
