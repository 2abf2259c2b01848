"""A killed run resumes on every API; on queued ones nothing that was accepted is paid twice."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

import pytest

from imagemill.emulator import Emulator
from tests.cli.test_command import wait_for
from tests.conftest import Command, Place
from tests.runs.test_crash import settled

QUEUED = {"replicate": "1024", "bfl": "256"}
"""The queued APIs, each with a size that it offers; runs/test_crash.py has fal and Together."""


@pytest.mark.slow
@pytest.mark.parametrize(("provider", "size"), [*QUEUED.items(), ("openai", "256")])
def test_a_killed_run_resumes_on_every_api(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
    provider: str,
    size: str,
) -> None:
    for variable in ("REPLICATE_API_TOKEN", "BFL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(variable, "test-key")
    emulated = emulator(latency_s=0.2, max_concurrent=30)
    given = [
        *("run", catalog(prompt=[f"p{n}" for n in range(200)]), "--provider", provider),
        *("--base-url", emulated.base_url, "--output", place.uri),
        *("--s3-endpoint-url", place.s3.endpoint_url, "--run-id", "killed"),
        *("--width", size, "--height", size, "--store", "sqlite", "--json"),
    ]
    process = start_command(*given)
    wait_for(lambda: emulated.bill()["images"] >= 70, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = len([name for name in place.objects() if name.startswith("images/")])
    open_requests = settled(emulated) - finished

    done = command(*given)

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["pending"]) == (200, 0)
    counts = [entry["count"] for entry in emulated.bill()["by_key"].values()]
    assert len(counts) == 200
    lists_requests = provider == "replicate"
    assert sum(counts) - 200 <= (0 if lists_requests else open_requests)
