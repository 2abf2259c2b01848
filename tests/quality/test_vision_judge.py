"""A vision model as the judge: against the emulator, and against answers of servers that nobody foresaw."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from imagemill.emulator import Emulator
from imagemill.emulator.order import Shot
from imagemill.emulator.picture import draw
from imagemill.engine.limits.pacer import Pacer
from imagemill.errors import InputError
from imagemill.quality.judge import Answer, Candidate
from imagemill.quality.vision_judge import VisionJudge
from tests.fast_clock import run_fast
from tests.http_server import Answer as Sent
from tests.http_server import Asked, serving

KEY = "the-judges-own-key"
USD_PER_MILLION = (2.5, 10.0)


def candidate(prompt: str = "A lighthouse", flaw: str | None = None) -> Candidate:
    return Candidate(draw(Shot(prompt, 1024, 512, 4, 1, "png", flaw)), prompt, {})


def answers(
    base_url: str, *candidates: Candidate | Callable[[], Candidate], key: str = KEY, timeout_s: float = 200.0
) -> list[Answer]:
    async def ask() -> list[Answer]:
        judge = VisionJudge(
            base_url,
            "gpt-4o-mini",
            "Is it a lighthouse?",
            key=SecretStr(key),
            usd_per_million_tokens=USD_PER_MILLION,
            timeout_s=timeout_s,
            limiter=Pacer(4),
        )
        async with judge:
            return [await judge.ask(shown() if callable(shown) else shown) for shown in candidates]

    return run_fast(ask)


def test_a_model_scores_pictures_and_counts_what_it_costs(emulator: Callable[..., Emulator]) -> None:
    emulated = emulator()
    good, empty, marked = answers(
        f"{emulated.base_url}/judge", candidate(), candidate(flaw="black"), candidate("x #score:0.25")
    )
    scores = [answer.opinion.score for answer in (good, empty, marked) if answer.opinion]
    assert scores == [0.9, 0.1, 0.25]
    bill = emulated.bill()["chat"]
    usd = bill["prompt_tokens"] * 2.5e-6 + bill["completion_tokens"] * 10e-6
    assert (bill["requests"], good.usd + empty.usd + marked.usd) == (3, pytest.approx(usd))


@pytest.mark.parametrize("fault", ["nan", "prose", "long", "missing", "html", "500", "400"])
def test_what_is_no_opinion_is_none(emulator: Callable[..., Emulator], fault: str) -> None:
    (answer,) = answers(f"{emulator().base_url}/judge", candidate(f"x #score:{fault}"))
    if fault == "long":
        assert answer.opinion is not None
        assert len(answer.opinion.words) < 520
    else:
        assert (answer.opinion, bool(answer.failure)) == (None, True)


def test_tokens_that_are_not_credible_cost_what_an_opinion_usually_does(
    emulator: Callable[..., Emulator],
) -> None:
    (answer,) = answers(f"{emulator().base_url}/judge", candidate("x #score:absurd"))
    assert answer.opinion is not None
    assert answer.usd == pytest.approx(2000 * 2.5e-6 + 200 * 10e-6)


def test_one_that_cannot_be_reached_costs_nothing(emulator: Callable[..., Emulator]) -> None:
    started = emulator()

    def leaving() -> Candidate:
        started.stop()
        return candidate()

    (answer,) = answers(f"{started.base_url}/judge", leaving)
    assert answer == Answer(failure="no answer (ConnectError)")


def test_one_that_does_not_answer_is_given_up(emulator: Callable[..., Emulator]) -> None:
    silent = [candidate("x #score:hang")] * 7
    found = answers(f"{emulator().base_url}/judge", *silent, timeout_s=5.0)
    price = 2000 * 2.5e-6 + 200 * 10e-6
    assert found[0] == Answer(failure="no answer (TimeoutError)", doubtful_usd=2 * price)
    assert found[5] == found[6] == Answer(failure="the judge is asked no more: no answer (TimeoutError)")


def test_a_key_that_is_refused_is_told_at_once_or_ends_the_asking(emulator: Callable[..., Emulator]) -> None:
    emulated = emulator(api_keys=("other",))
    first, second = answers(f"{emulated.base_url}/judge", candidate(), candidate())
    assert "Incorrect API key" in first.failure
    assert "asked no more" in second.failure
    assert sum(sum(route.values()) for route in emulated.stats()["requests"].values()) == 2

    with (
        serving(lambda _: Sent({"error": {"message": "who are you?"}}, 401)) as server,
        pytest.raises(InputError, match=r"refused the key .who are you"),
    ):
        answers(server.base_url)
    with pytest.raises(InputError, match="does not answer"):
        answers("http://127.0.0.1:9")


def test_it_slows_down_when_asked_to_and_keeps_its_secrets() -> None:
    refusals = 2

    def answer(asked: Asked) -> Sent:
        nonlocal refusals
        if asked.method == "GET":
            return Sent({"data": []})
        if refusals:
            refusals -= 1
            return Sent({"error": {"message": "slow down"}}, 429, {"Retry-After": "2"})
        content = json.dumps({"score": "0.7", "reason": f"my key is {asked.headers['authorization']}"})
        return Sent({"choices": [{"message": {"content": f"```json\n{content}\n```"}}]})

    with serving(answer) as server:
        (found,) = answers(server.base_url, candidate("<script> a lighthouse"))
    assert found.opinion is not None
    assert (found.opinion.score, found.opinion.words) == (0.7, "my key is Bearer ***")
    body = server.asked[-1].body
    assert server.asked[-1].path == "/v1/chat/completions"
    picture = body["messages"][1]["content"][1]["image_url"]["url"]
    assert base64.b64decode(picture.partition(",")[2]).startswith(b"\xff\xd8")
    assert body["messages"][1]["content"][0]["text"] == "Prompt: <script> a lighthouse"


def test_the_emulator_answers_openais_own_client(emulator: Callable[..., Emulator]) -> None:
    picture = base64.b64encode(candidate().content).decode()
    parts: list[Any] = [
        {"type": "text", "text": "Is it a lighthouse?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}", "detail": "low"}},
    ]
    with openai.OpenAI(api_key="k", base_url=f"{emulator().base_url}/v1", max_retries=0) as client:
        found = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": parts}], max_completion_tokens=50
        )
        assert json.loads(found.choices[0].message.content or "")["score"] == 0.9
        assert found.usage is not None
        assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
        with pytest.raises(openai.BadRequestError, match="data URI"):
            client.chat.completions.create(
                model="gpt-4o-mini",
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}],
                    }
                ],
            )
