"""One place decides how a bucket is reached, and both clients go the same way."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import boto3
import pytest
import trustme
from botocore.credentials import RefreshableCredentials

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.probe import probe
from imagemill.catalog.places import find_places
from imagemill.errors import InputError
from imagemill.s3 import connection
from imagemill.settings import OutputSettings
from tests.bucket.s3_front import Answer, Asked, S3Front

Open = Callable[..., ImageBucket]

PICTURE = "images/ab/abcd.png"


def use(bucket: ImageBucket, client: Any) -> None:
    """All that a run does: checked, an image put, a record replaced and read, all of it there."""
    bucket.check()
    probe(bucket)
    anyio.run(bucket.put_image, PICTURE, b"picture", {"key": "abcd"})
    bucket.write_version("runs/a.json", b"{}", "application/json", None)
    assert bucket.read("runs/a.json") == b"{}"
    keys = {o["Key"] for o in client.list_objects_v2(Bucket=bucket.name)["Contents"]}
    assert keys == {f"{bucket.prefix}{PICTURE}", f"{bucket.prefix}runs/a.json"}
    head = client.head_object(Bucket=bucket.name, Key=bucket.prefix + PICTURE)
    assert head["ContentType"] == "image/png"
    assert head["Metadata"] == {"key": "abcd"}


def read_as_catalog(bucket: ImageBucket) -> None:
    """A catalog is reached the same way; here it is a file that the bucket has already."""
    path = f"s3://{bucket.name}/{bucket.prefix}runs/a.json"
    files, (place,) = find_places(path, endpoint_url=bucket.endpoint_url)
    with files.open_input_file(place.path) as file:
        assert file.read() == b"{}"


def test_the_probe_is_five_requests_and_leaves_nothing(
    bucket: ImageBucket, front: S3Front, client: Any
) -> None:
    probe(bucket)
    methods = [asked.method for asked in front.asked]
    assert methods == ["PUT", "PUT", "PUT", "GET", "POST"]
    assert bucket.conditional
    assert "Contents" not in client.list_objects_v2(Bucket=bucket.name)


def test_a_bucket_in_another_region_is_used_there(open_bucket: Open, front: S3Front, client: Any) -> None:
    name = "elsewhere"
    client.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    def only_there(asked: Asked) -> Answer | None:
        if "/eu-central-1/s3/" in str(asked.headers["authorization"]):
            return None
        return Answer(400, "AuthorizationHeaderMalformed", {"x-amz-bucket-region": "eu-central-1"})

    front.before = only_there
    bucket = open_bucket(f"s3://{name}/x", front.url)
    use(bucket, client)
    assert bucket.region == "eu-central-1"
    read_as_catalog(bucket)


def test_rights_to_a_prefix_are_enough(bucket: ImageBucket, front: S3Front, client: Any) -> None:
    def only_the_prefix(asked: Asked) -> Answer | None:
        inside = "shop" in asked.path or b"shop" in asked.body
        return None if inside else Answer(403, "AccessDenied")

    front.before = only_the_prefix
    use(bucket, client)
    read_as_catalog(bucket)


@pytest.mark.slow
def test_a_private_ca_in_aws_ca_bundle_is_trusted_by_both_clients(
    open_bucket: Open,
    moto_url: str,
    bucket_name: str,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    with S3Front(urlsplit(moto_url).port or 0, tls=tls) as front:
        with pytest.raises(InputError, match="AWS_CA_BUNDLE"):
            open_bucket(f"s3://{bucket_name}/x", front.url).check()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        use(bucket := open_bucket(f"s3://{bucket_name}/x", front.url), client)
        read_as_catalog(bucket)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere.pem"))
        with pytest.raises(InputError, match=r"nowhere\.pem"):
            open_bucket(f"s3://{bucket_name}/x", front.url)


def test_a_name_with_dots_and_an_endpoint_with_a_path(open_bucket: Open, moto_url: str, client: Any) -> None:
    client.create_bucket(Bucket="images.example.com")
    with S3Front(urlsplit(moto_url).port or 0, prefix="/minio/s3") as front:
        use(bucket := open_bucket("s3://images.example.com/a/b", front.url), client)
        read_as_catalog(bucket)
        assert {asked.path.split("/images.example.com")[0] for asked in front.asked} == {"/minio/s3"}


def test_a_name_with_dots_is_part_of_the_path_on_aws(open_bucket: Open) -> None:
    dotted, plain = open_bucket("s3://images.example.com/a"), open_bucket("s3://images/a")
    assert dotted.endpoint_url is plain.endpoint_url is None
    config = dotted.connection.store().config
    assert config["endpoint"] == "https://s3.us-east-1.amazonaws.com"
    assert config["virtual_hosted_style_request"] == "false"
    config = plain.connection.store().config
    assert config["endpoint"] == "https://images.s3.us-east-1.amazonaws.com"
    assert config["virtual_hosted_style_request"] == "true"


def test_the_endpoint_and_style_of_the_profile_are_for_both_clients(
    open_bucket: Open, front: S3Front, bucket_name: str, client: Any, tmp_path: Path
) -> None:
    (tmp_path / "aws-config").write_text(
        f"[default]\nendpoint_url = {front.url}\nregion = eu-west-3\ns3 =\n    addressing_style = path\n"
    )
    bucket = open_bucket(f"s3://{bucket_name}/x")
    assert bucket.endpoint_url == front.url
    use(bucket, client)
    read_as_catalog(bucket)


@pytest.mark.slow
def test_credentials_that_expire_are_renewed_for_both_clients(
    bucket_name: str, front: S3Front, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_CREDENTIALS_LAST", timedelta(0))
    fetched = 0

    def fetch() -> dict[str, str]:
        nonlocal fetched
        fetched += 1
        soon = datetime.now(UTC) + timedelta(seconds=1)  # so near that each use renews them
        return {
            "access_key": f"key-{fetched}", "secret_key": "a-secret-of-the-day", "token": f"token-{fetched}",
            "expiry_time": soon.isoformat(),
        }  # fmt: skip

    session = boto3.Session()
    credentials = RefreshableCredentials.create_from_metadata(fetch(), fetch, "test")
    session._session._credentials = credentials
    bucket = ImageBucket(f"s3://{bucket_name}/x", endpoint_url=front.url, session=session)
    use(bucket, client)
    bucket.close()
    tokens = [str(asked.headers["x-amz-security-token"]) for asked in front.asked]
    assert len(set(tokens)) > 3


@pytest.mark.parametrize(
    ("code", "status"),
    [("AccessDenied", 403), ("InvalidRequest", 400)],
)
@pytest.mark.parametrize("method", ["PUT", "GET", "POST"])
def test_what_is_refused_is_said_before_anything_is_bought(
    bucket: ImageBucket, front: S3Front, client: Any, code: str, status: int, method: str
) -> None:
    front.before = lambda asked: Answer(status, code) if asked.method == method else None
    with pytest.raises(InputError, match="'images-") as caught:
        probe(bucket)
    words = {"PUT": "does not take images", "GET": "replaced and read", "POST": "objects be deleted"}
    assert words[method] in str(caught.value)
    assert "check the rights" in str(caught.value)
    if method != "POST":
        assert "Contents" not in client.list_objects_v2(Bucket=bucket.name)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize(
    ("key", "words"), [("abc\ndefghi", "line break"), ("\u201cabcdefghi\u201d", "quotation mark")]
)
def test_an_s3_key_that_cannot_be_one_is_refused_and_not_repeated(
    bucket_name: str, open_bucket: Open, monkeypatch: pytest.MonkeyPatch, name: str, key: str, words: str
) -> None:
    monkeypatch.setenv(name, key)
    with pytest.raises(InputError, match=f"S3 credentials cannot be used.*{words}") as caught:
        open_bucket(f"s3://{bucket_name}/x")
    assert "defghi" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://images/a//b", "empty part"),
        ("s3://images/shop#A", "number sign"),
        ("s3://images/shop?x=1", "question mark"),
        ("s3://images/a/../b", "only dots"),
        ("s3://images/./b", "only dots"),
        ("s3://images/a\nb", "cannot be seen"),
        ("s3://images/a\x7fb", "cannot be seen"),
        ("http://images/a", "not of the form"),
        ("s3:///a", "not of the form"),
        ("s3://", "not of the form"),
    ],
)
def test_a_prefix_that_clients_read_in_two_ways_is_refused(open_bucket: Open, uri: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_bucket(uri)
    with pytest.raises(ValueError, match=words):
        OutputSettings(uri=uri)


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "a/b", "ä ö/日本", "a%2Fb", "100% (x)+=&~'!*", "a:b@c", "//a/"])
def test_any_other_prefix_is_one_place_for_both_clients(
    open_bucket: Open, front: S3Front, bucket_name: str, client: Any, prefix: str
) -> None:
    use(open_bucket(f"s3://{bucket_name}/{prefix}", front.url), client)
