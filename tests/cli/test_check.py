"""``imagemill check`` before a first run, the checks as a run starts, and a wrong setup."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from imagemill.cli.command import main
from tests.conftest import Command, Place
from tests.http_server import Answer, Asked, serving

pytestmark = pytest.mark.usefixtures("own_home")


def picture(side: int) -> str:
    held = io.BytesIO()
    Image.effect_noise((side, side), 90).convert("RGB").save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


MODEL = "black-forest-labs/FLUX.1-schnell"
IMAGE = {"data": [{"b64_json": picture(256)}]}
REFUSED = Answer({"error": {"message": "Invalid API key provided"}}, 401)


def together(asked: Asked) -> Answer:
    """Together: its list of models, and images."""
    if asked.headers.get("authorization") != "Bearer test-key-together":
        return REFUSED
    return Answer([{"id": MODEL}] if asked.path == "/v1/models" else IMAGE)


def check(capsys: pytest.CaptureFixture[str], *given: str) -> tuple[int, dict[str, dict[str, Any]]]:
    code = main(["check", "--json", *given])
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is (code == 0)
    return code, {finding["what"]: finding for finding in document["checks"]}


def test_everything_is_tried_and_nothing_bought(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(together) as server:
        given = ("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url, "--store", "sqlite")
        code, found = check(capsys, "--base-url", server.base_url, *given)
    assert code == 0, found
    assert list(found) == ["key", "model", "bucket", "store", "prefect"]
    assert all(finding["ok"] for finding in found.values()), found
    assert server.count("POST") == 0
    assert place.objects() == {}  # what was written for the check is gone


@pytest.mark.slow
def test_one_image_for_its_price(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(together) as server:
        given = ("--image", "--width", "256", "--height", "256")
        code, found = check(capsys, "--base-url", server.base_url, *given)
    assert code == 0, found
    assert "256 x 256 png" in found["image"]["words"]
    assert "$0.000177 (list)" in found["image"]["words"]
    assert server.count("POST") == 1
    assert found["bucket"]["ok"] is None


@pytest.mark.slow
def test_each_thing_that_is_wrong_says_what_to_do(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "another-secret-key")
    with serving(together) as server:
        nowhere = ("--output", "s3://no-such-bucket/x", "--s3-endpoint-url", place.s3.endpoint_url)
        code, found = check(capsys, "--base-url", server.base_url, *nowhere, "--store", "redis://127.0.0.1:9")
    assert code == 2
    assert "TOGETHER_API_KEY" in found["key"]["words"]
    assert "another-secret-key" not in str(found)
    assert "does not exist" in found["bucket"]["words"]
    assert "127.0.0.1:9" in found["store"]["words"]
    assert {what for what, finding in found.items() if finding["ok"] is False} == {"key", "bucket", "store"}


def test_an_api_that_cannot_be_reached(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = check(capsys, "--base-url", "http://127.0.0.1:9")
    assert code == 2
    assert "--base-url" in found["key"]["words"]


def test_a_missing_key_is_the_only_thing_said_of_the_api(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    code, found = check(capsys)
    assert code == 2
    assert "set the environment variable TOGETHER_API_KEY" in found["key"]["words"]


def test_for_a_person_each_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(together) as server:
        assert main(["check", "--base-url", server.base_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["key", "ok"],
        ["model", "ok"],
        ["bucket", "?"],
        ["store", "ok"],
        ["prefect", "ok"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("provider", "path", "good"),
    [
        ("fal", "/v1/models/pricing?endpoint_id=fal-ai%2Fflux%2Fschnell", {"prices": []}),
        ("replicate", "/v1/models/black-forest-labs/flux-schnell", {"name": "flux-schnell"}),
        ("bfl", "/v1/credits", {"credits": 12.5}),
        ("openai", "/v1/models/black-forest-labs/FLUX.1-schnell", {"id": "x"}),
        ("runware", "/v1", {"errors": [{"code": "taskNotFound", "message": "no"}]}),
        ("cloudflare", "/client/v4/accounts/abc/ai/models/search?search=flux-1-schnell", {"result": []}),
    ],
)
def test_every_vendor_has_a_free_question(
    provider: str,
    path: str,
    good: object,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("FAL_KEY", "REPLICATE_API_TOKEN", "BFL_API_KEY", "OPENAI_API_KEY", "RUNWARE_API_KEY"):
        monkeypatch.setenv(name, "a-long-key")
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "a-long-key")
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "abc")
    status = 404 if provider == "runware" else 200
    with serving(lambda _: Answer(good, status)) as server:
        code, found = check(capsys, "--provider", provider, "--base-url", server.base_url)
    assert (code, found["key"]["ok"]) == (0, True), found
    assert [asked.path for asked in server.asked] == [path]
    refused = Answer({"errors": [{"code": "invalidApiKey", "message": "no"}], "detail": "no"}, 401)
    with serving(lambda _: refused) as server:
        code, found = check(capsys, "--provider", provider, "--base-url", server.base_url)
    assert (code, found["key"]["ok"]) == (2, False), found


def run_arguments(place: Place, base_url: str, *more: str) -> list[str]:
    return [
        *("--base-url", base_url, "--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url),
        *("--width", "256", "--height", "256", "--json", *more),
        *("--quality", "off"),  # the server has one picture for all prompts
    ]


@pytest.mark.slow
def test_a_key_that_is_refused_stops_a_run_before_anything_is_sent(
    place: Place, catalog: Callable[..., str], command: Callable[..., Command]
) -> None:
    path = catalog(prompt=[f"p{n}" for n in range(20)])
    with serving(together) as server:
        given = run_arguments(place, server.base_url, "--run-id", "refused")
        stopped = command("run", path, *given, TOGETHER_API_KEY="another-secret-key")
        assert stopped.code == 3, stopped.err
        assert "The API refused the key" in stopped.err
        assert (stopped.json["pending"], stopped.json["done"]) == (20, 0)
        assert server.count("POST") == 0
        done = command("run", path, *given)
    assert (done.code, done.json["done"]) == (0, 20), done.err


@pytest.mark.slow
def test_a_wrong_setup_stops_the_run_and_a_right_one_resumes_it(
    place: Place, catalog: Callable[..., str], command: Callable[..., Command]
) -> None:
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    wrong_size = {"data": [{"b64_json": picture(512)}]}

    def elsewhere(asked: Asked) -> Answer:
        return Answer([]) if asked.method == "GET" else Answer(wrong_size)

    with serving(elsewhere) as server:
        given = run_arguments(place, server.base_url, "--run-id", "wrong")
        stopped = command("run", path, *given)
        assert stopped.code == 3, stopped.err
        assert "512 x 512 pixels, not 256 x 256" in stopped.err
        assert "imagemill resume wrong" in stopped.err
        assert (stopped.json["failed"], stopped.json["pending"]) == (0, 60)
        assert server.count("POST") <= 20
    with serving(together) as server:
        done = command("resume", "wrong", "--base-url", server.base_url, "--json")
    assert (done.code, done.json["done"], done.json["failed"]) == (0, 60, 0), done.err
    assert done.json["cost_source"] == "list"
    assert {row["cost_source"] for row in place.table("runs/wrong/jobs.parquet")} == {"list"}
