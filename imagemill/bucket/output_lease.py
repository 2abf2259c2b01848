"""A lease on an output prefix: one run at a time writes there, so that no picture is paid twice.

The lease is an object, ``refresh.lease``, taken and renewed by conditional writes, which S3 makes atomic.
One whose holder died is taken over at once where that can be seen, else when it has expired. Times are the
S3 server's, so that machines whose clocks differ agree on when that is.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from imagemill.bucket.image_bucket import ConflictError, ImageBucket
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.holder import Holder

LEASE = "refresh.lease"
EXPIRY_S = 28.0
"""How long a lease outlives its last renewal, in seconds: after that, the next run may take it over."""

RENEW_S = EXPIRY_S / 4

HOLD_S = 90.0
"""How long its holder continues without a renewal, in seconds: an unavailable bucket takes no images either.
When it is back, the renewal is refused if another run has taken the lease over."""

SETTLE_S = 2.0
"""How long a lease stands before it counts, in seconds, where the bucket knows no conditional writes."""

_CLOCKS_AGREE_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Found:
    """The lease that lies in the bucket. ``expires_at`` is in Unix seconds of the server."""

    etag: str
    run_id: str
    nonce: str | None
    process: Holder | None
    expires_at: float
    now: float

    @property
    def is_free(self) -> bool:
        return self.expires_at <= self.now or (self.process is not None and self.process.is_gone())


class OutputLease:
    """The lease of one run in one process.

    Args:
        bucket: the output.
        run_id: the run.
        lost: called once, with the reason, when the lease is lost: nothing more may be written.
        patience_s: how long the same run may go on in another process before it is refused here, in seconds.
        clock: seconds that only go forward.
        wall: Unix seconds.
        sleep: waits for some seconds.
    """

    def __init__(
        self,
        bucket: ImageBucket,
        run_id: str,
        lost: Callable[[str], object],
        *,
        patience_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._bucket = bucket
        self._run_id = run_id
        self._lost = lost
        self._patience_s = patience_s
        self._clock, self._wall, self._sleep = clock, wall, sleep
        self._nonce = uuid.uuid4().hex
        self._process = Holder.here()
        self._server_ahead_s = 0.0
        self._wall_ahead_s = 0.0
        self._etag: str | None = None
        self._renewed_at = -math.inf
        self._why_lost: str | None = None

    def take(self) -> None:
        """Take the lease; where this run held it on another machine, wait until that has expired.

        Raises:
            InputError: another run holds it, or this one does elsewhere.
        """
        found = self._read()
        if found is not None and not found.is_free:
            if found.run_id != self._run_id:
                raise InputError(
                    f"Run {found.run_id} is writing to {self._bucket.uri}: wait for its end (its lease"
                    f" expires at {datetime.fromtimestamp(found.expires_at, UTC):%H:%M:%S} UTC unless it is"
                    " renewed), or choose another output."
                )
            found = self._waited_for(found)
        self._etag = None if found is None else found.etag
        self._write_ours()
        if abs(self._server_ahead_s) > _CLOCKS_AGREE_S or self.is_late:
            self._write_ours()  # with an expiry by the server's clock, which is known only now, and in time

    def _write_ours(self) -> None:
        begun = self._clock()
        with suppress(ConflictError, StoreUnavailableError):  # an answer may be lost, and the write done
            self._write()
        if not self._bucket.conditional:
            # The last of two that write at once has it: both see that once both have written. A write that
            # took longer may have replaced a renewal, which is seen there at the next one.
            self._sleep(SETTLE_S if self._clock() - begun <= SETTLE_S else RENEW_S + SETTLE_S)
        if not self._is_ours():
            raise InputError(f"Another run has just begun to write to {self._bucket.uri}: wait for its end.")

    def _waited_for(self, found: _Found) -> _Found | None:
        """The lease once it is free, which this run holds in another process, or held on another machine."""
        logger.warning(
            "Run %s is or was at work in another process: waiting until its lease of %s is free.",
            self._run_id,
            self._bucket.uri,
        )
        first, until = (found.nonce, found.expires_at), self._clock() + self._patience_s
        while not found.is_free:
            self._sleep(min(RENEW_S / 3, max(1.0, found.expires_at - found.now)))
            again = self._read()
            if again is None:
                return None
            is_alive = (again.nonce, again.expires_at) != first
            if is_alive and (again.run_id != self._run_id or self._clock() >= until):
                raise InputError(
                    f"Run {self._run_id} is being worked on by another process ({again.process}): wait for"
                    " its end, or end it there."
                )
            found = again
        return found

    def renew(self) -> None:
        """Renew the lease once; find out whether it is still ours."""
        if self._why_lost is not None:
            return
        try:
            try:
                if abs(self._wall() - self._clock() - self._wall_ahead_s) > _CLOCKS_AGREE_S:
                    self._look_again()  # the clock was set: what is the server's time by it now?
                    self.refuse_if_lost()
                if self._bucket.conditional:
                    self._write()
                else:
                    self._write_over()
            except (ConflictError, StoreUnavailableError):
                # The answer may be lost, and the write done: then the ETag is another one now.
                self._look_again()
        except StoreUnavailableError:
            pass
        except Exception as error:  # noqa: BLE001 - credentials expire, and the run waits for who renews
            logger.warning("The lease of %s was not renewed (%s).", self._bucket.uri, type(error).__name__)
        if self._clock() - self._renewed_at > HOLD_S:
            self._lose("It could not be renewed in time.")

    def _write_over(self) -> None:
        """Renew without a condition: only while nobody can have taken the lease over since it was read.

        Who takes over one that has expired waits ``SETTLE_S``, and then looks whether it is still his.
        """
        until = max(self._renewed_at + EXPIRY_S, self._clock() + SETTLE_S)
        if not self._is_ours():
            self._lose("Another run took it over.")
            return
        try:
            if self._clock() <= until:
                self._write()
        finally:  # its answer may be lost, and the write done
            if self._clock() > until:
                self._lose("It could not be renewed in time.")

    @property
    def is_late(self) -> bool:
        """Whether the lease has expired unless it is renewed: another run may write to the output."""
        return self._why_lost is not None or self._clock() - self._renewed_at > EXPIRY_S

    def _look_again(self) -> None:
        found = self._read()
        if found is None and self.is_late:
            self._lose("It expired, and another run may have had it since.")
        elif found is None:
            self._etag = None  # somebody deleted it; the next renewal writes it anew
        elif found.nonce == self._nonce:
            self._etag = found.etag
            self._renewed_at = self._clock() - (found.now + EXPIRY_S - found.expires_at)
        else:
            self._lose(f"Run {found.run_id} took it over.")

    def _lose(self, why: str) -> None:
        if self._why_lost is None:
            self._why_lost = f"The run lost its lease of {self._bucket.uri}. {why}"
            self._lost(self._why_lost)

    def check(self) -> None:
        """See that the lease is ours, before something is written that another run may have written.

        Raises:
            StoreUnavailableError: it is lost.
        """
        if self._why_lost is None and self.is_late:
            self.renew()
        if self._why_lost is None and self.is_late:
            self._lose("It could not be renewed in time.")
        self.refuse_if_lost()

    def refuse_if_lost(self) -> None:
        """Raise if the lease is known to be lost; asks nobody.

        Raises:
            StoreUnavailableError: it is.
        """
        if self._why_lost is not None:
            raise StoreUnavailableError(self._why_lost)

    def give_back(self) -> None:
        """Delete the lease, if it is ours."""
        with suppress(StoreUnavailableError):
            if self._is_ours():
                self._bucket.delete([LEASE])

    def _is_ours(self) -> bool:
        found = self._read()
        if found is None or found.nonce != self._nonce:
            return False
        self._etag = found.etag
        return True

    def _read(self) -> _Found | None:
        found = self._bucket.read_dated(LEASE)
        if found is None:
            return None
        content, etag, server_now = found
        now = self._wall() if server_now is None else server_now
        self._server_ahead_s = now - self._wall()
        self._wall_ahead_s = self._wall() - self._clock()
        try:
            lease = orjson.loads(content)
            return _Found(
                etag,
                str(lease["holder"]),
                lease.get("nonce"),
                Holder.of_text(lease.get("process") or ""),
                datetime.fromisoformat(lease["expires_at"]).timestamp(),
                now,
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            return _Found(etag, "unknown", None, None, 0.0, now)  # damaged: it keeps nobody out

    def _write(self) -> None:
        begun = self._clock()
        expires = datetime.fromtimestamp(self._wall() + self._server_ahead_s + EXPIRY_S, UTC)
        lease = {
            "holder": self._run_id,
            "expires_at": expires.isoformat(),
            "nonce": self._nonce,
            "process": self._process.to_text(),
        }
        self._etag = self._bucket.write_version(LEASE, orjson.dumps(lease), "application/json", self._etag)
        self._renewed_at = begun


def holder_of(bucket: ImageBucket) -> str | None:
    """The id of the run that holds the lease of the bucket's prefix; None if it is free."""
    found = OutputLease(bucket, "", lambda _: None)._read()  # noqa: SLF001 - of this module
    return None if found is None or found.is_free else found.run_id


@contextmanager
def output_lease(
    bucket: ImageBucket, run_id: str, lost: Callable[[str], object], *, patience_s: float = 0.0
) -> Iterator[OutputLease]:
    """Hold the lease of the bucket's prefix while the block runs.

    Raises:
        InputError: another run holds it, or this one does elsewhere for longer than ``patience_s``.
    """
    lease = OutputLease(bucket, run_id, lost, patience_s=patience_s)
    lease.take()
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(RENEW_S):
            lease.renew()

    renewal = threading.Thread(target=keep, name="imagemill-lease", daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        ended.set()
        renewal.join()
        lease.give_back()
