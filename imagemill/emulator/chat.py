"""OpenAI's chat completions with pictures, `POST .../chat/completions`: a vision model that scores pictures.

Confirmed by the client `openai` 3.57.0 (types of chat completions, read 2026-11-26): a message's content is
text or a list of parts, of which `image_url` has a link or a data URI; the answer's fields, `usage` and
`finish_reason`. Tokens of a picture are those of OpenAI's vision guide for gpt-4o: 85, and 170 for each tile
of 512 pixels. Unconfirmed: the statuses and codes of refused fields. Only data URIs are taken: the emulator
fetches nothing.

The model answers `{"score", "reason"}`, as it is asked to by imagemill. A picture in one colour scores 0.1,
any other 0.9. A marker in the text of a request has the last word: `#score:0.3` is a score, and
`#score:FAULT` one of the ways in which a model or its server fails: `nan`, `prose`, `long`, `missing`,
`absurd` (usage), `hang`, `html`, or an HTTP status.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import time
import uuid
import warnings
from typing import TYPE_CHECKING, Any

from PIL import Image

from imagemill.emulator.answers import BodyTooLargeError, gateway_page, json_answer, parse_object, read_body

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from imagemill.emulator.studio import Studio

__all__ = ["Chat"]

_MARKER = re.compile(r"#score:([a-z]+|[0-9.]+)")
_DATA = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,([A-Za-z0-9+/=]+)")
_LONG = 100_000
_ROLES = frozenset({"system", "developer", "user", "assistant"})
_REASONS = {True: "It is a picture.", False: "There is nothing in it."}
_FIELDS = frozenset(
    {"model", "messages", "max_completion_tokens", "max_tokens", "temperature", "n", "response_format"}
    | {"seed", "stream", "top_p", "user", "stop", "reasoning_effort", "store", "metadata"}
)


class _InvalidError(Exception):
    """A field cannot be used: `args` are the message, the field and OpenAI's code."""


class Chat:
    """Answers like OpenAI's vision models, which an image vendor's limits and faults do not concern."""

    def __init__(self, studio: Studio) -> None:
        """Know the studio's keys, and write onto its bill."""
        self.studio = studio

    async def complete(self, request: Request) -> Response:
        """Answer a chat completion request."""
        try:
            fields = parse_object(await read_body(request))
        except BodyTooLargeError:
            return _error(413, "The request body is too large.")
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self.studio.accepts(key):
            return _error(401, "Incorrect API key provided.", code="invalid_api_key")
        try:
            model, parts = _model(fields), list(_parts(fields))
            text = "\n".join(part for part in parts if isinstance(part, str))
            seen = [await asyncio.to_thread(_look, part) for part in parts if isinstance(part, bytes)]
        except _InvalidError as error:
            return _error(400, *error.args)
        marker = next(iter(_MARKER.findall(text)), None)
        if marker == "hang":
            return self.studio.hang()
        if marker is not None and marker.isdecimal() and len(marker) == 3:
            return _error(int(marker), "Not now.")
        return gateway_page() if marker == "html" else self._answer(model, text, seen, marker)

    def _answer(self, model: str, text: str, seen: list[tuple[bool, int]], marker: str | None) -> Response:
        content = _content(all(good for good, _ in seen), marker)
        tokens_in = -(-len(text) // 4) + sum(tokens for _, tokens in seen)
        tokens_out = -(-len(content) // 4)
        self.studio.bill.charge_chat(tokens_in, tokens_out)
        usage: dict[str, Any] = {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }
        if marker == "absurd":
            usage = {"prompt_tokens": 10**18, "completion_tokens": -1, "total_tokens": "many"}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content,
            "refusal": None,
            "annotations": [],
        }
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return json_answer(
            {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": model,
                "choices": [] if marker == "missing" else [choice],
                "usage": usage,
                "service_tier": "default",
                "system_fingerprint": None,
            }
        )


def _content(good: bool, marker: str | None) -> str:  # noqa: FBT001
    if marker == "prose":
        return "What a lovely picture! I would say it is quite good."
    if marker == "long":
        return json.dumps({"score": 0.2, "reason": "z" * _LONG})
    score: float | str = 0.9 if good else 0.1
    if marker == "nan":
        score = float("nan")
    elif marker is not None and marker[0].isdecimal():
        score = float(marker)
    return json.dumps({"score": score, "reason": _REASONS[good]})


def _model(fields: dict[str, Any] | None) -> str:
    """Return the model, once all fields are OpenAI's.

    Raises:
        _InvalidError: A field cannot be used.
    """
    if fields is None:
        raise _InvalidError("The request body must be a JSON object.", None, None)
    for name in fields:
        if name not in _FIELDS:
            message = f"Unrecognized request argument supplied: {name[:80]}"
            raise _InvalidError(message, name, "unknown_parameter")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise _InvalidError("you must provide a model parameter", "model", None)
    return model


def _parts(fields: dict[str, Any] | None) -> Iterator[str | bytes]:
    """Return the parts of all messages: texts, and pictures as bytes.

    Raises:
        _InvalidError: A message cannot be used.
    """
    messages = (fields or {}).get("messages")
    if not isinstance(messages, list) or not messages:
        raise _InvalidError("Invalid 'messages': a list of messages is required.", "messages", None)
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _InvalidError("Invalid value for the role.", f"{where}.role", "invalid_value")
        content = message.get("content")
        if isinstance(content, str):
            yield content
        elif isinstance(content, list) and content:
            yield from (_part(part, where) for part in content)
        else:
            raise _InvalidError("Invalid content.", f"{where}.content", "invalid_value")


def _part(part: object, where: str) -> str | bytes:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    link = part.get("image_url") if isinstance(part, dict) and part.get("type") == "image_url" else None
    if not isinstance(link, dict):
        raise _InvalidError("Invalid content part.", f"{where}.content", "invalid_value")
    return _decoded(link.get("url"), where)


def _decoded(url: object, where: str) -> bytes:
    found = _DATA.fullmatch(url) if isinstance(url, str) else None
    if found is None:
        raise _InvalidError("Invalid image URL: a data URI is needed.", where, "invalid_image_url")
    return base64.b64decode(found[1])


def _look(content: bytes) -> tuple[bool, int]:
    """Return whether a picture has anything in it, and its tokens.

    Raises:
        _InvalidError: It is no picture.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            warnings.simplefilter("ignore")
            low, high = image.convert("L").resize((32, 32)).getextrema()
            width, height = image.size
    except (OSError, ValueError, SyntaxError) as error:
        message = "You uploaded an unsupported image."
        raise _InvalidError(message, "messages", "invalid_image_format") from error
    scale = min(1.0, 768 / min(width, height))
    tiles = -(-round(width * scale) // 512) * -(-round(height * scale) // 512)
    return float(high) - float(low) > 8, 85 + 170 * tiles  # type: ignore[arg-type] # one band: two numbers


def _error(status: int, message: str, param: str | None = None, code: str | None = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json_answer({"error": error}, status)
