"""moto's S3 server: one a session, a bucket of its own for each test."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from moto.server import ThreadedMotoServer

from imagemill.bucket.image_bucket import ImageBucket
from tests.bucket.s3_front import S3Front

_numbers = itertools.count()


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test-access-key",
        "AWS_SECRET_ACCESS_KEY": "test-secret-access-key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "aws-config"),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def client(moto_url: str) -> Iterator[Any]:
    """A boto3 client that no front door stands before."""
    made = boto3.client("s3", endpoint_url=moto_url)
    yield made
    made.close()


@pytest.fixture
def bucket_name(client: Any) -> str:
    name = f"images-{next(_numbers)}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def front(moto_url: str) -> Iterator[S3Front]:
    with S3Front(urlsplit(moto_url).port or 0) as made:
        yield made


@pytest.fixture
def open_bucket() -> Iterator[Callable[..., ImageBucket]]:
    made: list[ImageBucket] = []

    def of(uri: str, endpoint_url: str | None = None) -> ImageBucket:
        made.append(ImageBucket(uri, endpoint_url=endpoint_url))
        return made[-1]

    yield of
    for bucket in made:
        bucket.close()


@pytest.fixture
def bucket(open_bucket: Callable[..., ImageBucket], bucket_name: str, front: S3Front) -> ImageBucket:
    """A bucket behind the front door, with a prefix."""
    return open_bucket(f"s3://{bucket_name}/shop", front.url)
