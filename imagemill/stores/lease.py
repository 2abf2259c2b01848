"""Who holds a run: at most one process, by a lease in the run's job store that expires unless renewed."""

from __future__ import annotations

import os
import socket
import time
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a run, described so that another can tell whether it is still alive.

    ``machine``, ``boot``, ``pid_space`` and ``started`` are empty where the system does not tell them.
    ``since`` is in Unix seconds.
    """

    token: str
    host: str
    pid: int
    machine: str
    boot: str
    pid_space: str
    started: str
    since: float

    @classmethod
    def here(cls) -> Holder:
        """This process, now; each call is another holder."""
        pid = os.getpid()
        return cls(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=pid,
            machine=_read("/etc/machine-id"),
            boot=_read("/proc/sys/kernel/random/boot_id"),
            pid_space=_pid_space(),
            started=_process_start(pid) or "",
            since=time.time(),
        )

    @classmethod
    def of_text(cls, text: str) -> Holder | None:
        """The holder that ``to_text`` wrote; None where the text is no such thing."""
        try:
            return cls(**orjson.loads(text))
        except (orjson.JSONDecodeError, TypeError):
            return None

    def to_text(self) -> str:
        """All of it, as one line."""
        return orjson.dumps(asdict(self)).decode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {datetime.fromtimestamp(self.since, UTC):%F %T} UTC"

    def is_gone(self) -> bool:
        """Whether this holder is certainly dead, as far as can be told from here."""
        here = Holder.here()
        if self.host != here.host or self.machine != here.machine:
            return False
        if self.boot != here.boot:
            # Containers share an image's machine id, so the id alone would not do; nor does the host's name.
            return bool(self.machine and self.boot and here.boot)
        if self.pid_space != here.pid_space:  # its number means nothing here
            return False
        started = _process_start(self.pid)
        return started is None or started != self.started


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _pid_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _process_start(pid: int) -> str | None:
    """When a process started, in ticks since boot; empty where unknown, None where there is no process.

    The start tells a process from a later one with the same number.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    # The name, in parentheses, may hold spaces; the state is the first field after it, the start the 20th.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return ""
    return None if fields[0] in "ZX" else fields[19]
