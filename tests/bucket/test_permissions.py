"""The policy in docs/operations.md, against a server that enforces it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.bucket.output_lease import output_lease
from imagemill.bucket.probe import probe, probe_copies
from imagemill.errors import InputError, StoreUnavailableError
from tests.installation import ROOT

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


@pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject"])
def test_no_right_in_it_can_be_spared(bucket: Callable[..., ImageBucket], action: str) -> None:
    objects, listing = POLICY["Statement"]
    fewer = {**objects, "Action": [each for each in objects["Action"] if each != action]}
    with pytest.raises(InputError, match="check the rights"):
        probe(bucket(fewer, listing))
