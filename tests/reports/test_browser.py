"""Report and dashboard in a real browser, from files, with no network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imagemill.reports.comparison import Comparison, Pair, render_comparison
from imagemill.reports.dashboard import render_dashboard
from imagemill.reports.regressions import find_regressions
from imagemill.reports.report import FailureGroup, render_report
from imagemill.reports.review import Suspect, render_review
from imagemill.runs.history import History
from imagemill.settings import RegressionSettings, RunSettings
from tests.conftest import needs_chromium
from tests.reports.past_runs import past_runs
from tests.reports.test_report import bucket, report, summary, tile

playwright = pytest.importorskip("playwright.sync_api")

SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"

pytestmark = needs_chromium


@dataclass
class Opened:
    """A page in the browser, and what it asked for and complained of."""

    page: playwright.Page
    asked: list[str]
    complaints: list[str]

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def fits(self) -> bool:
        return bool(
            self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        )


@pytest.fixture
def open_page(browser: playwright.Browser, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """Opens a document as a file."""
    contexts: list[playwright.BrowserContext] = []

    def open_it(markup: str, *, width: int = 1200, dark: bool = False) -> Opened:
        file = tmp_path / "page.html"
        file.write_text(markup, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            offline=True,
        )
        contexts.append(context)
        opened = Opened(context.new_page(), [], [])
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        opened.page.on("console", lambda message: opened.complaints.append(message.text))
        opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.page.goto(file.as_uri())
        return opened

    yield open_it
    for context in contexts:
        context.close()


def a_report() -> str:
    failure = FailureGroup("bad_request", "400", 1, False, SCRIPT, SCRIPT, SCRIPT)
    return render_report(
        report(
            [bucket(10 * n) for n in range(30)],
            failures=[failure],
            tiles=[tile(1, SCRIPT), tile(2, "x" * 400)],
            failed=1,
        )
    )


def a_dashboard() -> str:
    rows = past_runs()
    rows[0] = rows[0].model_copy(update={"catalog": SCRIPT})
    settings = RegressionSettings()
    found = find_regressions(rows, settings)
    built = datetime(2025, 11, 25, tzinfo=UTC)
    return render_dashboard("s3://images/shop", History(rows, 0), found, settings, built)


def a_review(pictures: int = 3) -> str:
    shown = [
        Suspect(f"{number:040x}", tile(number, SCRIPT), [("flat", "99% shows no detail")], tile(9, "y" * 400))
        for number in range(pictures)
    ]
    return render_review("20261126-review", shown, 3_000)


def a_comparison() -> str:
    runs = summary(), summary(run_id="x" * 120, images_per_minute=200.0)
    settings = RunSettings(
        run_id="one", catalog=SCRIPT, api={"model": SCRIPT}, output=f"s3://images/{'y' * 200}"
    )
    counts = {"in_both": 90, "only_a": 1, "only_b": 0, "same": 2, "shown": 4}
    found = Comparison(run_a=runs[0], run_b=runs[1], page="", file="", **counts)
    flagged = {"suspect": ("half_decoded", "judged"), "words": SCRIPT}
    pairs = [
        Pair(tile(1, SCRIPT, row=1), tile(1, SCRIPT, row=1, **flagged)),
        Pair(tile(2, "x" * 400, row=2, variant=2, varied=SCRIPT), tile(2, thumbnail=b"", fault=SCRIPT)),
    ]
    return render_comparison(found, settings, settings, pairs)


PAGES = {"report": a_report, "dashboard": a_dashboard, "comparison": a_comparison}
POINTS = {"report": 30 * 5, "dashboard": 40 * 4, "comparison": 0}


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_opens_from_a_file_without_network_or_complaint(
    open_page: Callable[..., Opened], kind: str, width: int, *, dark: bool
) -> None:
    opened = open_page(PAGES[kind](), width=width, dark=dark)
    assert opened.complaints == []
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in opened.asked if url.startswith("file:")]) == 1
    assert opened.count(".point") == POINTS[kind]
    assert opened.fits()
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(19, 21, 23)" if dark else "rgb(250, 250, 248)")


@pytest.mark.parametrize("kind", PAGES)
def test_a_script_in_a_prompt_or_a_name_stays_text(open_page: Callable[..., Opened], kind: str) -> None:
    opened = open_page(PAGES[kind]())
    assert "taken" not in opened.page.title()
    assert opened.count("script") == 0
    assert "<script>" in opened.page.inner_text("body")


@pytest.mark.parametrize("width", [1200, 360])
def test_pictures_are_reviewed_and_the_choices_saved_by_keyboard(
    open_page: Callable[..., Opened], width: int
) -> None:
    opened = open_page(a_review(), width=width, dark=width == 360)
    press = opened.page.keyboard.press
    for key in ("r", "x", "ArrowLeft", "ArrowLeft", "k", "ArrowDown", "r", "u"):
        press(key)
    assert opened.page.locator("article:focus").get_attribute("data-picture") == f"{2:040x}"
    assert "2 of 3 decided: 1 keep, 1 reject" in opened.page.inner_text("#tally")
    with opened.page.expect_download() as download:
        press("s")
    saved = json.loads(Path(download.value.path()).read_text())
    assert download.value.suggested_filename == "imagemill-review-20261126-review.json"
    assert saved == {
        "imagemill_review": 1,
        "run_id": "20261126-review",
        "keep": [f"{0:040x}"],
        "redo": [],
        "reject": [f"{1:040x}"],
    }
    opened.page.reload()
    assert "2 of 3 decided" in opened.page.inner_text("#tally"), "choices outlive the page"
    assert "taken" not in opened.page.title()
    assert "first 3" in opened.page.inner_text("header")
    assert opened.complaints == []
    assert opened.fits()


def test_a_point_tells_its_value_where_the_mouse_is(open_page: Callable[..., Opened]) -> None:
    opened = open_page(a_dashboard())
    point = opened.page.locator(".point").nth(2)
    text = point.locator("text")
    assert not text.is_visible()
    point.locator("rect").hover()
    assert text.is_visible()
    assert "\u00b7" in text.inner_html()


def test_apis_are_picked_with_the_keyboard(open_page: Callable[..., Opened]) -> None:
    opened = open_page(a_dashboard())
    page = opened.page
    assert page.locator(".series:visible").count() == 6
    page.focus("#api-0")
    page.keyboard.press("ArrowRight")
    assert page.locator(".series:visible").count() == 2
    assert page.locator("#runs tbody tr:visible").count() < 40
    page.keyboard.press("ArrowLeft")
    assert page.locator(".series:visible").count() == 6
