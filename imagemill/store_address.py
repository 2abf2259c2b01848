"""The address of a job store's server, and its password, which is kept apart from it.

Settings are stored in Prefect's database and in the run's record. A password within an address is therefore
removed as soon as the address is read. A process that was not given one, such as a resume from the record,
takes it from IMAGEMILL_STORE_PASSWORD.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from pydantic import SecretStr

from imagemill.errors import InputError
from imagemill.secrets import keep_secret

PASSWORD_VARIABLE = "IMAGEMILL_STORE_PASSWORD"  # noqa: S105 - a variable's name

# The last @ ends the password, so that one with special characters is removed as a whole, too.
_INLINE = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://[^:@/?#]*):(?P<password>.*)(?P<after>@.*)", re.DOTALL
)
_IN_QUERY = re.compile(r"(?P<mark>[?&])password=(?P<password>[^&#]*)&?")
_ADDRESS = re.compile(
    r"(?P<scheme>[a-z]+)://(?:(?P<user>[^:@/?#]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^:@/?#\[\]]+)?"
    r"(?::(?P<port>[0-9]{1,5}))?(?:/(?P<database>[^@/?#]*))?(?:\?(?P<query>[^@#]*))?"
)


def split_password(store: str) -> tuple[str, SecretStr | None]:
    """The store's address without its password, and the password if the address has one."""
    stripped, password = store, None
    if found := _INLINE.fullmatch(stripped):
        stripped, password = found["before"] + found["after"], unquote(found["password"])
    if "://" in stripped and (found := _IN_QUERY.search(stripped)):
        password = unquote(found["password"])
        stripped = _IN_QUERY.sub(r"\g<mark>", stripped).rstrip("?&")
    if password:
        keep_secret(password)
    return stripped, SecretStr(password) if password else None


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where a store's server listens. ``str()`` of it has no password."""

    scheme: str
    host: str
    port: int
    user: str | None
    database: str | None
    query: dict[str, str]
    password: str | None = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def address_of(
    store: str, *, port: int, options: tuple[str, ...], password: SecretStr | None = None
) -> StoreAddress:
    """The parts of a store's address. ``port`` is the default; ``options`` may follow a question mark.

    The password is the address's own, or ``password``, or that of the environment.

    Raises:
        InputError: it is malformed, or has an unknown option.
    """
    store, own = split_password(store)
    password = own or password
    scheme = store.partition(":")[0]
    found = _ADDRESS.fullmatch(store)
    if not found or int(found["port"] or 1) not in range(1, 65536):
        # Not repeated here: what could not be parsed may contain a password.
        raise InputError(
            f"The job store's address is not of the form {scheme}://USER@HOST:PORT/DATABASE. Special"
            " characters in it must be percent-encoded."
        )
    secret = password.get_secret_value() if password else os.environ.get(PASSWORD_VARIABLE)
    secret = (secret or "").rstrip("\r\n") or None  # secret stores add line breaks
    if secret:
        keep_secret(secret)
    query = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    for name in query:
        if name not in options:
            raise InputError(
                f"The job store's address has an unknown option {name!r}. Known: {', '.join(options)}."
            )
    return StoreAddress(
        scheme=scheme,
        host=(found["host"] or "127.0.0.1").strip("[]"),
        port=int(found["port"] or port),
        user=unquote(found["user"]) if found["user"] else None,
        database=unquote(found["database"]) if found["database"] else None,
        query=query,
        password=secret,
    )
