"""The emulated S3 server, as boto3 and obstore use it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import anyio
import httpx
import pytest

from imagemill.bucket.image_bucket import ConflictError, ImageBucket, StoredImage
from imagemill.bucket.probe import probe, probe_copies
from imagemill.errors import InputError


@pytest.fixture
def url() -> Iterator[str]:
    command = [sys.executable, "-m", "imagemill.emulator.s3", "--port", "0", "--bucket", "b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def test_it_does_what_a_run_needs_of_a_bucket(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any-secret")
    bucket = ImageBucket("s3://b/a & b", endpoint_url=url)
    bucket.check()
    probe(bucket)
    probe_copies(bucket)
    assert bucket.conditional

    anyio.run(bucket.put_image, "images/ab/é.png", b"picture", {"key": "ab"})
    assert bucket.objects("images") == [StoredImage("images/ab/é.png", 7)]
    assert bucket.metadata(["images/ab/é.png", "images/none"]) == {"images/ab/é.png": {"key": "ab"}}
    with bucket.open("images/ab/é.png") as file:
        assert file is not None
        file.seek(2)
        assert file.read(3) == b"ctu"
    answer = httpx.get(bucket.link("images/ab/é.png", 60))
    assert (answer.content, answer.headers["content-type"]) == (b"picture", "image/png")

    etag = bucket.write_version("x", b"1", "text/plain", None)
    for wrong in (None, '"other"'):
        with pytest.raises(ConflictError):
            bucket.write_version("x", b"2", "text/plain", wrong)
    bucket.write_version("x", b"2", "text/plain", etag)
    assert bucket.read("x") == b"2"
    bucket.delete(["x", "images/ab/é.png"])
    assert bucket.read("x") is None
    bucket.close()
    with pytest.raises(InputError, match="does not exist"):
        ImageBucket("s3://none", endpoint_url=url).check()


def test_long_listings_come_in_pages(url: str) -> None:
    for key in "abc":
        httpx.put(f"{url}/b/{key}", content=key).raise_for_status()
    keys, token = list[str](), ""
    for _ in range(2):
        asked = {"list-type": "2", "max-keys": "2", "continuation-token": token}
        text = httpx.get(f"{url}/b", params=asked).text
        keys += re.findall("<Key>(.*?)</Key>", text)
        token = "".join(re.findall("<NextContinuationToken>(.*?)<", text))
    assert (keys, token) == (["a", "b", "c"], "")
