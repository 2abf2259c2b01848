"""The command line: a process, its signals, its messages."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from imagemill.emulator.__main__ import main

if TYPE_CHECKING:
    from imagemill.emulator import Emulator

COMMAND = [sys.executable, "-W", "error", "-m", "imagemill.emulator"]


@pytest.mark.parametrize(
    ("command", "number"),
    [
        (COMMAND, signal.SIGTERM),
        (COMMAND, signal.SIGINT),
        ([sys.executable, "-m", "imagemill", "emulator"], signal.SIGTERM),
    ],
)
def test_the_command_runs_until_a_signal(command: list[str], number: int) -> None:
    flags = ["--port", "0", "--latency", "0", "--fault", "500=1", "--api-key", "a", "--per-minute"]
    with subprocess.Popen(
        [*command, *flags, "60", "--burst", "5", "--max-concurrent", "3", "--link-ttl", "9"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        line = process.stdout.readline()
        url = line.split()[0]
        assert "curl" in line
        with httpx.Client(trust_env=False) as client:
            settings = client.get(f"{url}/__config").json()
            assert settings["faults"] == {"500": 1}
            assert (settings["burst"], settings["max_concurrent"]) == (5, 3)
            assert (settings["api_keys"], settings["link_ttl_s"]) == (["a"], 9)
            begun = time.monotonic()
            process.send_signal(number)
            out, errors = process.communicate(timeout=10)
        assert time.monotonic() - begun < 5
        assert (process.returncode, out, errors) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "x"],
        ["--port", "70000"],
        ["--max-concurrent", "0"],
        ["--latency", "-1"],
        ["--latency", "nan"],
        ["--fault", "500"],
        ["--fault", "typo=0.5"],
        ["--fault", "500=2"],
        ["--pictures", "none"],
        ["--api-key", ""],
        ["--seed", "-1"],
        ["--other"],
    ],
)
def test_bad_values_are_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.endswith(".\n")
    assert output.err.count("\n") == 1
    assert "usage" not in output.err


def test_a_port_in_use_is_one_sentence(capsys: pytest.CaptureFixture[str], emulator: Emulator) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main(["--port", str(emulator.port)]) == 2
    assert capsys.readouterr().err == f"Port {emulator.port} is in use.\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for flag in [
        "port",
        "max-concurrent",
        "per-minute",
        "dynamic-per-minute",
        "capacity-per-s",
        "burst",
        "latency",
        "latency-sigma",
        "fault",
        "credit-images",
        "api-key",
        "pictures",
        "seed",
        "link-ttl",
    ]:
        assert f"--{flag} " in text
    assert "#fault:NAME" in text
