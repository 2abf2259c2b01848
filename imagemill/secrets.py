"""The one place that knows every secret of this process, and masks it in whatever leaves the process.

API keys, passwords of job stores and S3 credentials are kept here as soon as they are known. Log lines, log
records, errors, artifacts and spans pass through :func:`masked`. It finds a secret as it stands, and also
escaped, percent-encoded, in base64, broken over lines or quotes, or cut off after its first characters.
"""

from __future__ import annotations

import base64
import html
import logging
import re
import threading
from typing import Any
from urllib.parse import quote, urlsplit

MASK = "***"

SHORTEST = 6
"""A shorter secret is only masked where something announces it: it may be any word of any line."""

_SCHEME = r"(?i:bearer|basic|key|token)\s{1,4}"
_ANNOUNCED = (
    r"(?i:pass(?:word|wd|phrase)?|pwd|secret|token|key|authorization)"
    rf"""[\\"']{{0,4}}\s?[:=]\s?[\\"']{{0,4}}(?:{_SCHEME})?|\b{_SCHEME}|//[^\s/:@]{{0,64}}:(?=[^\s/@]{{1,64}}@)"""
)
"""What stands before a secret that is named as one, or before the password of an address."""

_WORD = 8
"""A secret shorter than this is only masked where it stands by itself: it may be a part of a word."""

_GAP = r"""(?:[\s"'+,\\]|\\[nrt]|%0[aAdD]|%20|(?<=[\s"'])b(?=["'])){0,64}"""
"""What may stand between two characters of a secret that was wrapped, quoted in pieces or escaped."""

_QUOTES = "\"'\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\u00ab\u00bb`\u00b4"


def clean_key(text: str) -> str:
    """A key as it can be sent: white space around it is dropped, as secret stores add line breaks.

    Raises:
        ValueError: it holds a line break, a quote or a sign that no header has. The key is not repeated.
    """
    key = text.strip()
    if any(sign in "\r\n\v\f\x85\u2028\u2029" for sign in key):
        raise ValueError("the key holds a line break: it was probably pasted in two lines")
    if any(sign in _QUOTES for sign in key):
        raise ValueError("the key holds a quotation mark: give the bare key, without quotes")
    if not key.isascii() or not key.isprintable():
        raise ValueError("the key holds a character that is neither a letter, a digit nor a plain sign")
    return key


class _Secret:
    """How one secret is recognised: by its first characters, then as far as it goes on.

    One pattern for each secret: the search for one that begins with a plain letter is some ten times as
    fast as that for several at once, and every line of a log is searched.
    """

    def __init__(self, text: str) -> None:
        signs = [_spellings(sign) for sign in text]
        shown = max(10, min(16, len(text) * 2 // 3))
        head = _GAP.join(signs[:shown])
        if len(text) < _WORD:
            head = rf"(?<!\w){head}(?!\w)"
        self.head, self.head_in_bytes = re.compile(head), re.compile(head.encode())
        self.rest = [re.compile(_GAP + sign) for sign in signs[shown:]]

    def mask(self, text: str) -> str:
        found = self.head.search(text)
        if found is None:
            return text
        parts, end = [], 0
        while found is not None:
            parts += [text[end : found.start()], MASK]
            end = found.end()
            for sign in self.rest:
                more = sign.match(text, end)
                if more is None:
                    break
                end = more.end()
            found = self.head.search(text, end)
        return "".join([*parts, text[end:]])


class _ShortSecret:
    """How a secret of less than six characters is recognised: by what stands before it."""

    rest: tuple[()] = ()

    def __init__(self, text: str) -> None:
        spelled = "".join(map(_spellings, text))
        pattern = rf"({_ANNOUNCED}){spelled}(?!\w)"
        self._announced, self.head_in_bytes = re.compile(pattern), re.compile(pattern.encode())

    def mask(self, text: str) -> str:
        return self._announced.sub(rf"\1{MASK}", text)


class _Secrets:
    """All that are known, the longest first: one may be a part of another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Secret | _ShortSecret] = {}

    def keep(self, text: str) -> None:
        bare = text.strip()
        if not bare:
            return
        with self._lock:
            known = dict(self._known)
            if len(bare) < SHORTEST:
                known[bare] = known.get(bare) or _ShortSecret(bare)
                self._known = known  # after the longer ones
                return
            for form in (bare, base64.b64encode(bare.encode()).decode().rstrip("=")):
                known[form] = known.get(form) or _Secret(form)
            self._known = {form: known[form] for form in sorted(known, key=len, reverse=True)}

    def mask(self, text: str) -> str:
        for secret in self._known.values():
            text = secret.mask(text)
        return text

    def is_in(self, content: bytes) -> bool:
        return any(secret.head_in_bytes.search(content) for secret in self._known.values())


_secrets = _Secrets()
_installed = threading.Lock()


def keep_secret(text: str) -> None:
    """Let a secret be masked from now on, in all that this process writes or sends."""
    _secrets.keep(text)
    if _installed.acquire(blocking=False):  # once in a process, and never given back
        make_record = logging.getLogRecordFactory()
        logging.setLogRecordFactory(lambda *given, **named: _masked_record(make_record(*given, **named)))


def masked(text: str) -> str:
    """The text with ``***`` for every secret in it."""
    return _secrets.mask(text)


def holds_secret(content: bytes) -> bool:
    """Whether some secret stands in UTF-8 text."""
    return _secrets.is_in(content)


def masked_values(value: Any) -> Any:  # noqa: ANN401 - JSON
    """A JSON value whose texts are masked, names of fields included."""
    if isinstance(value, str):
        return masked(str(value))
    if isinstance(value, dict):
        return {masked(name): masked_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_values(item) for item in value]
    return value


def without_secrets(error: Exception) -> Exception:
    """The error itself, or, where it or what it came from tells a secret, one that says the same without."""
    cause: BaseException | None = error
    while cause is not None:
        if masked(str(cause)) != str(cause):
            return RuntimeError(f"{type(error).__name__}: {masked(str(error))}")
        cause = cause.__cause__ or cause.__context__
    return error


class _MaskedRecord(logging.LogRecord):
    """A log record that is masked when it is worded, and its traceback too."""

    _traceback: str | None

    def getMessage(self) -> str:  # noqa: N802 - its name in logging
        return masked(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        return self._traceback

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._traceback = text and masked(text)


def _masked_record(record: logging.LogRecord) -> logging.LogRecord:
    if type(record) is logging.LogRecord:
        text = record.__dict__.pop("exc_text", None)
        record.__class__ = _MaskedRecord
        record.exc_text = text
    elif not isinstance(record, _MaskedRecord):  # somebody else's own kind
        message = record.getMessage()
        if (shown := masked(message)) != message:
            record.msg, record.args = shown, None
    return record


def _spellings(sign: str) -> str:
    """A pattern for the ways in which one character of a secret may be written."""
    if sign.isalnum() and sign.isascii():
        return sign
    encoded = quote(sign, safe="").replace("%", "%(?:25)?") if quote(sign, safe="") != sign else None
    ways = {
        re.escape(sign),
        r"\\*" + re.escape(sign),
        *({f"(?i:{encoded})"} if encoded else set()),
        f"(?i:%{ord(sign):02x})" if sign.isascii() else re.escape(sign),
        rf"(?i:\\x{ord(sign):02x})",
        rf"(?i:\\u{ord(sign):04x})",
        f"&#{ord(sign)};",
        f"(?i:&#x{ord(sign):x};)",
        re.escape(html.escape(sign)),
        re.escape(sign.encode("unicode_escape").decode()),
        *({r"\+"} if sign == " " else set()),
    }
    return f"(?:{'|'.join(sorted(ways, key=len, reverse=True))})"


def refuse_password(address: str) -> None:
    """See that an address carries no user name or password: addresses are stored and shown.

    Raises:
        ValueError: it does; the password is masked from then on.
    """
    parts = urlsplit(address)
    if parts.password:
        keep_secret(parts.password)
    if parts.username or parts.password:
        raise ValueError("an address may hold no user name or password: the key goes with each request")
