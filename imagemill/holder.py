"""The holder of a run's lease: at most one process, until the lease expires or is released."""

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
    """A process that holds a run's lease, described so that others can tell whether it is still alive.

    ``machine``, ``boot``, ``pid_space`` and ``started`` are empty if the system does not provide them.
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
        """This process; every call returns a new holder."""
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
        """The holder that ``to_text`` wrote, or None if the text is something else."""
        try:
            return cls(**orjson.loads(text))
        except (orjson.JSONDecodeError, TypeError):
            return None

    def to_text(self) -> str:
        """The holder as one line of JSON."""
        return orjson.dumps(asdict(self)).decode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {datetime.fromtimestamp(self.since, UTC):%F %T} UTC"

    def is_gone(self) -> bool:
        """Whether this process is known to be dead."""
        here = Holder.here()
        if self.host != here.host or self.machine != here.machine:
            return False
        if self.boot != here.boot:
            # Neither the machine id nor the host name is enough: containers of one image share them.
            return bool(self.machine and self.boot and here.boot)
        if self.pid_space != here.pid_space:  # its pid means nothing here
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
    """When a process started, in ticks since boot; empty if unknown, None if there is no such process.

    It distinguishes the process from a later one with the same pid.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    # The name, in parentheses, may contain spaces. The state is the first field after it, the start the 20th.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields:
        return ""
    return None if fields[0] in "ZX" else fields[19]
