"""The report in a real browser, headless Chromium, opened as a file: what is drawn, what it asks for, how it looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.lab.report_folders import GAINS, write_run, write_suite
from tests.system.browser import browser as browser

from augury_lab.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of a comparison's page and of a run's."""
    folder = tmp_path_factory.mktemp("pages")
    write_suite(folder / "suite", {**GAINS, "resmooth+dcutmix:k=5,prob=0.5+isda:lambda_0=0.25+agmax": 1.0})
    write_run(folder / "run")
    return {name: write_report(folder / name).resolve().as_uri() for name in ("suite", "run")}


@pytest.fixture
def show(browser: Any, pages: dict[str, str]) -> Iterator[Callable[..., None]]:
    """Open a page on a screen; at the end, its console must be empty and nothing must have been asked for."""

    def opened(page: str, *, width: int = 1280, scheme: str = "light") -> None:
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        paint(browser, scheme)
        browser.get(pages[page])
        until(browser, "return document.querySelectorAll('.chart .main-svg').length > 0")

    yield opened
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)") == []


def paint(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def until(browser: Any, script: str) -> None:
    """Wait until a script returns true."""
    end = time.monotonic() + 240
    while not browser.execute_script(script):
        assert time.monotonic() < end, f"never true: {script}"
        time.sleep(0.05)


def drawn(browser: Any, chart: str, what: str) -> int:
    script = f"return document.querySelectorAll('#chart-{chart} {what}').length"
    return int(browser.execute_script(script))


def test_every_chart_of_a_comparison_is_drawn(browser: Any, show: Callable[..., None]) -> None:
    show("suite")
    others = len(GAINS)
    # Of each composition a line and a band; its seeds and its mean; its point.
    assert drawn(browser, "curves", ".scatterlayer .trace path.js-line") == 2 * (others + 1)
    assert drawn(browser, "differences", ".scatterlayer .point") == others * (4 + 1)
    assert drawn(browser, "differences", ".errorbar") == others
    assert drawn(browser, "differences", ".annotation") == others
    assert drawn(browser, "cost", ".scatterlayer .point") == others + 1
    assert drawn(browser, "cost", ".errorbar") == others + 1
    sizes = browser.execute_script(
        "return [...document.images].map((one) => [one.loading = 'eager', one.naturalWidth])"
    )
    assert len(sizes) == 2 * (others + 1)
    until(browser, "return [...document.images].every((one) => one.complete && one.naturalWidth > 0)")


def test_a_runs_page_is_drawn(browser: Any, show: Callable[..., None]) -> None:
    show("run")
    assert drawn(browser, "curves", ".scatterlayer .trace path.js-line") == 2


def test_the_menu_changes_the_chart(browser: Any, show: Callable[..., None]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    show("suite")
    line = "document.querySelector('#chart-curves .scatterlayer .trace:last-child path.js-line').getAttribute('d')"
    title = "document.querySelector('#chart-curves .ytitle').textContent"
    before = browser.execute_script(f"return {line}")
    assert browser.execute_script(f"return {title}") == "validation top-1 / %"
    Select(browser.find_element(By.ID, "menu-curves")).select_by_visible_text("isda/lambda")
    until(browser, f"return {title} === 'isda/lambda'")
    assert browser.execute_script(f"return {line}") != before


def test_the_legend_hides_and_shows_by_keyboard(browser: Any, show: Callable[..., None]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show("suite")
    buttons = browser.find_elements(By.CSS_SELECTOR, "#legend-cost button")
    assert [button.text for button in buttons][:2] == ["baseline", "isda"]
    buttons[1].send_keys(Keys.ENTER)
    assert buttons[1].get_attribute("aria-pressed") == "false"
    until(browser, f"return document.querySelectorAll('#chart-cost .point').length === {len(GAINS)}")
    buttons[1].send_keys(Keys.SPACE)
    until(browser, f"return document.querySelectorAll('#chart-cost .point').length === {len(GAINS) + 1}")


@pytest.mark.parametrize("page", ["suite", "run"])
@pytest.mark.parametrize("width", [360, 768])
def test_nothing_is_wider_than_the_screen(browser: Any, show: Callable[..., None], page: str, width: int) -> None:
    show(page, width=width)
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.main-svg, select, button, img, h1')]"
        ".filter((one) => one.getBoundingClientRect().right > innerWidth).map((one) => one.outerHTML.slice(0, 80))"
    )
    assert wide == []
    # A wide table scrolls in a box of its own.
    if (page, width) == ("suite", 360):
        assert browser.execute_script(
            "return [...document.querySelectorAll('.scroll')].some((one) => one.scrollWidth > one.clientWidth)"
        )


def test_charts_take_the_scheme_and_follow_it(browser: Any, show: Callable[..., None]) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    text = "getComputedStyle(document.querySelector('#chart-curves .ytick text')).fill"
    line = (
        "getComputedStyle(document.querySelector('#chart-curves .scatterlayer .trace:last-child path.js-line')).stroke"
    )
    show("suite", scheme="dark")
    dark = browser.execute_script(f"return [{paper}, {text}, {line}]")
    assert brightness(dark[0]) < 40
    assert brightness(dark[1]) > 200
    paint(browser, "light")
    until(browser, f"return {paper} === 'rgb(255, 255, 255)' && {line} !== '{dark[2]}'")
    light = browser.execute_script(f"return [{paper}, {text}, {line}]")
    assert brightness(light[1]) < 60


def brightness(colour: str) -> float:
    """The mean of the channels of `rgb(r, g, b)`, 0 to 255."""
    return sum(float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 3


def test_what_is_printed_is_light(browser: Any, show: Callable[..., None]) -> None:
    show("suite", scheme="dark")
    text = "getComputedStyle(document.querySelector('#chart-curves .ytick text')).fill"
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert brightness(browser.execute_script(f"return {text}")) < 60
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert brightness(browser.execute_script(f"return {text}")) > 200


def test_no_script_but_the_pages_own_runs(browser: Any, pages: dict[str, str]) -> None:
    browser.get(pages["run"])
    browser.execute_script(
        "const script = document.createElement('script'), image = new Image();"
        "script.textContent = 'window.intruder = 1'; image.src = 'https://example.invalid/a.png';"
        "document.body.append(script, image);"
    )
    assert browser.execute_script("return window.intruder") is None
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert len([message for message in refused if "Content Security Policy" in message]) == 2


def test_no_button_sends_a_chart_anywhere(browser: Any, show: Callable[..., None]) -> None:
    show("run")
    titles = browser.execute_script(
        "return [...document.querySelectorAll('.modebar-btn')].map((one) => one.dataset.title)"
    )
    assert [title.split()[0] for title in titles] == ["Download", "Zoom", "Pan", "Reset"]
