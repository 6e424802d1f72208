"""The documentation's site: it builds, needs no network, and a fault in a page ends the build; in a browser, it can be
searched."""

from __future__ import annotations

import json
import re
import shutil
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from tests.docs_programs import load
from tests.system.browser import browser as browser

ROOT = Path(__file__).parents[2]
# The search draws into shadow roots.
FOUND = """
    const roots = [...document.querySelectorAll("*")].map((one) => one.shadowRoot).filter((root) => root !== null)
    return roots.flatMap((root) => [...root.querySelectorAll("a")].map((one) => [one.href, one.textContent]))
"""


PROGRAM = load("build")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into: Path = tmp_path_factory.mktemp("built") / "site"
    PROGRAM.build(into)
    return into


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of two pages with the real configuration, but for its navigation."""
    lines = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    before, rest = lines.split("nav = [\n")
    after = rest.split("\n]\n", 1)[1]
    navigation = 'nav = [{ "Start" = "README.md" }, { "Page" = "docs/page.md" }]\n'
    (tmp_path / "zensical.toml").write_text(before + navigation + after)
    shutil.copytree(ROOT / "docs" / "assets", tmp_path / "docs" / "assets")
    (tmp_path / "README.md").write_text("# Start\n\n[page](docs/page.md#second)\n")
    (tmp_path / "docs" / "page.md").write_text(
        "# Page\n\n## Second\n\n[start](../README.md), [elsewhere](https://a.b/c)\n"
    )
    return tmp_path


def test_every_page_of_the_repository_is_in_the_site_and_found_by_its_search(site: Path) -> None:
    found = json.loads((site / "search.json").read_text(encoding="utf-8"))["items"]
    told = {item["location"].partition("#")[0] for item in found}
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    markdown = [path for pattern in PROGRAM.PAGES for path in ROOT.glob(pattern)]
    assert told == pages
    assert len(pages) == len(markdown)
    assert "var __index" in (site / "search.js").read_text(encoding="utf-8")[:100], (
        "what is read where there is no server"
    )


def test_faults_end_the_build_and_leave_the_old_site(small: Path) -> None:
    into, page = small / "site", small / "docs" / "page.md"
    PROGRAM.build(into, small)
    good = page.read_text()
    page.write_text(good + "\n[a](nowhere.md) [b](../README.md#no-such) [c](#nor-such)\n")
    with pytest.raises(SystemExit) as told:
        PROGRAM.build(into, small)
    lines = str(told.value)
    assert "page does not exist" in lines
    assert lines.count("anchor does not exist") >= 2, lines
    assert "docs/page.md:7" in lines
    assert "Traceback" not in lines
    page.write_text(good + "\n[a](../core/batch.py) ![b](https://a.b/c.png)\n")
    with pytest.raises(SystemExit) as told:
        PROGRAM.build(into, small)
    assert str(told.value).splitlines() == [
        "docs/page.html: leads to ../core/batch.py, which is not in the site.",
        "docs/page.html: a browser would load https://a.b/c.png.",
    ]
    assert (into / "docs" / "page.html").exists()


def test_the_navigation_must_hold_every_page_once(small: Path) -> None:
    (small / "docs" / "other.md").write_text("# Other\n")
    (small / "README.md").unlink()
    with pytest.raises(SystemExit) as told:
        PROGRAM.build(small / "site", small)
    assert str(told.value).splitlines() == [
        "docs/other.md: not in the navigation. Add it to zensical.toml.",
        "README.md: in zensical.toml and not there.",
    ]


def test_links_to_headings_lead_there_on_a_code_host_too() -> None:
    """A code host names a heading after its letters, digits, hyphens and underscores; the build checks the site."""
    pages = [path for pattern in PROGRAM.PAGES for path in ROOT.glob(pattern)]
    checked = 0
    for page in pages:
        for path, heading in re.findall(r"\]\(([^)\s:#]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")):
            target = page if not path else (page.parent / path)
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}, page
            checked += 1
    assert checked > 5


# In a browser.


def _open(browser: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def _until(browser: Any, script: str) -> None:
    end = time.monotonic() + 240
    while not browser.execute_script(script):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_search_works_without_a_server_from_any_folder(browser: Any, site: Path) -> None:
    for page in ("index.html", "plugins/isda/index.html"):
        _open(browser, site / page)
        _until(browser, "return document.querySelector('[data-md-component=search] button') !== null")
        browser.execute_script("document.querySelector('[data-md-component=search] button').click()")
        _until(
            browser, "return document.activeElement.tagName == 'INPUT' || document.activeElement.shadowRoot !== null"
        )
        browser.switch_to.active_element.send_keys("covariance")
        _until(browser, FOUND.rstrip() + ".length > 0")
        found = browser.execute_script(FOUND)
        assert any("ISDA: implicit semantic data augmentation" in text for _, text in found)
        for address, _ in found:
            assert Path(urllib.parse.urlparse(address).path).is_relative_to(site)
            assert Path(urllib.parse.urlparse(address).path).exists()
        assert browser.get_log("browser") == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_follow_the_system_s_scheme(browser: Any, site: Path, scheme: str) -> None:
    _open(browser, site / "docs" / "design.html", scheme=scheme)
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    red = int(colour.partition("(")[2].split(",")[0])
    assert red < 60 if scheme == "dark" else red > 200, colour


@pytest.mark.slow
def test_pages_fit_a_phone(browser: Any, site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        _open(browser, page, width=390)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= 390, f"{page}: {wide} pixels wide"
        assert browser.get_log("browser") == [], page
