"""Prefect as a user has it: a server, a worker and the deployments of prefect.yaml, each a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from imagemill.cli.child_process import ended_afterwards
from tests.patience import PATIENCE_S
from tests.prefect_database import keep, lay_out
from tests.servers import free_port

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Installation:
    """A running server; ``environment`` is what a client of it needs."""

    url: str
    folder: Path
    environment: Mapping[str, str]

    @property
    def api(self) -> str:
        return f"{self.url}/api"

    def log(self, name: str) -> str:
        """What the process ``name`` has written so far: server or worker."""
        return (self.folder / f"{name}.log").read_text()

    def prefect(self, *arguments: str) -> str:
        """Run one prefect command to its end."""
        return run_prefect(*arguments, environment=self.environment)

    @contextmanager
    def worker(self, **environment: str) -> Iterator[None]:
        """A process worker of the pool of prefect.yaml."""
        command = ["worker", "start", "--pool", "imagemill", "--type", "process"]
        with self._process("worker", *command, **environment):
            yield

    @contextmanager
    def _process(self, name: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*_PREFECT, *arguments],
                env={**self.environment, **environment},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        with ended_afterwards(process, 15):
            yield process


_PREFECT = (sys.executable, "-m", "prefect")


def run_prefect(*arguments: str, environment: Mapping[str, str], cwd: Path = ROOT) -> str:
    """Run one prefect command to its end, which may not need to ask anything; what it printed."""
    done = subprocess.run(
        [*_PREFECT, "--prompt", *arguments],
        stdin=subprocess.DEVNULL,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def installation(folder: Path) -> Iterator[Installation]:
    """A default ``prefect server start`` on a free port while the block runs, its data in ``folder``."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment = {
        **clean,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "IMAGEMILL_HOME": str(folder / "imagemill"),
    }
    made = Installation(url, folder, environment)
    database = folder / "prefect" / "prefect.db"
    lay_out(database)
    command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with made._process("server", *command) as process:
        deadline = time.monotonic() + PATIENCE_S
        while process.poll() is None and time.monotonic() < deadline:
            try:
                httpx.get(f"{made.api}/health", timeout=5).raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.2)
            else:
                break
        else:
            raise AssertionError(made.log("server"))
        keep(database)
        yield made
