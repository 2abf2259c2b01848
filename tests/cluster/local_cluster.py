"""A real Dask cluster: a scheduler and worker processes, each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from distributed import Client

from tests.patience import PATIENCE_S
from tests.servers import free_port


class Cluster:
    """A scheduler and its workers on loopback; used as a context manager."""

    def __init__(self, folder: Path, workers: int, **environment: str) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._count = workers
        self._started = 0
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    def logs(self) -> list[str]:
        """What each process has written so far."""
        return [log.read_text() for log in self._folder.glob("*/output.log")]

    def _start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        self._started += 1
        home = self._folder / f"{name}{self._started}"
        home.mkdir(parents=True)
        with (home / "output.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]],
                cwd=home,
                env={**self._environment, "IMAGEMILL_HOME": str(home / "imagemill")},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        self.complete()
        return self

    def complete(self) -> None:
        """Start what has not been started yet or was killed, and wait until all workers are there."""
        port = self.address.rpartition(":")[2]
        options = ["--host", "127.0.0.1", "--no-dashboard"]
        if self.scheduler is None or self.scheduler.poll() is not None:
            self._kill_all()  # workers end with their scheduler, sooner or later
            self.scheduler = self._start("scheduler", "dask_scheduler", *options, "--port", port)
        options += ["--no-nanny", "--nthreads", "2"]
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        while len(self.workers) < self._count:
            self.workers.append(self._start("worker", "dask_worker", self.address, *options))
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                with Client(self.address, timeout=5, set_as_default=False) as client:
                    client.wait_for_workers(self._count, timeout=PATIENCE_S)
            except OSError:
                if time.monotonic() > until:
                    raise
            else:
                return

    def kill_scheduler(self) -> None:
        """End the scheduler as a crash would."""
        assert self.scheduler
        self.scheduler.kill()
        self.scheduler.wait()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kill_all()

    def _kill_all(self) -> None:
        for process in [*self.workers, self.scheduler]:
            if process is not None:
                process.kill()
                process.wait()
        self.workers = []
