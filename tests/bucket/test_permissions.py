"""The policy in docs/operations.md, against a server that enforces it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from imagemill.blocks.loading import aws_session
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.output_lease import output_lease
from imagemill.bucket.probe import probe, probe_copies
from imagemill.catalog.places import find_places
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.s3 import connection, rotation
from imagemill.settings import OutputSettings
from tests.installation import ROOT
from tests.patience import PATIENCE_S

POLICY: dict[str, Any] = json.loads(
    re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)[0].replace(
        "YOUR-BUCKET", "your-bucket"
    )
)
# moto asks for the right to delete several objects on the bucket, AWS on each object.
OF_MOTO = {"Effect": "Allow", "Action": "s3:DeleteObject", "Resource": "arn:aws:s3:::your-bucket"}


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    httpx.post(f"{address}/moto-api/reset").raise_for_status()
    yield address  # and then every server of moto in this process
    httpx.post(f"{address}/moto-api/reset-auth", content=b"inf").raise_for_status()
    server.stop()


@pytest.fixture
def bucket(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ImageBucket]]:
    """Opens a bucket as a user with these statements of a policy."""
    keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    iam, s3 = (
        boto3.client(name, endpoint_url=url, region_name="us-east-1", **keys)  # type: ignore[call-overload]
        for name in ("iam", "s3")
    )
    s3.create_bucket(Bucket="your-bucket")
    iam.create_user(UserName="mill")
    key = iam.create_access_key(UserName="mill")["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    opened = list[ImageBucket]()

    def allowed(*statements: dict[str, Any]) -> ImageBucket:
        document = json.dumps({**POLICY, "Statement": [*statements, OF_MOTO]})
        iam.put_user_policy(UserName="mill", PolicyName="p", PolicyDocument=document)
        httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()
        opened.append(ImageBucket("s3://your-bucket/catalog", endpoint_url=url))
        return opened[-1]

    yield allowed
    for each in (*opened, iam, s3):
        each.close()


def test_the_policy_in_the_documentation_is_enough(bucket: Callable[..., ImageBucket]) -> None:
    made = bucket(*POLICY["Statement"])
    made.check()
    probe(made)
    probe_copies(made)
    with output_lease(made, "r", print):
        anyio.run(made.put_image, "images/a.png", b"x", {"key": "a"})
    assert made.metadata(["images/a.png"]) == {"images/a.png": {"key": "a"}}
    assert made.images(["a"]).keys() == {"a"}
    assert made.read("none") is made.etag("none") is None
    elsewhere = ImageBucket("s3://your-bucket/other", endpoint_url=made.endpoint_url)
    with pytest.raises(StoreUnavailableError, match="AccessDenied"):
        elsewhere.write("x", b"1", "text/plain")
    elsewhere.close()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_a_line_break_after_a_key_is_not_a_part_of_it(
    bucket: Callable[..., ImageBucket], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Secret stores add one; the id was then said to be the network's fault, the secret signed with it."""
    monkeypatch.setenv(name, f"{os.environ[name]}\n")
    made = bucket(*POLICY["Statement"])
    made.check()
    made.write("x", b"1", "text/plain")
    anyio.run(made.put_image, "images/a.png", b"x", {"key": "a"})


@pytest.mark.parametrize("listed", [False, True])
def test_a_catalog_needs_the_rights_in_the_documentation(
    bucket: Callable[..., ImageBucket], *, listed: bool
) -> None:
    made = bucket(*POLICY["Statement"][: 1 + listed])
    made.write("a.parquet", b"x", "x/y")
    files, (place,) = find_places("s3://your-bucket/catalog/a.parquet", endpoint_url=made.endpoint_url)
    with files.open_input_file(place.path) as file:
        assert file.read() == b"x"
    for path in ("s3://your-bucket/catalog/", "s3://your-bucket/catalog/*.parquet"):
        if listed:
            assert find_places(path, endpoint_url=made.endpoint_url)[1] == [place]
        else:
            with pytest.raises(InputError, match="refused these credentials"):
                find_places(path, endpoint_url=made.endpoint_url)


@pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject"])
def test_no_right_in_it_can_be_spared(bucket: Callable[..., ImageBucket], action: str) -> None:
    objects, listing = POLICY["Statement"]
    fewer = {**objects, "Action": [each for each in objects["Action"] if each != action]}
    with pytest.raises(InputError, match="check the rights"):
        probe(bucket(fewer, listing))


@pytest.mark.parametrize("source", ["file", "process"])
def test_keys_that_are_rotated_in_mid_run_are_taken_up(
    bucket: Callable[..., ImageBucket], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str
) -> None:
    """The new key is there before the old one is revoked, as AWS advises."""
    old = bucket(*POLICY["Statement"])
    monkeypatch.setattr(rotation, "READ_EVERY_S", 0.0)
    monkeypatch.setattr(connection, "_CREDENTIALS_LAST", timedelta(0))
    first = os.environ["AWS_ACCESS_KEY_ID"]
    secrets = {first: os.environ["AWS_SECRET_ACCESS_KEY"]}
    held = tmp_path / "keys"

    def hold(key: str) -> None:
        if source == "file":
            text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secrets[key]}\n"
        else:
            text = json.dumps({"Version": 1, "AccessKeyId": key, "SecretAccessKey": secrets[key]})
        held.write_text(text)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    if source == "file":
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(held))
    else:
        (tmp_path / "aws-config").write_text(f"[default]\ncredential_process = cat {held}\n")
    hold(first)
    session, _ = aws_session(OutputSettings(uri="s3://your-bucket/catalog"))
    made = ImageBucket("s3://your-bucket/catalog", endpoint_url=old.endpoint_url, session=session)
    anyio.run(made.put_image, "images/a.png", b"x", {"key": "a"})

    made_key = as_root(old, lambda iam: iam.create_access_key(UserName="mill")["AccessKey"])
    second = made_key["AccessKeyId"]
    secrets[second] = made_key["SecretAccessKey"]
    hold(second)
    credentials = session.get_credentials()
    assert credentials is not None
    until = time.monotonic() + PATIENCE_S
    while credentials.get_frozen_credentials().access_key != second:
        assert time.monotonic() < until
        time.sleep(0.01)
    as_root(old, lambda iam: iam.delete_access_key(UserName="mill", AccessKeyId=first))

    with pytest.raises(StoreUnavailableError, match="InvalidAccessKeyId"):
        old.write("x", b"1", "text/plain")
    made.write("x", b"1", "text/plain")
    anyio.run(made.put_image, "images/b.png", b"x", {"key": "b"})
    assert made.images(["a", "b"]).keys() == {"a", "b"}
    held.write_text("")  # in the middle of the next rotation
    for _ in range(3):
        made.write("x", b"2", "text/plain")
    made.close()


def as_root(bucket: ImageBucket, act: Callable[[Any], Any]) -> Any:
    """Do something with IAM while moto asks nobody for rights."""
    url = bucket.endpoint_url
    httpx.post(f"{url}/moto-api/reset-auth", content=b"inf").raise_for_status()
    keys = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
    iam = boto3.client("iam", endpoint_url=url, region_name="us-east-1", **keys)  # type: ignore[call-overload]
    done = act(iam)
    iam.close()
    httpx.post(f"{url}/moto-api/reset-auth", content=b"0").raise_for_status()
    return done
