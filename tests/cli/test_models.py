"""The command ``models``, and a run whose rows pass fields through to the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from imagemill.cli.command import main
from imagemill.emulator import Emulator
from tests.conftest import Command, Place


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["models", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagemill.cli.terminal.stdout.width", 80, raising=False)
    listed = show(capsys)
    for name in ("fal-ai/flux-2/klein/4b", "gpt-image-2", "flux-2-pro", "runware:100@1", "FLUX.1 [schnell]"):
        assert name in listed
    assert max(map(len, listed.splitlines())) <= 100


def test_one_model_is_shown_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    shown = show(capsys, "--provider", "bfl", "klein-4b")
    for text in ("flux-2-klein-4b", "multiples of 16", "0.014 USD for the first megapixel", "docs.bfl.ai"):
        assert text in shown


def test_json_has_exact_prices_and_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = json.loads(show(capsys, "fal-ai/flux-2-flex", "--json"))
    assert found["price"]["usd"] == "0.05"
    assert found["params"]["guidance_scale"]["minimum"] == 1.5
    assert (found["confirmed"], found["noted"], found["origin"]) == (True, "2026-11-25", "listed")
    listed: list[dict[str, Any]] = json.loads(show(capsys, "bfl", "--json"))
    assert len(listed) > 5
    assert {model["provider"] for model in listed} == {"bfl"}
    assert json.loads(show(capsys, "--provider", "bfl", "--json")) == listed


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["nonsense"], "No model 'nonsense' is listed. For models of fal and Replicate, add --provider"),
        (["--provider", "bfl", "nonsense"], "No model 'nonsense' is listed at bfl"),
        (["--provider", "nobody"], "There is no provider 'nobody'"),
        (["--provider", "replicate", "a/b"], "set REPLICATE_API_TOKEN to your account's key"),
    ],
)
def test_what_is_not_known_is_said(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    assert main(["models", *given]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_passes_fields_through_and_keeps_them(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    emulated = emulator()
    path = catalog(prompt=["a", "a", "b #fault:400"], cfg=[2.0, 3.5, 4.0])
    given = [
        *("--provider", "fal", "--base-url", emulated.base_url, "--output", place.uri),
        *("--s3-endpoint-url", place.s3.endpoint_url, "--width", "256", "--height", "256", "--json"),
        *("--column", "param_guidance_scale=cfg", "--param", "acceleration=high", "--usd-per-image", "0.1"),
    ]
    done = command("run", path, *given)
    assert done.code == 1, done.err
    assert (done.json["unique"], done.json["done"], done.json["cost_usd"]) == (3, 2, 0.2)
    failed = place.table(f"runs/{done.json['run_id']}/failed.parquet")
    assert [row["params"] for row in failed] == ['{"acceleration":"high","guidance_scale":4}']
    refused = command("run", path, *given, "--param", "acceleration=warp")
    assert refused.code == 2
    assert "acceleration 'warp' is not one of none, regular, high" in refused.err
