"""One emulator a module, and clients of its vendors over real sockets."""

from __future__ import annotations

import base64
import io
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from imagemill.emulator import Emulator, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOGETHER = "/v1/images/generations"
FAL = "/fal-ai/flux/schnell"
MODEL = "black-forest-labs/FLUX.1-schnell"
USUAL = Settings(latency_s=0, pictures="full")


@pytest.fixture(scope="module")
def running() -> Iterator[Emulator]:
    with Emulator(USUAL) as emulator:
        yield emulator


@pytest.fixture
def emulator(running: Emulator) -> Emulator:
    """The module's emulator with usual settings and a clear bill."""
    running.configure(**USUAL.as_dict())
    running.reset()
    return running


@pytest.fixture
def client(emulator: Emulator) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=emulator.base_url, trust_env=False, timeout=10) as client:
        yield client


@pytest.fixture
def together(client: httpx.Client) -> Callable[..., httpx.Response]:
    """Ask Together for a small picture; fields may be changed, None leaves one out."""

    def ask(prompt: object = "A lighthouse", *, key: str = "k", **fields: Any) -> httpx.Response:
        body = {
            "model": MODEL,
            "prompt": prompt,
            "width": 128,
            "height": 64,
            "seed": 7,
            "response_format": "base64",
            **fields,
        }
        body = {name: value for name, value in body.items() if value is not None}
        return client.post(TOGETHER, json=body, headers={"Authorization": f"Bearer {key}".strip()})

    return ask


@pytest.fixture
def fal(client: httpx.Client) -> Callable[..., httpx.Response]:
    """Submit a small picture to fal."""

    def ask(
        prompt: object = "A lighthouse", *, path: str = FAL, key: str = "k", **fields: Any
    ) -> httpx.Response:
        body = {"prompt": prompt, "image_size": {"width": 128, "height": 64}, "seed": 7, **fields}
        body = {name: value for name, value in body.items() if value is not None}
        return client.post(path, json=body, headers={"Authorization": f"Key {key}"})

    return ask


@pytest.fixture
def follow(client: httpx.Client) -> Callable[[httpx.Response], httpx.Response]:
    """Poll a submit of fal's queue to its end and return the answer of response_url."""

    def poll(submit: httpx.Response) -> httpx.Response:
        assert submit.status_code == 200, submit.text
        links = submit.json()
        headers = {"Authorization": "Key k"}
        deadline = time.monotonic() + 10
        while client.get(links["status_url"], headers=headers).status_code == 202:
            assert time.monotonic() < deadline, "The request was not completed in time."
        return client.get(links["response_url"], headers=headers)

    return poll


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds, for ten seconds at most."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < deadline, "The condition did not come to hold."
            time.sleep(0.002)

    return wait


@pytest.fixture
def decode() -> Callable[[str | bytes], Image.Image]:
    """Decode base64, a data URI or bytes to a loaded picture."""

    def load(data: str | bytes) -> Image.Image:
        if isinstance(data, str):
            data = base64.b64decode(data.rpartition(",")[2])
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.copy() if image.format is None else image

    return load
