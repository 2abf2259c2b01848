"""The vendors' own clients, pointed at the emulator by their own settings, and our requests beside theirs.

A difference that is on purpose is listed with its reason; every other one fails the test.
"""

from __future__ import annotations

import base64
import io
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import replicate
import together
import trustme
from PIL import Image

from imagemill.blocks.apis import Fal, ImageApi, OpenAICompatible, Replicate
from imagemill.emulator import Emulator, Settings
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import VARIANTS, Outcome, make_job

Work = Callable[[ImageApi, Job], Outcome]

PROMPT = "A lighthouse at dusk"

WITHOUT_MEANING = {
    "accept",
    "accept-encoding",  # ours asks for identity: images do not shrink, and unpacking is not free
    "connection",
    "content-length",
    "host",
    "user-agent",
    "x-fal-request-timeout",  # how long fal's client is willing to wait; we end the request ourselves
}


def received(emulator: Emulator) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The last request as the emulator got it: path, headers with a meaning, body."""
    request = emulator.requests(1)[0]
    headers = {
        name: value
        for name, value in request["headers"].items()
        if name not in WITHOUT_MEANING and not name.startswith("x-stainless-")
    }
    return request["path"], headers, request["body"]


def ours(emulator: Emulator, work: Work, api: ImageApi) -> tuple[str, dict[str, str], dict[str, Any]]:
    """The request that our own module sends for the same picture."""
    assert work(api, make_job(api, PROMPT)).job.status is JobStatus.DONE
    return received(emulator)


def is_picture(content: bytes, size: tuple[int, int] = (512, 512)) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        return image.size == size and image.format == "PNG"


def test_together(emulator: Emulator, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_BASE_URL", emulator.base_url)
    with together.Together(api_key="k") as client:
        answer = client.images.generate(
            model="black-forest-labs/FLUX.1-schnell",
            prompt=PROMPT,
            width=512,
            height=512,
            steps=4,
            seed=7,
            n=1,
            response_format="base64",
            output_format="png",
        )
    assert is_picture(base64.b64decode(answer.data[0].b64_json))  # type: ignore[union-attr,arg-type]
    theirs = received(emulator)
    assert ours(emulator, work, VARIANTS["together"](emulator.base_url)) == theirs


@pytest.mark.parametrize("end", ["", "/v1", "/v1/"])
def test_openai(emulator: Emulator, work: Work, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{emulator.base_url}/v1")
    api = OpenAICompatible(
        api_key="k",
        base_url=emulator.base_url + end,
        extra_fields={"seed": "{seed}", "num_inference_steps": "{steps}"},
    )
    with openai.OpenAI(api_key="k") as client:
        answer = client.images.generate(
            model=api.model,
            prompt=PROMPT,
            n=1,
            size="512x512",
            response_format="b64_json",
            extra_body={"seed": 7, "num_inference_steps": 4},
        )
    assert answer.data
    assert is_picture(base64.b64decode(answer.data[0].b64_json or ""))
    theirs = received(emulator)
    assert ours(emulator, work, api) == theirs


def test_openais_own_models(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{emulator.base_url}/v1")
    with openai.OpenAI(api_key="k", max_retries=0) as client:
        answer = client.images.generate(
            model="gpt-image-2", prompt=PROMPT, size="1024x1024", quality="low", background="opaque"
        )
        assert answer.data
        assert is_picture(base64.b64decode(answer.data[0].b64_json or ""), (1024, 1024))
        assert answer.usage
        assert answer.usage.output_tokens == 196
        assert (answer.quality, answer.size, answer.background) == ("low", "1024x1024", "opaque")
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(model="gpt-image-2", prompt=PROMPT, response_format="b64_json")
        assert refused.value.code == "unknown_parameter"
        with pytest.raises(openai.NotFoundError):
            client.images.generate(model="dall-e-3", prompt=PROMPT)


def test_together_says_which_limit_it_was(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_BASE_URL", emulator.base_url)
    emulator.configure(dynamic_per_minute=120, capacity_per_s=1)
    fields: dict[str, Any] = {"model": "black-forest-labs/FLUX.1-schnell", "prompt": PROMPT}
    fields |= {"width": 512, "height": 512}
    with together.Together(api_key="k", max_retries=0) as client:
        client.images.generate(**fields)
        with pytest.raises(together.InternalServerError) as burst:
            client.images.generate(**fields)
        with pytest.raises(together.RateLimitError) as above:
            client.images.generate(**fields)
    assert burst.value.status_code == 503
    assert above.value.response.json()["error_type"] == "dynamic_request_limited"


@pytest.mark.parametrize("wait_s", [0, 30])
def test_replicate(emulator: Emulator, work: Work, monkeypatch: pytest.MonkeyPatch, wait_s: int) -> None:
    monkeypatch.setenv("REPLICATE_BASE_URL", emulator.base_url)
    client = replicate.Client(api_token="k")
    client.poll_interval = 0.01
    fields = {
        "prompt": PROMPT,
        "aspect_ratio": "1:1",
        "megapixels": "0.25",
        "num_outputs": 1,
        "num_inference_steps": 4,
        "seed": 7,
        "output_format": "png",
        "go_fast": False,
    }
    try:
        (link,) = client.run("black-forest-labs/flux-schnell", input=fields, wait=wait_s or False)
        listed = client.predictions.list().results[0]
    finally:
        client._client.close()  # it has no way of its own
    assert is_picture(httpx.get(str(link), trust_env=False).content)
    assert (listed.status, listed.input) == ("succeeded", fields)
    theirs = received(emulator)
    api = Replicate(api_key="k", base_url=emulator.base_url, wait_s=wait_s)
    assert ours(emulator, work, api) == theirs


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Emulator, Path]]:
    """An emulator over https, and the certificate of who vouches for it."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    server.private_key_pem.write_to_path(folder / "key.pem")
    for blob in server.cert_chain_pems:
        blob.write_to_path(folder / "server.pem", append=True)
    settings = Settings(latency_s=0)
    with Emulator(settings, certfile=folder / "server.pem", keyfile=folder / "key.pem") as emulator:
        yield emulator, folder / "authority.pem"


FAL_QUEUE_SCRIPT = """
import json, fal_client
client = fal_client.SyncClient(key="k")
fields = {"prompt": "A fox", "image_size": "square"}
first, second = (client.submit("fal-ai/flux/schnell", arguments=fields) for _ in range(2))
seen = []
for event in second.iter_events(interval=0.01):
    name = type(event).__name__
    if name not in seen:
        seen.append(name)
spare = client.submit("fal-ai/flux/schnell", arguments={"prompt": "A fox", "num_images": 9})
list(spare.iter_events(interval=0.01))
try:
    spare.get()
except fal_client.client.FalClientHTTPError as error:
    seen.append(error.status_code)
waiting = [client.submit("fal-ai/flux/schnell", arguments=fields) for _ in range(2)][1]
position = waiting.status().position
waiting.cancel()
print(json.dumps([seen, position, type(waiting.status()).__name__, waiting.status().error_type]))
"""


def test_fals_queue_as_its_client_sees_it(certified: tuple[Emulator, Path]) -> None:
    secure, authority = certified
    secure.configure(max_concurrent=1, latency_s=0.3, latency_sigma=0)
    secure.reset()
    answer = subprocess.run(
        [sys.executable, "-c", FAL_QUEUE_SCRIPT],
        env={
            **os.environ,
            "FAL_QUEUE_RUN_HOST": f"127.0.0.1:{secure.port}",
            "SSL_CERT_FILE": str(authority),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    secure.configure(max_concurrent=None, latency_s=0)
    assert answer.returncode == 0, answer.stderr
    seen, position, state, error_type = json.loads(answer.stdout)
    assert seen == ["Queued", "InProgress", "Completed", 422]
    assert (position, state, error_type) == (0, "Completed", "client_cancelled")
    assert secure.stats()["rate_limited"] == 0


FAL_SCRIPT = """
import json, sys, fal_client
method, fields = sys.argv[1], json.loads(sys.argv[2])
client = fal_client.SyncClient(key="k")
call = client.subscribe if method == "subscribe" else client.run
print(json.dumps(call("fal-ai/flux/schnell", arguments=fields)))
"""


@pytest.mark.parametrize("method", ["subscribe", "run"])
def test_fal(certified: tuple[Emulator, Path], emulator: Emulator, work: Work, method: str) -> None:
    secure, authority = certified
    host = f"127.0.0.1:{secure.port}"
    fields = {
        "prompt": PROMPT,
        "image_size": {"width": 512, "height": 512},
        "num_inference_steps": 4,
        "seed": 7,
        "num_images": 1,
        "enable_safety_checker": True,
        "output_format": "png",
    }
    if method == "run":
        fields["sync_mode"] = True
    # Its hosts are read when it is imported, so it gets a process of its own.
    answer = subprocess.run(
        [sys.executable, "-c", FAL_SCRIPT, method, json.dumps(fields)],
        env={
            **os.environ,
            "FAL_RUN_HOST": f"{host}/sync",
            "FAL_QUEUE_RUN_HOST": host,
            "SSL_CERT_FILE": str(authority),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    link = json.loads(answer.stdout)["images"][0]["url"]
    if link.startswith("data:"):
        content = base64.b64decode(link.partition(",")[2])
    else:
        content = httpx.get(
            link, verify=ssl.create_default_context(cafile=str(authority)), trust_env=False
        ).content
    assert is_picture(content)
    theirs = received(secure)
    # Ours without https: what is compared is the request within.
    api = (
        VARIANTS["fal"](emulator.base_url)
        if method == "subscribe"
        else Fal(api_key="k", base_url=f"{emulator.base_url}/sync", queued=False)
    )
    assert ours(emulator, work, api) == theirs


def test_black_forest_labs_have_no_client_so_the_documented_request_stands_for_it(
    emulator: Emulator, work: Work
) -> None:
    assert ours(emulator, work, VARIANTS["bfl"](emulator.base_url)) == (
        "/v1/flux-dev",
        {"x-key": "***", "content-type": "application/json"},
        {
            "prompt": PROMPT,
            "width": 512,
            "height": 512,
            "seed": 7,
            "prompt_upsampling": False,
            "output_format": "png",
        },
    )
