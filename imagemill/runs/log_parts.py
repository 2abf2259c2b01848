"""The log of a run in its bucket while the run goes on, part by part: another machine can resume from it.

Each process that leads the run, and each worker of a cluster, uploads its own lines as parts
``runs/<run_id>/parts/<series>.<number>.jsonl``. The last part of a series is rewritten until it is large
enough, so that a slow run leaves few objects. Once log.jsonl is published, the parts are deleted.

A leader's series has a number that grows from process to process: the order in which they led the run, which
clocks of several machines do not tell. The folder's parts.json says how much of each series its log holds.

A machine that comes back after another one has led the run takes that one's history, as an empty machine
does: :func:`catch_up_with_others`.
"""

from __future__ import annotations

import contextlib
import heapq
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread
import orjson

from imagemill.bucket.image_bucket import ImageBucket, StoredImage
from imagemill.durable import write_whole, written_whole
from imagemill.engine.job_log import CLOSED, CUT, LONGEST_LINE, ends_in_mid_line
from imagemill.errors import StoreUnavailableError
from imagemill.holder import Holder
from imagemill.media_types import JSON_LINES
from imagemill.runs.folder import RunFolder
from imagemill.runs.log_replay import holds

SEND_EVERY_S = 3.0
"""How often new lines are uploaded, in seconds."""

SEND_AGAIN_S = 1.0
"""The shortest time between two uploads, in seconds."""

_FULL = 2**16
"""A part that holds so many bytes is not rewritten."""

_LARGEST = 2**22
"""No part is larger, in bytes, however much waited for the bucket."""

_READ_AT_ONCE = 16
_LEADER = re.compile(r"g(\d{4,})-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True)
class _Part:
    """A part: its series and number in it, and where in the log it begins, in bytes."""

    series: str
    number: int
    start: int

    @property
    def name(self) -> str:
        return f"{self.series}.{self.number:06}.jsonl"


class LogParts:
    """The lines of one process, uploaded from its log ``file`` as a series of parts."""

    def __init__(self, bucket: ImageBucket, run_id: str, file: Path, series: str) -> None:
        self._bucket = bucket
        self._folder = f"runs/{run_id}/parts"
        self._file = file
        self._part = _Part(series, 0, 0)
        self._sent = 0

    def _send(self) -> None:
        """Upload the new lines, if there are any."""
        while True:
            part = self._part
            if self._sent - part.start >= _FULL:
                part = _Part(part.series, part.number + 1, self._sent)
            with self._file.open("rb") as log:
                log.seek(part.start)
                lines = log.read(_LARGEST)
            lines = lines[: lines.rfind(b"\n") + 1]
            if part.start + len(lines) <= self._sent:
                return
            self._note(part)
            self._bucket.write(f"{self._folder}/{part.name}", lines, JSON_LINES)
            self._part, self._sent = part, part.start + len(lines)

    def _note(self, part: _Part) -> None:
        """This part is about to be written."""


class WorkerLog(LogParts):
    """The log of a worker of a cluster; ``worker`` names the series."""

    def __init__(self, bucket: ImageBucket, run_id: str, worker: str, file: Path) -> None:
        super().__init__(bucket, run_id, file, worker)
        self._lock = threading.Lock()

    def send(self) -> None:
        """Upload the new lines.

        Raises:
            StoreUnavailableError: the bucket is unavailable; the lines go with the next part.
        """
        with self._lock:
            self._send()


@dataclass(slots=True)
class _Known:
    """What the folder's log holds: how many bytes of each series, and the part that it wrote last.

    ``published`` is the ETag of the log.jsonl that the folder's log begins with. From byte ``own`` on, this
    machine has written it; its first part begins there. ``boot`` is the machine's when it last did.
    ``is_cut``: a half line was dropped from its end, and it does not say so yet.
    """

    have: dict[str, int] = field(default_factory=dict)
    last: _Part | None = None
    published: str | None = None
    own: int | None = None
    boot: str = ""
    is_cut: bool = False

    @classmethod
    def read(cls, file: Path) -> _Known:
        try:
            document = orjson.loads(file.read_bytes())
            last = document["last"]
            have, last = dict(document["have"]), last and _Part(**last)
            published, own = document.get("published"), document.get("own")
            return cls(have, last, published, own, document.get("boot", ""), document.get("is_cut", False))
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return cls()

    def write(self, file: Path) -> None:
        write_whole(file, orjson.dumps(asdict(self)))


def catch_up_with_others(bucket: ImageBucket, folder: RunFolder) -> None:
    """Replace the folder's log by that of the bucket if another machine has led the run since this one did.

    What only this machine's log says, of its last seconds, the other one counted as lost. That log is kept
    beside the new one. The folder ``is_overtaken`` until its job store has been made anew.

    Raises:
        StoreUnavailableError: the bucket is unavailable.
    """
    known, name = _Known.read(folder.parts), f"runs/{folder.run_id}/{folder.log.name}"
    if not any(_generation(series) and series not in known.have for series in _found(bucket, folder.run_id)):
        etag = bucket.etag(name)
        if etag in {None, known.published} or _begins_with(folder.log, bucket, name):
            return
    folder.set_overtaken(True)
    if folder.log.exists():
        folder.log.replace(folder.path / "overtaken-log.jsonl")
    folder.parts.unlink(missing_ok=True)
    _Known(published=bucket.download(name, folder.log)).write(folder.parts)


def _is_event(event: str, line: bytes) -> bool:
    return f'"event":"{event}"'.encode() in line


def _begins_with(file: Path, bucket: ImageBucket, name: str) -> bool:
    """Whether a file begins with the content of an object; not if it is missing, or shorter."""
    with bucket.open(name) as published:
        if published is None or not file.exists():
            return published is None
        with file.open("rb") as ours:
            while piece := published.read(_LARGEST):
                if ours.read(len(piece)) != piece:
                    return False
    return True


class LeaderLog(LogParts):
    """The log of the process that leads a run.

    To create it appends what other machines wrote to the folder's log, and uploads what the process before on
    this machine had no time for; it blocks. ``is_open``, which may be set, allows uploads: the process holds
    the output.

    Raises:
        StoreUnavailableError: the bucket is unavailable.
    """

    def __init__(self, bucket: ImageBucket, folder: RunFolder) -> None:
        super().__init__(bucket, folder.run_id, folder.log, "")
        self._run_id = folder.run_id
        self._state = folder.parts
        self._known = _Known.read(self._state)
        self._turn = anyio.Lock()
        self.is_open = False
        self._drop_cut_line()
        found = self._found() if folder.record.exists() else {}
        self._take_up(found)
        generation = 1 + max(map(_generation, [*found, *self._known.have]), default=0)
        boot = Holder.here().boot
        if self._known.is_cut or self._known.boot not in {"", boot}:
            self._note_missing()
        self._known.boot, self._known.is_cut = boot, False
        if self._known.own is None:
            self._known.own = self._size - self._cut_size
        self._known.write(self._state)
        self._begin(_Part(f"g{generation:04}-{uuid.uuid4().hex[:8]}", 0, self._known.own))

    async def send(self) -> None:
        """Upload the new lines, unless another process may hold the output.

        Raises:
            StoreUnavailableError: the bucket is unavailable; the lines go with the next part.
            OSError: the disk is full.
        """
        async with self._turn:
            if self.is_open:
                await anyio.to_thread.run_sync(self._send)

    async def gather(self) -> None:
        """Append what workers have uploaded, in order of time.

        Raises:
            StoreUnavailableError: the bucket is unavailable.
        """
        async with self._turn:
            await anyio.to_thread.run_sync(self._gather)

    def _gather(self) -> None:
        self._send()
        self._append(self._found())
        self._begin(_Part(self._part.series, self._part.number + 1, self._size))

    async def retire(self) -> None:
        """log.jsonl is published as it stands: delete the parts, and upload no more.

        Parts that the bucket does not delete are known by their last line as a part of log.jsonl.
        """
        async with self._turn:
            self.is_open = False
            await anyio.to_thread.run_sync(self._retire)

    def _retire(self) -> None:
        with contextlib.suppress(StoreUnavailableError):
            self._known.published = self._bucket.etag(f"runs/{self._run_id}/{self._file.name}")
            names = [part.name for parts in self._found().values() for part in parts]
            if names:
                self._bucket.try_delete(names)
        self._known.have = dict.fromkeys(self._known.have, 0)
        part = _Part(self._part.series, self._part.number, self._size)
        self._begin(part)
        self._known.have.setdefault(part.series, 0)
        self._known.last = part
        self._known.write(self._state)

    @property
    def _size(self) -> int:
        return self._file.stat().st_size if self._file.exists() else 0

    def _begin(self, part: _Part) -> None:
        self._part, self._sent = part, part.start

    def _note(self, part: _Part) -> None:
        if part != self._known.last:
            self._known.have.setdefault(part.series, 0)
            self._known.last = part
            self._known.write(self._state)

    @property
    def _last_line(self) -> bytes:
        if not self._size:
            return b""
        with self._file.open("rb") as log:
            log.seek(max(0, self._size - 1_000))
            return log.read().splitlines(keepends=True)[-1]

    @property
    def _cut_size(self) -> int:
        """The bytes of the line with which the log ends if lines of another machine may be missing there."""
        line = self._last_line
        return len(line) if _is_event(CUT, line) else 0

    def _note_missing(self) -> None:
        """The machine has started anew, or a line was cut: lines that no process closed may be missing."""
        line = self._last_line
        is_whole = _is_event(CLOSED, line) and not self._known.is_cut  # else one was begun after it
        if line and not is_whole and not _is_event(CUT, line):
            with self._file.open("ab") as log:
                log.write(self._cut_line())

    def _drop_cut_line(self) -> None:
        """Remove a line whose end a power cut or a full disk took: it must not pass for one that was read."""
        if self._size and ends_in_mid_line(self._file):
            self._known.is_cut = True  # more may be missing, and this line will not tell
            self._known.write(self._state)
            with self._file.open("r+b") as log:
                log.seek(max(0, self._size - LONGEST_LINE))
                start, rest = log.tell(), log.read()
                log.truncate(start + rest.rfind(b"\n") + 1)

    def _cut_line(self) -> bytes:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        return orjson.dumps({"at": at, "event": CUT, "run_id": self._run_id}) + b"\n"

    def _take_up(self, found: dict[str, list[StoredImage]]) -> None:
        """Bring the folder's log and the parts up to date."""
        last, held = self._known.last, self._known.own or 0
        if last is not None:
            stored = next((p.size for p in found.get(last.series, ()) if p.name.endswith(last.name)), 0)
            held = last.start + stored
        if self._size < held:  # a power cut took lines that the bucket has
            published = self._bucket.download(f"runs/{self._run_id}/{self._file.name}", self._file)
            self._known, last = _Known(published=published), None
            if published is None:
                self._file.write_bytes(b"")
        if last is not None:
            self._part, self._sent = last, held
            if self._size > held:  # else there may be no log: a power cut took its name
                self._send()
                found = self._found()
            self._known.have[last.series] = sum(part.size for part in found.get(last.series, ()))
            self._known.own = None
        self._append(found)

    def _append(self, found: dict[str, list[StoredImage]]) -> None:
        """Append lines of other processes, and that some may be missing if a leader has not closed its log.

        A leader's lines and that sentence become part of the log together, in a file that takes its place: a
        kill, a power cut or a full disk between the two would leave a log that seems whole. Nobody else has
        it open then.
        """
        leaders, workers = b"", list[list[bytes]]()
        for series in sorted(found):
            text = self._missing(series, found[series])
            if _generation(series):
                leaders += text
            elif text:
                workers.append(text.splitlines(keepends=True))
        if leaders or workers:
            merged: Iterator[bytes] = heapq.merge(*workers, key=_time_of)
            torn = self._size > 0 and ends_in_mid_line(self._file)
            text = b"\n" * torn + leaders + b"".join(merged)
            if leaders and not _is_event(CLOSED, leaders[:-1].rpartition(b"\n")[2]):
                text += self._cut_line()
            if leaders:
                with written_whole(self._file) as log:
                    if self._file.exists():
                        with self._file.open("rb") as before:
                            shutil.copyfileobj(before, log)
                    log.write(text)
            else:
                with self._file.open("ab") as log:
                    log.write(text)
            self._known.own = self._size - self._cut_size
            self._known.write(self._state)

    def _missing(self, series: str, parts: Sequence[StoredImage]) -> bytes:
        """The bytes of a series that the log lacks, and has from now on."""
        have, start, wanted = self._known.have.get(series, 0), 0, list[str]()
        for part in parts:
            if wanted or start + part.size > have:
                wanted.append(part.name)
            else:
                start += part.size
        if not wanted:
            return b""
        content = _read(self._bucket, wanted)
        self._known.have[series] = start + sum(map(len, content))
        if have:
            text = b"".join(content)[have - start :]
            if not self._is_known(text):
                return text
            self._known.own = None  # a process was killed as it had just taken them
            return b""
        return b"".join(text for text in content if not self._is_known(text))

    def _is_known(self, text: bytes) -> bool:
        """Whether the log holds the last line of these, such as of parts that could not be deleted."""
        line = text[text[:-1].rfind(b"\n") + 1 :]
        return not line or holds(self._file, line)

    def _found(self) -> dict[str, list[StoredImage]]:
        return _found(self._bucket, self._run_id)


def _found(bucket: ImageBucket, run_id: str) -> dict[str, list[StoredImage]]:
    """The parts in the bucket, by series, in order."""
    found: dict[str, list[StoredImage]] = {}
    for part in sorted(bucket.objects(f"runs/{run_id}/parts"), key=lambda part: part.name):
        found.setdefault(part.name.rpartition("/")[2].partition(".")[0], []).append(part)
    return found


def published_lines(bucket: ImageBucket, run_id: str) -> Iterator[bytes]:
    """The lines of a run's log as far as they are in the bucket."""
    yield from (bucket.read(f"runs/{run_id}/log.jsonl") or b"").splitlines()
    for text in _read(bucket, sorted(part.name for part in bucket.objects(f"runs/{run_id}/parts"))):
        yield from text.splitlines()


def _read(bucket: ImageBucket, names: Iterable[str]) -> list[bytes]:
    with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
        return [text or b"" for text in threads.map(bucket.read, names)]


def _generation(series: str) -> int:
    """Which leader of the run a series is of, counted from 1; 0 for that of a worker."""
    leader = _LEADER.fullmatch(series)
    return int(leader[1]) if leader else 0


def _time_of(line: bytes) -> bytes:
    return line[:36]  # {"at":"…: the time is first
