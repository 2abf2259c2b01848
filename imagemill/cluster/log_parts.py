"""The log of a run that several processes work on: each sends its lines to the bucket, piece by piece.

They lie below ``runs/<run_id>/parts/`` until the leader puts them, by time, into its log.jsonl.
"""

from __future__ import annotations

import heapq
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.media_types import JSON_LINES
from imagemill.runs.folder import RunFolder


class LogPart:
    """The lines of one process, ``file``, as far as they are sent."""

    def __init__(self, bucket: ImageBucket, run_id: str, worker: str, file: Path) -> None:
        self._bucket = bucket
        self._name = f"runs/{run_id}/parts/{worker}"
        self._file = file
        self._sent = 0
        self._pieces = 0
        self._lock = threading.Lock()

    def send(self) -> None:
        """Send the lines that are new.

        Raises:
            StoreUnavailableError: the bucket did not take them; they go with the next piece.
        """
        with self._lock, self._file.open("rb") as log:
            log.seek(self._sent)
            lines = log.read()
            lines = lines[: lines.rfind(b"\n") + 1]
            if not lines:
                return
            with tempfile.NamedTemporaryFile() as piece:
                piece.write(lines)
                piece.flush()
                self._bucket.upload(Path(piece.name), f"{self._name}.{self._pieces:06}.jsonl", JSON_LINES)
            self._sent += len(lines)
            self._pieces += 1


def gather_parts(bucket: ImageBucket, folder: RunFolder) -> None:
    """Append what the others have sent to the run's log, by time, and delete it from the bucket."""
    found = sorted(part.name for part in bucket.objects(f"runs/{folder.run_id}/parts"))
    if not found:
        return
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        files: dict[str, Path] = {}
        for name in found:
            worker = name.rpartition("/")[2].partition(".")[0]
            files[worker] = Path(work) / worker
            with files[worker].open("ab") as file:
                file.write(bucket.read(name) or b"")
        logs = [stack.enter_context(file.open("rb")) for file in files.values()]
        with folder.log.open("ab") as log:
            lines: list[Iterator[bytes]] = [iter(file) for file in logs]
            merged: Iterator[bytes] = heapq.merge(*lines, key=_time_of)
            log.writelines(merged)  # {"at":"…: the time is first
    bucket.delete(found)


def _time_of(line: bytes) -> bytes:
    return line[:36]
