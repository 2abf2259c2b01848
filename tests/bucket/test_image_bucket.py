"""The bucket's conditional writes, deletions, listings, and what becomes of a server's errors."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from imagemill.bucket.image_bucket import ConflictError, ImageBucket, image_name
from imagemill.bucket.probe import probe
from imagemill.errors import StoreUnavailableError
from tests.bucket.s3_front import Answer, Asked, S3Front
from tests.servers import free_port

CONDITIONS = ("if-match", "if-none-match")


def write(bucket: ImageBucket, content: bytes, etag: str | None) -> str:
    return bucket.write_version("manifest.parquet", content, "text/plain", etag)


def test_a_conditional_write_takes_place_once(bucket: ImageBucket, tmp_path: Path) -> None:
    first = write(bucket, b"1", None)
    with pytest.raises(ConflictError):
        write(bucket, b"2", None)
    second = write(bucket, b"3", first)
    with pytest.raises(ConflictError):
        write(bucket, b"4", first)
    assert bucket.read_version("manifest.parquet") == (b"3", second)
    file = tmp_path / "file"
    file.write_bytes(b"5")
    third = bucket.replace(file, "manifest.parquet", "text/plain", second)
    with pytest.raises(ConflictError):
        bucket.replace(file, "manifest.parquet", "text/plain", second)
    bucket.delete(["manifest.parquet"])
    with pytest.raises(ConflictError):
        write(bucket, b"6", third)
    assert bucket.read("manifest.parquet") is None


@pytest.mark.parametrize("server", ["ignores them", "refuses them", "does not know its own ETag"])
def test_a_bucket_without_conditional_writes_is_found_out_and_used(
    bucket: ImageBucket, front: S3Front, caplog: pytest.LogCaptureFixture, tmp_path: Path, server: str
) -> None:
    def refuse(asked: Asked) -> Answer | None:
        if not asked.is_object_write or not any(name in asked.headers for name in CONDITIONS):
            return None
        if server == "refuses them":
            return Answer(501, "NotImplemented")
        return Answer(412, "PreconditionFailed")

    if server == "ignores them":
        front.strip = CONDITIONS
    else:
        front.before = refuse
    probe(bucket)
    assert not bucket.conditional
    assert caplog.text.count("no conditional writes") == 1
    first = write(bucket, b"1", None)
    second = write(bucket, b"2", first)
    for etag in (None, first):
        with pytest.raises(ConflictError):
            write(bucket, b"3", etag)
    assert bucket.read_version("manifest.parquet") == (b"2", second)
    (file := tmp_path / "file").write_bytes(b"4")  # as a manifest is published
    third = bucket.replace(file, "manifest.parquet", "text/plain", second)
    with pytest.raises(ConflictError):
        bucket.replace(file, "manifest.parquet", "text/plain", second)
    assert bucket.read_version("manifest.parquet") == (b"4", third)


def test_what_could_not_be_deleted_is_said(bucket: ImageBucket, front: S3Front, client: Any) -> None:
    names = [f"images/{number:04}" for number in range(1200)]
    for name in names[:3]:
        bucket.write_version(name, b"x", "text/plain", None)
    deleted = f"<Key>shop/{names[0]}</Key><Code>NoSuchKey</Code>"
    locked = f"<Key>shop/{names[1]}</Key><Code>AccessDenied</Code>"
    body = (
        f"<?xml version='1.0'?><DeleteResult><Error>{deleted}</Error><Error>{locked}</Error></DeleteResult>"
    )

    class Refused(Answer):
        @property
        def body(self) -> bytes:
            return body.encode()

    front.after = lambda asked: Refused(200) if asked.method == "POST" else None
    with pytest.raises(StoreUnavailableError, match=r"did not delete 1 of 1,200 .*AccessDenied.*0001"):
        bucket.delete(names)
    # A refusal in the first thousand keeps the rest from nothing.
    assert [len(re.findall(b"<Key>", asked.body)) for asked in front.asked if asked.method == "POST"] == [
        1000,
        200,
    ]
    assert "Contents" not in client.list_objects_v2(Bucket=bucket.name)
    front.after = lambda _: None
    bucket.delete(names)  # those that are gone already are no fault
    bucket.delete([])


@pytest.mark.parametrize(
    ("stored", "wanted"), [(0, 5), (30, 5), (999, 40), (1000, 3), (1001, 40), (1001, 800)]
)
def test_images_are_found_by_one_listing_or_by_many_lookups(
    bucket: ImageBucket, front: S3Front, stored: int, wanted: int
) -> None:
    keys = [f"{number * 2654435761 % 2**32:08x}" * 5 for number in range(max(stored, wanted) + wanted)]
    server = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]  # by HTTP a thousand would take a minute
    for number, key in enumerate(keys[:stored]):  # the first is empty, as a full disk once left one
        server.put_object(bucket.name, bucket.prefix + image_name(key, "png"), b"x" if number else b"")
    asked_for = [keys[0], *keys[max(0, stored - wanted // 2) : max(0, stored - wanted // 2) + wanted]]
    front.asked.clear()
    found = bucket.images(asked_for)
    assert set(found) == set(asked_for[1:]) & set(keys[1:stored])
    assert all(image.name == image_name(key, "png") and image.size == 1 for key, image in found.items())
    requests = len(front.asked)
    if stored < 1000:
        assert requests == 1
    else:
        assert requests == (1 + len(set(asked_for)) if wanted <= 16 else 1 + 16)


def refused_with(code: str, status: int) -> Callable[[Asked], Answer]:
    return lambda _: Answer(status, code)


@pytest.mark.parametrize(
    ("code", "status"), [("SlowDown", 503), ("AccessDenied", 403), ("InternalError", 500)]
)
def test_every_error_of_a_server_is_the_buckets_own(
    bucket: ImageBucket,
    front: S3Front,
    tmp_path: Path,
    code: str,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # boto3 waits between its attempts
    file = tmp_path / "file"
    file.write_bytes(b"x")
    bucket.write_version("there", b"x", "text/plain", None)
    front.before = refused_with(code, status)
    uses: list[Callable[[], Any]] = [
        lambda: bucket.upload(file, "name", "text/plain"),
        lambda: bucket.replace(file, "name", "text/plain", None),
        lambda: bucket.read("there"),
        lambda: bucket.download("there", tmp_path / "copy"),
        lambda: bucket.objects("images"),
        lambda: bucket.images(["abcd"]),
        lambda: bucket.copy("there", "copy"),
        lambda: bucket.delete(["there"]),
    ]
    for use in uses:
        with pytest.raises(
            StoreUnavailableError, match=rf"'images-\d+' (answered|did not take a file).*{code}"
        ):
            use()
    if status == 403:  # the others, obstore would ask for again
        with pytest.raises(StoreUnavailableError, match="did not take an image"):
            anyio.run(bucket.put_image, "images/ab/abcd.png", b"x", {})


def test_a_connection_that_breaks_is_an_outage(
    bucket: ImageBucket, front: S3Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    file = tmp_path / "file"
    file.write_bytes(b"x")
    front.before = lambda _: ConnectionError()
    for use in (lambda: bucket.upload(file, "name", "text/plain"), lambda: bucket.read("name")):
        with pytest.raises(StoreUnavailableError):
            use()


def test_why_a_bucket_takes_no_image_is_said_in_short(
    open_bucket: Callable[..., ImageBucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore says address, time and retries first: cut off, its error had no cause."""
    monkeypatch.setattr("imagemill.s3.connection.RETRIES", 0)
    away = open_bucket(f"s3://images/{'a' * 200}", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailableError) as caught:
        anyio.run(away.put_image, "images/ab/abcd.png", b"x", {})
    why = "HTTP error: error sending request: Connection refused"
    assert str(caught.value) == f"The bucket 'images' did not take an image ({why})."


def test_a_bucket_that_goes_away_while_a_file_is_read_is_no_damaged_file(
    bucket: ImageBucket, front: S3Front
) -> None:
    content = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"]}), content)
    write(bucket, content.getvalue(), None)
    front.before = lambda asked: Answer(403, "AccessDenied") if "range" in asked.headers else None
    with bucket.open("manifest.parquet") as file, pytest.raises(StoreUnavailableError, match="not answer"):
        pq.ParquetFile(file, pre_buffer=False)


def test_a_copy_of_what_is_gone_is_no_disk_error(bucket: ImageBucket) -> None:
    with pytest.raises(StoreUnavailableError, match="is gone"):
        bucket.copy("images/ab/abcd.png", "catalog/a.png")
