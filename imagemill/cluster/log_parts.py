"""The log of a run on several processes: each uploads its lines to the bucket, part by part.

The parts are below ``runs/<run_id>/parts/`` until the leader merges them into log.jsonl, in order of time.
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
    """The log of one process, ``file``, and how much of it has been uploaded."""

    def __init__(self, bucket: ImageBucket, run_id: str, worker: str, file: Path) -> None:
        self._bucket = bucket
        self._name = f"runs/{run_id}/parts/{worker}"
        self._file = file
        self._sent = 0
        self._pieces = 0
        self._lock = threading.Lock()

    def send(self) -> None:
        """Upload the new lines.

        Raises:
            StoreUnavailableError: the bucket is unavailable; the lines go with the next part.
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
    """Append the uploaded parts to the run's log, in order of time, and delete them from the bucket."""
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
