"""The documentation says what the code does."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from imagemill.cli.command import main

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINKED = [*PAGES, *[ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]]


@pytest.mark.slow
def test_the_reference_is_what_the_code_says() -> None:
    made = subprocess.run(
        [sys.executable, "docs/reference.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "reference.md").read_text() == made.stdout, "run docs/reference.py"


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    headings = {
        other: {
            re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in other.read_text().splitlines()
            if line.startswith("#")
        }
        for other in LINKED
    }
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if anchor:
            assert anchor in headings[place], target


COMMANDS = (
    *("run", "refresh", "estimate", "resume", "retry-failed", "calibrate", "check", "demo", "dashboard"),
    *("runs", "reconcile", "preview", "compare", "forget"),
)


@cache
def known_options() -> set[str]:
    """The options of all of imagemill's commands."""
    shown = io.StringIO()
    for command in COMMANDS:
        with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
            main([command, "--help"])
    return set(re.findall(r"--[a-z0-9-]+", shown.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    foreign = {"--block", "--type", "--all", "--pool", "--cov", "--dist", "--help", "--port"}
    foreign |= {"--background", "--from-file", "--param", "--watch", "--resource-id", "--payload"}
    foreign |= {"--max-concurrent", "--capacity-per-s", "--dynamic-per-minute", "--bucket"}  # of emulators
    foreign |= {"--rm", "--read-only", "--build-arg", "--base-job-template", "--prefect-file", "--version"}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text()))
    assert used - foreign <= known_options()
