"""Job events, for log.jsonl and for ``logging``.

The logger ``imagemill.jobs`` gets one record per event: INFO for a finished image, WARNING for an attempt
that will be retried, ERROR for a failed job. Messages are only formatted if a handler needs them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from imagemill.jobs import Job
from imagemill.secrets import holds_secret, masked_values

jobs_logger = logging.getLogger("imagemill.jobs")

CLOSED = "log_closed"
"""The event with which a process ends its log: no line is missing after it."""

CUT = "log_cut"
"""The event that says that the process before may have done more than the lines above tell."""

UP_NEXT = "up_next"
"""The event with the numbers of the jobs that may be sent before the next lines are safe."""

_PIECE = 2**18
LONGEST_LINE = 1_000_000
"""No line of ours is longer, in bytes: a longer one comes in several pieces, of which none is JSON."""

_LEVELS = {
    "sent": logging.DEBUG,
    "accepted": logging.DEBUG,
    "done": logging.INFO,
    "attempt_failed": logging.WARNING,
    "failed": logging.ERROR,
}


class JobLog:
    """The log of one run in one process.

    The file has a shared lock while it is open, so that others can see that the run is in progress. What a
    full disk does not take is written with the next line; if it stays full, the job store stops the run.

    Args:
        path: log.jsonl, which is appended to line by line, so that a killed process loses nothing.
        worker: the name of this process in each line, if several work on the run.
        wall: Unix seconds.
    """

    def __init__(
        self, run_id: str, path: Path, *, worker: str | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self._run: dict[str, str] = {"run_id": run_id} | ({"worker": worker} if worker else {})
        self._file: BinaryIO = path.open("ab", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_SH)
        self._wall = wall
        self._unwritten = b"\n" if ends_in_mid_line(path) else b""
        self._writing = threading.Lock()

    def job(self, event: str, job: Job, **details: object) -> None:
        """Write the line of a job event."""
        line = {
            "at": self._time(),
            "event": event,
            **self._run,
            "job": job.number,
            "id": job.id,
            "key": job.key,
            "status": job.status,
            "attempt": job.attempts,
            "request_id": job.request_id,
            **({"route": job.route} if job.route else {}),
            **details,
        }
        self._write(line)
        level = _LEVELS.get(event, logging.INFO)
        if event == "attempt_failed" and line["retry_in_s"] is None:
            level = logging.DEBUG  # the next event says it: the job failed, or the run stops
        if jobs_logger.isEnabledFor(level):
            jobs_logger.log(level, "%s", _Words(line), extra={"job": line})

    def event(self, event: str, **details: object) -> None:
        """Write the line of an event of the run itself."""
        self._write({"at": self._time(), "event": event, **self._run, **details})

    def flush(self) -> None:
        """Write the lines that a full disk has not taken.

        Raises:
            OSError: it is full still.
        """
        with self._writing:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def close(self) -> None:
        """Close the file, and with it the lock."""
        with contextlib.suppress(OSError):
            self.flush()
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if holds_secret(text):
            text = orjson.dumps(masked_values(line), option=orjson.OPT_APPEND_NEWLINE)
        with self._writing:
            self._unwritten += text
        with contextlib.suppress(OSError):
            self.flush()

    def _time(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).isoformat(timespec="milliseconds")


def pieces(log: Path) -> Iterator[bytes]:
    """The lines of a log, some 256 KB at a time: most can be told not to matter without a look at each line.

    A missing log has none. It is not mapped into memory, where all of it would count as the process's own.
    """
    if not log.exists():
        return
    with log.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece + file.readline(LONGEST_LINE - _PIECE)


def lines_with(log: Path, text: bytes) -> Iterator[bytes]:
    """The lines of a log that hold this text. The log of a million jobs takes a quarter of a second."""
    for piece in pieces(log):
        end = 0
        while (place := piece.find(text, end)) >= 0:
            start = max(end, piece.rfind(b"\n", end, place) + 1)
            end = piece.find(b"\n", place) + 1 or len(piece)
            yield piece[start:end]


def ends_in_mid_line(path: Path) -> bool:
    """Whether the last line was cut off, by a power cut or a full disk."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def is_worked_on(log: Path) -> bool:
    """Whether a process on this machine is working on the run with this log."""
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class JsonLines(logging.Formatter):
    """A record as one JSON object on one line of ASCII, which cannot contain terminal escapes."""

    def format(self, record: logging.LogRecord) -> str:
        line: Mapping[str, object] = getattr(record, "job", None) or {"message": record.getMessage()}
        return json.dumps(masked_values({"level": record.levelname, **line}), default=str)


class _Words:
    """A job event as text, formatted on demand."""

    def __init__(self, line: Mapping[str, Any]) -> None:
        self._line = line

    def __str__(self) -> str:
        return in_words(self._line)


def in_words(line: Mapping[str, Any]) -> str:
    """A job event as one line of text."""
    parts = [f"{line['event'].replace('_', ' ')}: {spelled_out(line['id'])}"]
    if line.get("error_class"):
        code = line.get("error_code")
        parts.append(line["error_class"] if code in {None, line["error_class"]} else
                     f"{line['error_class']} ({spelled_out(code)})")  # fmt: skip
    if line.get("message"):
        parts.append(f'"{spelled_out(line["message"])}"')
    if line.get("latency_s") is not None:
        parts.append(f"{line['latency_s']:.2f} s")
    parts.append(f"attempt {line['attempt']}")
    if line.get("retry_in_s") is not None:
        parts.append(f"retry in {line['retry_in_s']:.1f} s")
    if line.get("request_id"):
        parts.append(f"request {spelled_out(line['request_id'])}")
    return ", ".join(parts)


def spelled_out(text: str) -> str:
    """Text that is safe for a terminal: control characters are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
