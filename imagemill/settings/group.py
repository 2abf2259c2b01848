"""What all groups of settings share: titles in the form, and errors as one sentence."""

from __future__ import annotations

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from imagemill.errors import InputError

_SPELLED = {"api": "API", "id": "ID", "s3": "S3", "uri": "URI", "url": "URL", "usd": "USD"}
_UNITS = {"s": "(s)", "usd": "(USD)"}


def form_title(name: str, _field: object = None) -> str:
    """A field's title in the UI's form: ``max_cost_usd`` becomes "Max cost (USD)"."""
    *words, last = name.split("_")
    spelled = [*(_SPELLED.get(word, word) for word in words), _UNITS.get(last) or _SPELLED.get(last, last)]
    title = " ".join(spelled)
    return title[0].upper() + title[1:]


class SettingsGroup(BaseModel):
    """A group of settings: frozen, and without fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, field_title_generator=form_title)


def wrapped(name: str) -> BeforeValidator:
    """Accept a plain string in place of a model, as the value of its first field."""
    return BeforeValidator(lambda value: {name: value} if isinstance(value, str) else value)


def input_error(error: ValidationError) -> InputError:
    """A validation error as one sentence."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return InputError(f"{where}: {message}." if where else f"{message}.")
