"""Runs that die anywhere and are resumed anywhere keep what they must: a fixed number of seeds."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.simulation.world import DiedError, Killed, Machine, Process, World


def play(*options: str) -> subprocess.CompletedProcess[str]:
    """Play seeds in a process of its own, as the command that replays one does."""
    command = [sys.executable, "-m", "tests.simulation", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_seeds_of_the_suite_hold() -> None:
    played = play("--seeds", "0:60")
    assert played.returncode == 0, played.stderr[-6000:] or played.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["60:230", "230:400"])
def test_more_seeds_hold(seeds: str) -> None:
    played = play("--seeds", seeds)
    assert played.returncode == 0, played.stderr[-6000:] or played.stdout


def test_a_seed_replays_to_the_last_step() -> None:
    played = play("341", "250", "341", "250")
    traces = re.split(r"^Scenario\(.*\n", played.stdout, flags=re.MULTILINE)[:4]
    assert traces[0].count("\n") > 100
    assert traces[:2] == traces[2:]


def test_a_fault_that_is_put_back_is_found_with_the_command_that_replays_it() -> None:
    played = play("--seeds", "0:3", "--put-back", "a job is done before its image is in the bucket")
    assert played.returncode == 1
    assert "is done, and images/" in played.stderr
    assert "Replay it with: python -m tests.simulation 0\n" in played.stderr


def test_nothing_is_left_of_a_process_that_dies_before_its_thread_begins() -> None:
    world = World(0)
    process = Process(world, Machine("machine"), dies_at=1, on_death=lambda: None)
    done: list[str] = []

    async def die() -> None:
        with pytest.raises(Killed):
            process.point("write")
        over = process.spawn(lambda: done.append("a write"))
        await world.gone(process)
        with pytest.raises(DiedError):
            await over

    world.run(die())
    world.close()
    assert done == []
