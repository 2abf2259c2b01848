"""A lease on an output prefix: two refreshes of one place cannot interleave.

The lease is an object, ``refresh.lease``, taken and renewed by conditional writes, which S3 makes atomic.
One whose holder died is taken over once it has expired.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson

from imagemill.bucket.image_bucket import ConflictError, ImageBucket
from imagemill.errors import InputError, StoreUnavailableError

LEASE = "refresh.lease"
EXPIRY_S = 120.0
"""How long a lease outlives its last renewal, in seconds."""


@contextmanager
def output_lease(bucket: ImageBucket, holder: str, folder: Path) -> Iterator[None]:
    """Hold the lease of the bucket's prefix while the block runs. ``holder`` is the run's id.

    Raises:
        InputError: another run holds it.
    """
    file = folder / LEASE
    etag = _take(bucket, holder, file)
    ended = threading.Event()

    def renew() -> None:
        held = etag
        while not ended.wait(EXPIRY_S / 4):
            try:
                held = _write(bucket, holder, file, held)
            except (ConflictError, StoreUnavailableError):
                continue  # the next attempt may succeed; if the lease is lost, its taker found it expired

    renewal = threading.Thread(target=renew, name="imagemill-lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join()
        bucket.delete([LEASE])


def _take(bucket: ImageBucket, holder: str, file: Path) -> str:
    found = bucket.read_version(LEASE)
    if found is not None:
        lease = orjson.loads(found[0])
        expires = datetime.fromisoformat(lease["expires_at"])
        if lease["holder"] != holder and expires > datetime.now(UTC):
            raise InputError(
                f"Run {lease['holder']} is refreshing {bucket.uri}: wait for its end (its lease expires at"
                f" {expires:%H:%M:%S} UTC unless it is renewed)."
            )
    try:
        return _write(bucket, holder, file, found and found[1])
    except ConflictError:
        raise InputError(f"Another run has just begun to refresh {bucket.uri}: wait for its end.") from None


def _write(bucket: ImageBucket, holder: str, file: Path, etag: str | None) -> str:
    expires = datetime.now(UTC) + timedelta(seconds=EXPIRY_S)
    file.write_bytes(orjson.dumps({"holder": holder, "expires_at": expires.isoformat()}))
    return bucket.replace(file, LEASE, "application/json", etag)
