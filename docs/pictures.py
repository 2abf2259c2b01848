"""Takes the pictures of report and dashboard again, with the system's Chromium: python docs/pictures.py.

The report is that of a demo, the dashboard that of six weeks which the tests make up.
"""

import io
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from imagemill.reports.dashboard import render_dashboard  # noqa: E402 - the project is one folder up
from imagemill.reports.regressions import find_regressions  # noqa: E402
from imagemill.runs.history import History  # noqa: E402
from imagemill.settings import RegressionSettings  # noqa: E402
from tests.conftest import CHROMIUM  # noqa: E402
from tests.reports.past_runs import past_runs  # noqa: E402


def main() -> None:
    """Take both pictures, with a small palette."""
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox"])
        _take(browser, _report(), DOCS / "report.png")
        _take(browser, _dashboard(), DOCS / "dashboard.png")
        browser.close()


def _report() -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "imagemill", "demo", "--images", "400"]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603 - our own demo
        page = (Path(folder) / "imagemill-demo" / "report.html").read_text(encoding="utf-8")
    return page.replace(f"{folder}/", "")


def _dashboard() -> str:
    runs, settings = past_runs(), RegressionSettings()
    built = datetime(2025, 11, 24, 8, 10, tzinfo=UTC)
    found = find_regressions(runs, settings)
    return render_dashboard("s3://images/shop", History(runs, 0), found, settings, built)


def _take(browser: Browser, markup: str, file: Path) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 1120}, device_scale_factor=1.5)
    page.set_content(markup)
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(256).save(file, optimize=True)


if __name__ == "__main__":
    main()
