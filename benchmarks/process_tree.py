"""A command and all that it starts, measured from outside: CPU, memory, and its end (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import uuid
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import IO, Self

_MARK = "BENCHMARK_TREE"
_EVERY_S = 0.1
_LOOKS = 20
"""A process has its parent's environment until it becomes the command: so it is looked at more than once."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class ProcessTree:
    """A running command with its descendants, which a variable in their environment tells from others.

    So a daemon that leaves the process group counts too. ``cpu_s`` is user and system time; ``peak_mb`` the
    largest sum of resident memory at one moment, shared pages counted for each process.
    """

    def __init__(
        self, command: list[str], *, environment: dict[str, str], cwd: Path, output: IO[bytes]
    ) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        self._cpu_s: dict[tuple[int, int], float] = {}
        self._ours: set[tuple[int, int]] = set()
        self._others: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()
        self._reaped_s = 0.0
        self.peak_mb = 0.0
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._keep_sampling, daemon=True)
        name, _, value = self._mark.partition("=")
        self._process = subprocess.Popen(
            command,
            env={**environment, name: value},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        self._sampler.start()

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes so far; complete once the command has ended."""
        with self._lock:
            return max(self._reaped_s, sum(self._cpu_s.values()))

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the command itself; its exit code, None where it still runs after so many seconds."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self._reaped_s = used.ru_utime + used.ru_stime
                return self._process.returncode
            time.sleep(0.02)
        return None

    def kill(self) -> None:
        """End the process group and whatever else is left of the tree with SIGKILL."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.returncode = self.wait(60)
        while left := self._sample():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind."""
        self.kill()
        self._ended.set()
        self._sampler.join()

    def _keep_sampling(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._sample()

    def _is_ours(self, which: tuple[int, int]) -> bool:
        if self._others[which] < _LOOKS:
            if self._mark.encode() in Path("/proc", str(which[0]), "environ").read_bytes():
                self._ours.add(which)
                return True
            self._others[which] += 1
        return False

    def _sample(self) -> list[int]:
        """Note what the tree has used; its living processes."""
        with self._lock:
            return self._sample_alone()

    def _sample_alone(self) -> list[int]:
        alive, pages = [], 0
        for entry in os.listdir("/proc"):  # noqa: PTH208 - twenty times a second
            if not entry.isdigit():
                continue
            try:
                stat = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                which = (int(entry), int(stat[19]))
                if which not in self._ours and not self._is_ours(which):
                    continue
                self._cpu_s[which] = (int(stat[11]) + int(stat[12])) * _TICK_S
                pages += int(Path("/proc", entry, "statm").read_text().split()[1])
            except (OSError, IndexError):  # it ended meanwhile
                continue
            if stat[0] not in "ZX":
                alive.append(which[0])
        self.peak_mb = max(self.peak_mb, pages * _PAGE / 2**20)
        return alive
