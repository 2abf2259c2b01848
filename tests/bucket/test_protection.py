"""Buckets that are encrypted with a key of their own, or keep every version for a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from imagemill.bucket.image_bucket import ConflictError, ImageBucket
from imagemill.bucket.output_lease import LEASE, output_lease
from imagemill.bucket.probe import probe, probe_copies
from imagemill.media_types import PARQUET
from tests.bucket.s3_front import Answer, Asked, S3Front

KEY = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def use(bucket: ImageBucket, file: Path) -> None:
    """All that a run does with a bucket."""
    bucket.check()
    probe(bucket)
    probe_copies(bucket)
    with output_lease(bucket, "run", print) as lease:
        lease.renew()
        lease.check()
        anyio.run(bucket.put_image, "images/aa/aa.png", b"picture", {"key": "aa"})
        bucket.write("runs/run/parts/g0001-00000000.000000.jsonl", b"{}\n", "application/jsonl")
        file.write_bytes(b"first")
        etag = bucket.replace(file, "manifest.parquet", PARQUET, None)
        with pytest.raises(ConflictError):
            bucket.replace(file, "manifest.parquet", PARQUET, None)
        file.write_bytes(b"second")
        bucket.replace(file, "manifest.parquet", PARQUET, etag)
        bucket.upload(file, "runs/run/report.html", "text/html")
        bucket.copy("images/aa/aa.png", "catalog/a.png")
    assert bucket.read("manifest.parquet") == b"second"
    assert bucket.images(["aa"]).keys() == {"aa"}
    assert bucket.read(LEASE) is None


def test_a_bucket_encrypted_with_kms(
    bucket: ImageBucket, bucket_name: str, client: Any, tmp_path: Path
) -> None:
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}}
    client.put_bucket_encryption(
        Bucket=bucket_name, ServerSideEncryptionConfiguration={"Rules": [{**rule, "BucketKeyEnabled": True}]}
    )
    use(bucket, tmp_path / "manifest")
    names = [each["Key"] for each in client.list_objects_v2(Bucket=bucket_name)["Contents"]]
    assert len(names) == 5
    for name in names:
        found = client.head_object(Bucket=bucket_name, Key=name)
        assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", KEY)


def checksums_wanted(asked: Asked) -> Answer | None:
    """S3's answer to a write without a checksum, where the bucket has a default retention period.

    moto looks for another header, which only SDKs send.
    """
    if not asked.is_object_write or any(name.lower().startswith("x-amz-checksum-") for name in asked.headers):
        asked.headers["x-amz-sdk-checksum-algorithm"] = "SHA256"
        return None
    return None if "content-md5" in asked.headers else Answer(400, "InvalidRequest")


def test_a_bucket_that_keeps_every_version(
    open_bucket: Callable[..., ImageBucket], front: S3Front, client: Any, tmp_path: Path
) -> None:
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    client.put_object_lock_configuration(
        Bucket="locked",
        ObjectLockConfiguration={
            "ObjectLockEnabled": "Enabled",
            "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}},
        },
    )
    front.before = checksums_wanted
    bucket = open_bucket("s3://locked/shop", front.url)
    use(bucket, tmp_path / "manifest")
    assert bucket.try_delete(["images/aa/aa.png"]) == {}
    assert bucket.images(["aa"]) == {}  # hidden
    versions = client.list_object_versions(Bucket="locked", Prefix="shop/images/")
    (kept,) = versions["Versions"]
    assert kept["Size"] == len(b"picture")  # and still there
    with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
        client.delete_object(Bucket="locked", Key=kept["Key"], VersionId=kept["VersionId"])


def test_no_checksum_is_sent_where_boto3_is_told_to_send_none(
    bucket_name: str, front: S3Front, open_bucket: Callable[..., ImageBucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    bucket = open_bucket(f"s3://{bucket_name}/shop", front.url)
    anyio.run(bucket.put_image, "images/aa/aa.png", b"picture", {"key": "aa"})
    (put,) = front.asked
    assert not [name for name in put.headers if "checksum" in name.lower()]
