"""A fault in the machine's environment is one sentence that names the variable, before anything starts."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from imagemill.errors import InputError
from imagemill.runs.environment import refuse_environment, refuse_prefect, refuse_proxies
from imagemill.s3.connection import S3Connection


def connect() -> None:
    S3Connection("images").client()


FAULTS: dict[str, tuple[Callable[[], object], dict[str, str], str]] = {
    "brackets": (refuse_proxies, {"NO_PROXY": "localhost,[::1]"}, r"NO_PROXY holds '\[::1\]'"),
    "range": (refuse_proxies, {"NO_PROXY": "fe80::/10"}, "NO_PROXY holds 'fe80::/10'"),
    "socks4": (
        refuse_proxies,
        {"ALL_PROXY": "socks4://127.0.0.1:1"},
        "ALL_PROXY or HTTPS_PROXY is no",
    ),
    "profile": (connect, {"AWS_PROFILE": "nobody"}, "(?s)nobody.*check AWS_PROFILE"),
    "config": (connect, {"AWS_CONFIG_FILE": "BROKEN"}, "check AWS_PROFILE and the AWS config file"),
    "endpoint": (connect, {"AWS_ENDPOINT_URL": "minio:9000"}, "minio:9000.*check AWS_ENDPOINT_URL"),
    "quotes": (
        connect,
        {"AWS_SECRET_ACCESS_KEY": "\u201csecret\u201d"},
        "secret access key: .* quotation mark",
    ),
    "home": (
        refuse_environment,
        {"IMAGEMILL_HOME": "BROKEN/home"},
        "cannot be written .* set IMAGEMILL_HOME",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, environment, words = FAULTS[fault]
    (tmp_path / "broken").write_text("no section")
    usual = {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "wJalrX"}
    for name, value in {**usual, "HTTPS_PROXY": "http://127.0.0.1:1", **environment}.items():
        monkeypatch.setenv(name, value.replace("BROKEN", str(tmp_path / "broken")))
    with pytest.raises(InputError, match=words):
        begin()


def test_a_socks_proxy_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(InputError, match=r"ALL_PROXY names a SOCKS proxy.* pip install 'httpx\[socks\]'"):
        refuse_proxies()


def test_prefect_that_does_not_answer_or_cannot_write_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    begun = time.monotonic()
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/api does not answer .* PREFECT_API_URL"),
    ):
        refuse_prefect()
    with (
        temporary_settings({PREFECT_HOME: tmp_path / "file" / "home"}),
        pytest.raises(InputError, match=r"cannot be written .* set PREFECT_HOME"),
    ):
        refuse_prefect()
    assert time.monotonic() - begun < 10


def test_a_full_disk_is_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: SIM115, PTH123
    said = f"{tmp_path} cannot be written (No space left on device): make room there, or set IMAGEMILL_HOME"
    with pytest.raises(InputError, match=re.escape(said)):
        refuse_environment()
