"""Tries on one small object what a run will do in its bucket, before anything is bought."""

from __future__ import annotations

import logging
import uuid

import obstore
from botocore.exceptions import ClientError
from obstore.exceptions import BaseError as ObstoreError

from imagemill.bucket.image_bucket import ConflictError, ImageBucket, first_line
from imagemill.errors import InputError, StoreUnavailableError

_TEXT = "text/plain"

logger = logging.getLogger(__name__)


def probe(bucket: ImageBucket) -> None:
    """Write, conditionally replace, read and delete one object, through both clients: in five requests.

    Finds out whether the bucket knows conditional writes; ``bucket.conditional`` says so afterwards.

    Raises:
        InputError: something of this is refused; says what.
    """
    name = f".imagemill-probe-{uuid.uuid4().hex}"
    images = bucket.connection.store(retries=1)  # a person waits for the answer
    try:
        etag = obstore.put(images, bucket.prefix + name, b"1", use_multipart=False)["e_tag"]
    except (ObstoreError, OSError, ValueError) as error:
        raise _refusal(bucket, "does not take images", error) from error
    try:
        bucket.conditional = _replaces_conditionally(bucket, name, etag)
        if not bucket.conditional:
            logger.warning(
                "The bucket %r knows no conditional writes: only the lease keeps runs on one output apart.",
                bucket.name,
            )
            bucket.write_version(name, b"2", _TEXT, etag)
        found = bytes(obstore.get(images, bucket.prefix + name).bytes())
    except (ObstoreError, OSError, StoreUnavailableError, ConflictError) as error:
        raise _refusal(bucket, "does not let records be replaced and read", error) from error
    finally:
        kept = _kept(bucket, name)
    if found != b"2":
        raise InputError(f"The bucket {bucket.connection.place} gives back other bytes than it was given.")
    if kept is not None:
        raise _refusal(bucket, "does not let objects be deleted", kept) from kept


def probe_copies(bucket: ImageBucket) -> None:
    """Write, copy and delete one object, as a run with copies does.

    Raises:
        InputError: it is refused; says so.
    """
    name = f".imagemill-probe-{uuid.uuid4().hex}"
    copied = f"{name}-copy"
    try:
        bucket.write_version(name, b"1", _TEXT, None)
        bucket.copy(name, copied)
        bucket.delete([name, copied])
    except (StoreUnavailableError, ConflictError, FileNotFoundError) as error:
        raise _refusal(bucket, "does not let objects be copied", error) from error


def _replaces_conditionally(bucket: ImageBucket, name: str, etag: str | None) -> bool:
    """Whether a write that must not take place does not, and one that may does; the object is b"2" then.

    A server that does not know the conditions ignores them, or refuses every request that has one.
    """
    try:
        bucket.write_version(name, b"1", _TEXT, None)  # the same bytes: an ETag of before is true still
    except ConflictError:
        pass
    except StoreUnavailableError as error:
        if _is_unknown_to_the_server(error.__cause__):
            return False
        raise
    else:
        return False
    try:
        bucket.write_version(name, b"2", _TEXT, etag)
    except ConflictError:
        return bucket.read(name) == b"2"  # it was written, and the answer to that was lost
    except StoreUnavailableError as error:
        if _is_unknown_to_the_server(error.__cause__):
            return False
        raise
    return True


def _kept(bucket: ImageBucket, name: str) -> StoreUnavailableError | None:
    """Why an object could not be deleted; None where it was."""
    try:
        bucket.delete([name])
    except StoreUnavailableError as error:
        return error
    return None


def _is_unknown_to_the_server(error: BaseException | None) -> bool:
    """Whether a server refused a request for its conditions, rather than for what it asks."""
    if not isinstance(error, ClientError):
        return False
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") in {400, 405, 501}


def _refusal(bucket: ImageBucket, what: str, error: Exception) -> InputError:
    where = f"below {bucket.prefix!r}" if bucket.prefix else "at its top"
    return InputError(
        f"The bucket {bucket.connection.place} {what} {where} ({first_line(error)}): check the rights of"
        " the access key, the bucket's region and AWS_CA_BUNDLE."
    )
