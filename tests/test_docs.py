"""The documentation says what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def test_the_reference_is_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, "docs/reference.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "reference.md").read_text() == made.stdout, "run docs/reference.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    headings = {
        other: {
            re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in other.read_text().splitlines()
            if line.startswith("#")
        }
        for other in PAGES
    }
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if anchor:
            assert anchor in headings[place], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    help_texts = {}
    for command in ("run", "estimate", "resume", "retry-failed", "calibrate", "demo", "dashboard", "runs"):
        done = subprocess.run(
            [sys.executable, "-m", "imagemill", command, "--help"], capture_output=True, text=True, check=True
        )
        help_texts[command] = done.stdout
    known = set(re.findall(r"--[a-z0-9-]+", " ".join(help_texts.values())))
    foreign = {"--type", "--all", "--pool", "--cov", "--help", "--port"}
    foreign |= {"--background", "--from-file", "--param", "--watch", "--resource-id", "--payload"}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text()))
    assert used - foreign <= known


def test_python_in_the_readme_is_python() -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL):
        compile(block, "README.md", "exec")
