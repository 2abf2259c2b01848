"""The server: console, run-time settings, stopping, several at once."""

from __future__ import annotations

import gc
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from imagemill.emulator import Emulator, Settings, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

Ask = Callable[..., httpx.Response]
Until = Callable[[Callable[[], bool]], None]

MODEL = "black-forest-labs/FLUX.1-schnell"


def test_configuration_over_the_wire(client: httpx.Client, together: Ask, emulator: Emulator) -> None:
    answer = client.post("/__config", json={"faults": {"500": 1}, "api_keys": ["k"]})
    assert answer.status_code == 200
    assert answer.json()["faults"] == {"500": 1}
    assert answer.json() == client.get("/__config").json() == emulator.settings.as_dict()
    assert together().status_code == 500


@pytest.mark.parametrize(
    "changes",
    [
        {"fault": {}},
        {"faults": {"typo": 1}},
        {"faults": {"500": 2}},
        {"faults": {"500": 0.6, "502": 0.6}},
        {"faults": [1]},
        {"max_concurrent": 0},
        {"max_concurrent": 1.5},
        {"per_minute": 0},
        {"burst": True},
        {"latency_s": -1},
        {"latency_s": "1"},
        {"pictures": "none"},
        {"pictures": []},
        {"api_keys": "k"},
        {"api_keys": [" "]},
        {"credit_images": -1},
        {"retry_after": 1},
    ],
)
def test_settings_that_cannot_be_used(
    client: httpx.Client, emulator: Emulator, changes: dict[str, Any]
) -> None:
    before = emulator.settings
    answer = client.post("/__config", json=changes)
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(".")
    assert emulator.settings == before
    with pytest.raises(SettingsError):
        emulator.configure(**changes)


def test_bodies_that_are_no_settings(client: httpx.Client) -> None:
    assert client.post("/__config", content=b"[]").status_code == 400
    assert client.post("/__config", content=b" " * 1_000_001).status_code == 413
    assert client.get("/__requests?last=x").status_code == 400


def test_requests_are_kept_with_the_key_masked(together: Ask, fal: Ask, client: httpx.Client) -> None:
    together("A fox", key="secret")
    fal("A hare", key="secret")
    client.post("/v1/images/generations", content=b"{broken")
    kept = client.get("/__requests?last=5").json()
    assert [entry["path"] for entry in kept] == [
        "/v1/images/generations",
        "/fal-ai/flux/schnell",
        "/v1/images/generations",
    ]
    assert kept[0]["headers"]["authorization"] == "Bearer ***"
    assert kept[0]["body"]["prompt"] == "A fox"
    assert kept[1]["headers"]["authorization"] == "Key ***"
    assert kept[2]["body"] == "{broken"
    assert "secret" not in str(kept)
    assert len(client.get("/__requests?last=1").json()) == 1


def test_statistics_and_reset(together: Ask, client: httpx.Client, emulator: Emulator) -> None:
    before = time.time()
    together()
    stats = client.get("/__stats").json()
    assert stats == emulator.stats()
    assert stats["generation_requests"] == 1
    assert before <= stats["first_request_at"] <= stats["last_answer_at"] <= time.time()
    assert client.post("/__reset").status_code == 200
    nothing = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
    assert emulator.bill() == {"images": 0, "usd": 0, "by_key": {}, "chat": nothing}
    assert emulator.stats()["requests"] == {}
    assert emulator.stats()["first_request_at"] is None


def test_several_run_at_once_and_stay_readable_after_the_end() -> None:
    body = {"model": MODEL, "prompt": "A fox", "width": 64, "height": 64}
    headers = {"Authorization": "Bearer k"}
    with Emulator(Settings(latency_s=0)) as one, Emulator(Settings(latency_s=0)) as other:
        assert one.port != other.port
        with httpx.Client(trust_env=False) as client:
            client.post(f"{one.base_url}/v1/images/generations", json=body, headers=headers)
    assert (one.bill()["images"], other.bill()["images"]) == (1, 0)
    one.stop()
    with pytest.raises(RuntimeError):
        Emulator().bill()
    with one:
        assert one.bill()["images"] == 0


def test_a_port_in_use(emulator: Emulator) -> None:
    with pytest.raises(OSError, match="in use"):
        Emulator(port=emulator.port).start()
    with pytest.raises(RuntimeError):
        emulator.start()


@pytest.mark.filterwarnings("error")
def test_stopping_with_requests_in_flight_is_quick_and_clean(
    until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    emulator = Emulator(Settings(latency_s=60, latency_sigma=0)).start()
    body = {"model": MODEL, "width": 1024, "height": 1024}
    ended = []

    def ask(path: str, number: int, prompt: str) -> None:
        scheme = "Bearer" if path.startswith("/v1") else "Key"
        try:
            httpx.post(
                f"{emulator.base_url}{path}",
                json={**body, "prompt": f"{number} {prompt}"},
                headers={"Authorization": f"{scheme} k"},
                timeout=30,
                trust_env=False,
            )
        except httpx.TransportError as error:
            ended.append(error)

    asked = [
        ("/v1/images/generations", "A fox"),
        ("/v1/images/generations", "#fault:hang"),
        ("/sync/fal-ai/flux/schnell", "A fox"),
        ("/fal-ai/flux/schnell", "A fox"),
    ]
    threads = [
        threading.Thread(target=ask, args=(path, number, prompt))
        for number in range(5)
        for path, prompt in asked
    ]
    for thread in threads:
        thread.start()
    until(lambda: emulator.stats()["in_flight"] == 20)
    begun = time.monotonic()
    emulator.stop()
    assert time.monotonic() - begun < 1
    for thread in threads:
        thread.join()
    assert len(ended) == 15
    assert emulator.bill()["images"] == 0
    gc.collect()
    noise = [record.getMessage() for record in caplog.records if record.levelname != "INFO"]
    assert not [text for text in noise if "was destroyed" in text or "xception" in text]
    assert not [text for text in noise if "exceeded" in text or "without" in text]


def test_https_with_a_certificate(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of this test.")
    command = [*command.split(), *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    trust = ssl.create_default_context(cafile=str(certificate))
    settings = Settings(latency_s=0)
    with (
        Emulator(settings, certfile=certificate, keyfile=key) as emulator,
        httpx.Client(base_url=emulator.base_url, verify=trust, trust_env=False) as client,
    ):
        submit = client.post(
            "/fal-ai/flux/schnell",
            json={"prompt": "A fox", "image_size": "square"},
            headers={"Authorization": "Key k"},
        )
        assert submit.json()["status_url"].startswith("https://127.0.0.1:")
        with pytest.raises(httpx.TransportError):
            client.post(
                "/fal-ai/flux/schnell",
                json={"prompt": "A fox #fault:reset"},
                headers={"Authorization": "Key k"},
            )
