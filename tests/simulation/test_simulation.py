"""Runs that die anywhere and are resumed anywhere keep what they must: a fixed number of seeds."""

from __future__ import annotations

import subprocess
import sys

import pytest


def play(seeds: str) -> None:
    """Play seeds in a process of its own, as the command that replays one does."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", seeds]
    played = subprocess.run(command, capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stderr[-6000:] or played.stdout


def test_seeds_of_the_suite_hold() -> None:
    play("0:60")


@pytest.mark.slow
def test_more_seeds_hold() -> None:
    play("60:2000")
