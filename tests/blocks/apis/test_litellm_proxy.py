"""LiteLLM's proxy, a server that we did not write, between our own client and the emulator.

It is installed once, into an environment of its own in a cache folder (750 MB, a minute or two), and skipped
with a word where it cannot be. ``IMAGEMILL_TEST_CACHE`` moves the folder.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from imagemill.blocks.apis import ImageApi, OpenAICompatible
from imagemill.emulator import Emulator
from imagemill.engine.engine import StopKind
from imagemill.errors import ErrorClass
from imagemill.jobs import Job, JobStatus
from tests.blocks.apis.variants import Outcome, make_job
from tests.prefect_database import CACHE

Work = Callable[[ImageApi, Job], Outcome]

pytestmark = pytest.mark.slow

VERSION = "1.108.7"
KEY = "sk-5f0c1d7e9b3a48c2a6d4e8f0b1c3d5e7"
INSTALL_S = 600
START_S = 180

CONFIG = """\
model_list:
  - model_name: flux
    litellm_params: &upstream
      model: openai/black-forest-labs/FLUX.1-schnell
      api_base: {base_url}/v1
      api_key: k
    model_info: &picture
      mode: image_generation
      output_cost_per_image: 0.004
  - model_name: flux-lenient
    litellm_params: {{<<: *upstream, drop_params: true}}
    model_info: *picture
  - model_name: flux-on-a-budget
    litellm_params: {{<<: *upstream, max_budget: 0.000001, budget_duration: 1d}}
    model_info: *picture
  - model_name: gpt
    litellm_params:
      model: openai/gpt-image-2
      api_base: {base_url}/v1
      api_key: k
    model_info:
      mode: image_generation
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
  num_retries: 0
router_settings:
  num_retries: 0
"""


def installed() -> Path:
    """The interpreter of LiteLLM's own environment, which is made where there is none yet."""
    folder = CACHE / f"litellm-{VERSION}"
    python, done = folder / "bin" / "python", folder / "installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return python
        shutil.rmtree(folder, ignore_errors=True)
        commands = [
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "-q", f"litellm[proxy]=={VERSION}"],
        ]
        try:
            for command in commands:
                subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            pytest.skip(f"LiteLLM's proxy cannot be installed here: {error}")
        done.touch()
    return python


@pytest.fixture(scope="module")
def proxy(running: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LiteLLM's proxy before the module's emulator; its address."""
    python = installed()
    folder = tmp_path_factory.mktemp("litellm")
    (folder / "config.yaml").write_text(CONFIG.format(base_url=running.base_url, key=KEY))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = "from litellm.proxy.proxy_cli import run_server; run_server()"
    options = ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "HOME": str(folder),
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # its price list is in the package: nothing is fetched
        "NO_PROXY": "*",
    }
    with (folder / "proxy.log").open("wb") as log:
        process = subprocess.Popen(
            [python, "-c", program, *options], cwd=folder, env=environment, stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_S
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                words = (folder / "proxy.log").read_text(errors="replace")[-2000:]
                pytest.skip(f"LiteLLM's proxy does not start here: {words}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/liveliness", trust_env=False, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def api_of(proxy: str, model: str, key: str = KEY, **fields: Any) -> OpenAICompatible:
    """Our client at the proxy. The clock of ``work`` is fifty times as fast as the proxy's."""
    return OpenAICompatible(api_key=key, base_url=proxy, model=model, request_timeout_s=3000, **fields)


def test_it_refuses_what_it_does_not_know(proxy: str, emulator: Emulator) -> None:
    """What the proxy itself says, and that no picture was asked for upstream."""
    body = {"model": "flux", "prompt": "A fox", "size": "512x512", "response_format": "b64_json"}
    answer = httpx.post(
        f"{proxy}/v1/images/generations",
        json=body,
        headers={"Authorization": f"Bearer {KEY}"},
        trust_env=False,
        timeout=60,
    )
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert "`response_format` is not supported" in error["message"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "400")
    assert emulator.stats()["generation_requests"] == 0


@pytest.mark.parametrize("model", ["flux", "flux-lenient", "gpt"])
def test_a_picture(proxy: str, emulator: Emulator, work: Work, model: str) -> None:
    api = api_of(proxy, model, image_hosts=["127.0.0.1"])
    job = work(api, make_job(api, width=1024, height=1024)).job
    assert job.status is JobStatus.DONE, job.error_message
    assert emulator.bill()["images"] == 1


def test_its_cost_is_what_is_booked(proxy: str, work: Work) -> None:
    api = api_of(proxy, "flux", image_hosts=["127.0.0.1"], usd_per_image=1.0)
    job = work(api, make_job(api)).job
    assert job.status is JobStatus.DONE, job.error_message
    assert job.cost_usd == pytest.approx(0.004)


def test_a_key_that_it_does_not_know_stops_the_run(proxy: str, work: Work) -> None:
    api = api_of(proxy, "flux", key="sk-wrong")
    outcome = work(api, make_job(api))
    assert outcome.job.status is JobStatus.PENDING, outcome.job.error_message
    assert outcome.stopped is not None
    assert outcome.stopped.kind is StopKind.UNAUTHORIZED


def test_a_budget_of_its_own_stops_the_run(proxy: str, work: Work) -> None:
    api = api_of(proxy, "flux-on-a-budget", image_hosts=["127.0.0.1"])
    first = work(api, make_job(api)).job
    assert first.status is JobStatus.DONE, first.error_message
    outcome = work(api, make_job(api, "A second fox"))
    assert outcome.job.status is JobStatus.PENDING, outcome.job.error_message
    assert outcome.stopped is not None
    assert outcome.stopped.kind is StopKind.OUT_OF_BUDGET


@pytest.mark.parametrize(
    ("fault", "error_class", "attempts"),
    [
        ("429", ErrorClass.RATE_LIMITED, 4),
        ("500", ErrorClass.SERVER_ERROR, 2),
        pytest.param(
            "flagged",
            ErrorClass.CONTENT_FILTERED,
            1,
        ),
    ],
)
def test_errors_of_what_is_behind_it(
    proxy: str, work_all: Callable[..., list[Outcome]], fault: str, error_class: ErrorClass, attempts: int
) -> None:
    # Upstream there are more of them: the proxy's own client tries each request three times.
    # Refusals take real time: by the fast clock they last for minutes, and such an account counts as down.
    api = api_of(proxy, "flux-lenient")
    job = work_all(api, [make_job(api, f"A fox #fault:{fault}")], fast=fault != "429")[0].job
    assert job.error_class == error_class, job.error_message
    assert job.attempts == attempts
