"""The canary sees nothing where a vendor answers as the emulator does, and says what is gone where not."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from imagemill.emulator import Emulator
from tests.http_server import Answer, serving


@pytest.fixture(scope="module")
def canary() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "canary.py"
    spec = importlib.util.spec_from_file_location("canary", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fly(
    canary: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, vendor: str, base_url: str
) -> tuple[int, dict[str, object], str]:
    given = ["canary", "--folder", str(folder), "--vendor", vendor, "--base-url", base_url]
    monkeypatch.setattr(sys, "argv", given)
    code = canary.main()
    record = (folder / f"{vendor}.json").read_text()
    return code, json.loads(record), record


@pytest.mark.parametrize("vendor", ["together", "fal"])
def test_the_emulator_against_itself(
    vendor: str,
    canary: ModuleType,
    emulator: Callable[..., Emulator],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    code, record, text = fly(canary, monkeypatch, tmp_path, vendor, emulator(latency_s=0.2).base_url)
    assert (code, record["broken"], record["more"]) == (0, [], [])
    assert "test-key" not in text
    assert "127.0.0.1" not in text


def test_what_is_gone_is_named(canary: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = io.BytesIO()
    Image.effect_noise((512, 512), 90).convert("RGB").save(held, "PNG")
    image = {"b64_json": base64.b64encode(held.getvalue()).decode(), "seed": 1}
    with serving(lambda _: Answer({"data": [image]})) as server:
        code, record, _ = fly(canary, monkeypatch, tmp_path, "together", server.base_url)
    assert code == 1
    assert "POST /v1/images/generations: .id is gone" in str(record["broken"])
    assert "POST /v1/images/generations: .data[0].seed is new" in str(record["more"])
