"""The work that every contender is given, and the pieces of it that each would write alike.

A contender is a script of its own, started from the source folder as ``python -m benchmarks.contenders.NAME``
with the work in its environment. It may run in an environment that holds nothing of this project, so
this module needs only httpx, boto3 and pyarrow.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import httpx
import pyarrow.parquet as pq
from botocore.config import Config

AT_ONCE = int(os.environ.get("AT_ONCE", "25"))
"""Requests at once, for those that have to be told."""

API_URL = os.environ.get("API_URL", "")
S3_URL = os.environ.get("S3_URL", "")
BUCKET = os.environ.get("BUCKET", "")
PREFIX = os.environ.get("PREFIX", "")
CATALOG = os.environ.get("CATALOG", "")
HOME = Path(os.environ.get("IMAGEMILL_HOME", "."))
"""A folder of the contender's own, which outlives a kill."""

HEADERS = {"authorization": "Bearer benchmark"}
TIMEOUT_S = 60.0
RETRIES = {429: 3, 500: 1, 502: 1, 503: 1, 504: 1}
"""How often a status is tried again."""


def rows() -> list[dict[str, Any]]:
    """The catalog: id, prompt and seed a row."""
    found: list[dict[str, Any]] = pq.read_table(CATALOG).to_pylist()
    return found


def order(prompt: str, seed: int) -> dict[str, Any]:
    """What is asked for, in the vendor's own words."""
    return {
        "model": "black-forest-labs/FLUX.1-schnell",
        "prompt": prompt,
        "width": 1024,
        "height": 1024,
        "steps": 4,
        "seed": seed,
        "n": 1,
        "response_format": "base64",
        "output_format": "jpeg",
    }


def endpoint() -> str:
    """Where it is asked for."""
    return f"{API_URL}/v1/images/generations"


def image_of(answer: httpx.Response) -> bytes:
    """The image in an answer.

    Raises:
        httpx.HTTPStatusError: There is none.
    """
    answer.raise_for_status()
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def http_client() -> httpx.AsyncClient:
    """A client that keeps its connections."""
    limits = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
    return httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S, headers=HEADERS)


async def generate(http: httpx.AsyncClient, prompt: str, seed: int) -> bytes:
    """One image, with the retries that one writes by hand: a 429 three times, backing off; others once."""
    attempt = 0
    while True:
        try:
            return image_of(await http.post(endpoint(), json=order(prompt, seed)))
        except httpx.HTTPStatusError as error:
            if attempt >= RETRIES.get(error.response.status_code, 0):
                raise
        except httpx.TransportError:
            if attempt >= 3:
                raise
        attempt += 1
        await asyncio.sleep(2**attempt * random.uniform(0.5, 1.0))


class Uploads:
    """Puts images into the bucket: by boto3 in a thread per request, or by obstore where PUT_WITH says so."""

    def __init__(self) -> None:
        if os.environ.get("PUT_WITH") == "obstore":
            from obstore.store import S3Store  # noqa: PLC0415 - an environment without it only has boto3

            options = {"allow_http": True}
            self._store = S3Store(
                BUCKET, endpoint=S3_URL, client_options=options, virtual_hosted_style_request=False
            )
            self._s3 = None
        else:
            self._s3 = s3_client()
            self._threads = ThreadPoolExecutor(AT_ONCE)

    async def put(self, name: str, content: bytes) -> None:
        """One image."""
        if self._s3 is None:
            attributes = {"Content-Type": "image/jpeg"}
            await self._store.put_async(name, content, attributes=attributes, use_multipart=False)
        else:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, put, self._s3, name, content)


def s3_client() -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
    """A client that all threads share, with a connection each."""
    return boto3.client(
        "s3",
        endpoint_url=S3_URL,
        config=Config(max_pool_connections=AT_ONCE, s3={"addressing_style": "path"}),
    )


def put(s3: Any, name: str, content: bytes) -> None:  # noqa: ANN401
    """One image into the bucket, by boto3."""
    s3.put_object(Bucket=BUCKET, Key=name, Body=content, ContentType="image/jpeg")


def name_of(row_id: str) -> str:
    """The name of a row's object."""
    return f"{PREFIX}/{row_id}.jpg"
