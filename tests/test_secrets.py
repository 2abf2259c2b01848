"""Keys are checked when they are set, and masked in all that leaves the process, however they are written."""

from __future__ import annotations

import base64
import html
import json
import logging
import socket
import textwrap
import timeit
from pathlib import Path
from urllib.parse import quote, quote_plus

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_tracer
from pydantic import SecretStr, ValidationError

from imagemill.blocks.apis import PROVIDERS, Together
from imagemill.engine.job_log import JobLog
from imagemill.engine.telemetry import Telemetry
from imagemill.errors import ApiError, ErrorClass, InputError, StoreUnavailableError
from imagemill.jobs import Job
from imagemill.secrets import clean_key, holds_secret, keep_secret, masked, masked_values, without_secrets
from imagemill.settings import ApiSettings

KEY = "sk-live/5f1c+9e=ab'cd:EFGH0123456789xyz"
HALVES = KEY[:18], KEY[18:]

SPELLINGS = {
    "as it is": KEY,
    "with a line break, as repr writes it": repr(KEY + "\n"),
    "bytes": repr(KEY.encode()),
    "JSON": json.dumps(KEY),
    "JSON in JSON": json.dumps(json.dumps(KEY)),
    "in a URL": f"https://user:{quote(KEY, safe='')}@host/?key={quote_plus(KEY)}",
    "quoted twice": quote(quote(KEY, safe=""), safe=""),
    "HTML": html.escape(KEY),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "on two lines": "\n    ".join(HALVES),
    "wrapped": "\n".join(textwrap.wrap(KEY, 10)),
    "escaped line break": "\\n".join(HALVES),
    "in pieces": f"'{HALVES[0]}' b'{HALVES[1]}'",
    "cut off": KEY[:30],
    "escaped characters": "".join(c if c.isalnum() else f"\\x{ord(c):02x}" for c in KEY),
}


@pytest.fixture(autouse=True)
def known() -> None:
    keep_secret(KEY)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_is_masked_however_it_is_written(spelling: str) -> None:
    text = f"before {SPELLINGS[spelling]} after"
    shown = masked(text)
    assert "***" in shown
    for start in range(len(KEY) - 12):
        assert KEY[start : start + 12] not in shown
    assert "".join(filter(str.isalnum, KEY))[8:] not in "".join(filter(str.isalnum, shown))
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert holds_secret(text.encode())


@given(st.text(max_size=60), st.text(max_size=60))
def test_the_text_around_a_secret_stays(before: str, after: str) -> None:
    before, after = before.rstrip("\\") + "|", "|" + after
    assert masked(before + KEY + after) == before + "***" + after
    assert masked(before + after) == before + after


def test_what_is_too_short_to_be_a_secret_garbles_nothing() -> None:
    for text in ("", "k", "none", "cat"):
        keep_secret(text)
    assert masked("none of the cats is ok") == "none of the cats is ok"
    keep_secret("hunter2")
    assert masked("hunter2, hunter22") == "***, hunter22"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://mill:{}@host:5432/none",
        "https://:{}@host/cats",
        "password={} none",
        '{{"api_key": "{}"}}',
        "{{'authorization': 'Bearer {}'}}",
        '"{{\\"token\\": \\"{}\\"}}"',
        "Authorization: Key {}",
    ],
)
def test_a_short_secret_is_masked_where_it_is_named_as_one(text: str) -> None:
    keep_secret("pw-1")
    told = text.format("pw-1")
    assert masked(told) == text.format("***")
    assert holds_secret(told.encode())
    assert masked(f"pw-1 {text.format('pw-12')}") == f"pw-1 {text.format('pw-12')}"


def test_hostile_text_is_searched_in_linear_time() -> None:
    text = "s" + " '\\" * 20_000 + "sk-" * 5_000
    # Quadratic time would be minutes; a process that ran other tests knows hundreds of secrets.
    assert timeit.timeit(lambda: masked(text), number=1) < 60


@pytest.mark.parametrize("made", [ApiError, InputError, StoreUnavailableError])
def test_errors_hold_no_secret(made: type[Exception]) -> None:
    words = f"Illegal header value {('Bearer ' + KEY + chr(10)).encode()!r}"
    error = ApiError(ErrorClass.BAD_REQUEST, words, code=KEY) if made is ApiError else made(words)
    assert KEY[:14] not in f"{error} {error!r} {vars(error)}"
    assert "Illegal header value" in str(error)


def test_log_records_hold_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    error = RuntimeError(f"refused {KEY}")
    logging.getLogger("some.library").error("asked with %r", {"authorization": KEY}, exc_info=error)
    assert "asked with" in caplog.text
    assert "RuntimeError: refused ***" in caplog.text
    assert KEY[:14] not in caplog.text


def test_job_log_and_spans_hold_no_secret(tmp_path: Path) -> None:
    job = Job(0, KEY, "k", "p", None, 64, 64, 1, 4, "m", "png", request_id=KEY)
    log = JobLog("run", tmp_path / "log.jsonl")
    log.job("failed", job, message=f'"{KEY}"\n', error_class=None)
    log.event("stopping", reason=repr(KEY))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()]
    assert [line["event"] for line in lines] == ["failed", "stopping"]
    assert (lines[0]["id"], lines[0]["message"]) == ("***", '"***"\n')
    assert KEY[:14].encode() not in (tmp_path / "log.jsonl").read_bytes()

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    telemetry = Telemetry("run", "fal", "m")
    telemetry._tracing, telemetry._tracer = True, get_tracer("t", tracer_provider=provider)
    with pytest.raises(RuntimeError), telemetry.run(), telemetry.attempt(job):
        raise RuntimeError(f"refused {KEY}")
    told = " ".join(span.to_json() for span in spans.get_finished_spans())
    assert "RuntimeError" in told
    assert KEY[:14] not in told


def test_an_error_that_nobody_expected_holds_no_secret() -> None:
    plain = RuntimeError("plain")
    assert without_secrets(plain) is plain
    for told in (ValueError(f"x {KEY}"), ValueError("x")):
        told.__context__ = KeyError(KEY)
        shown = without_secrets(told)
        assert str(shown).startswith("ValueError: x")
        assert KEY[:14] not in f"{shown!r} {shown.__cause__!r} {shown.__context__!r}"


def test_values_of_an_artifact_hold_no_secret() -> None:
    assert masked_values([{KEY: [KEY, 1, None]}, ("x", 2.5)]) == [{"***": ["***", 1, None]}, ["x", 2.5]]


GOOD = "sk-proj-Ab_9.~/+=:x"
REFUSED = {
    "two lines": ("sk-live-\nabcdef", "line break"),
    "two lines of Windows": ("sk-live-\r\nabcdef", "line break"),
    "typographic quotes": (f"\u201c{GOOD}\u201d", "quotation mark"),
    "typographic apostrophes": (f"\u2018{GOOD}\u2019", "quotation mark"),
    "quotes": (f'"{GOOD}"', "quotation mark"),
    "a long dash": ("sk\u2014live-abcdef", "neither a letter"),
    "nothing to be seen": ("sk-live\u200b-abcdef", "neither a letter"),
    "a bell": ("sk-live\x07-abcdef", "neither a letter"),
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_white_space_around_a_key_is_dropped(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    api = PROVIDERS[provider]
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "an-account")
    for text in (GOOD, f"{GOOD}\n", f"\t {GOOD}\r\n", f"{GOOD}\u00a0"):
        assert clean_key(text) == GOOD
        assert api(api_key=SecretStr(text)).api_key.get_secret_value() == GOOD
        monkeypatch.setenv(api.key_variable, text)
        assert api.from_environment().api_key.get_secret_value() == GOOD


@pytest.mark.parametrize("case", REFUSED)
def test_a_key_that_cannot_be_one_is_refused_where_it_is_set(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, words = REFUSED[case]
    with pytest.raises(ValidationError, match=words) as in_a_block:
        Together(api_key=text)  # type: ignore[arg-type] # as Prefect's form gives it
    monkeypatch.setenv("TOGETHER_API_KEY", text)
    with pytest.raises(InputError, match=words) as in_the_environment:
        Together.from_environment()
    assert "TOGETHER_API_KEY" in str(in_the_environment.value)
    for caught in (in_a_block, in_the_environment):
        assert "abcdef" not in str(caught.value)
        assert GOOD not in str(caught.value)


def test_a_request_that_cannot_be_sent_is_neither_lost_nor_unanswered() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    api = Together(api_key=SecretStr("fine"), base_url=address)
    api.api_key = SecretStr(KEY + "\nnext")  # past every check
    job = Job(0, "a", "k", "p", None, 64, 64, 1, 4, api.model, "png")

    async def accepted(_: str) -> None:
        pytest.fail("nothing was sent")

    async def ask() -> ApiError:
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(ApiError) as caught:
                await api.generate(http, job, accepted)
            return caught.value

    with listener:
        error = anyio.run(ask)
    # Only a timeout counts as unanswered, and is sent again.
    assert (error.error_class, error.code, error.charged) == (ErrorClass.BAD_REQUEST, "not_sent", False)
    assert KEY[:14] not in str(error)


@pytest.mark.parametrize("settings", [{"base_url": "https://user:hunter2-secret@gateway.example/v1"}])
def test_an_address_with_a_password_is_refused_and_the_password_masked(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="no user name or password"):
        ApiSettings(**settings)
    with pytest.raises(ValidationError, match="no user name or password"):
        PROVIDERS["openai"](api_key="k", **settings)
    assert "hunter2-secret" not in masked("connecting to https://user:hunter2-secret@gateway.example")
