"""Which Prefect server people can look at: not one that lives as long as a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_temporary: set[str] = set()


@contextmanager
def temporary_server(url: str) -> Iterator[None]:
    """Remember that the server at this address ends with the block."""
    _temporary.add(url)
    try:
        yield
    finally:
        _temporary.discard(url)


def lasting_server() -> str | None:
    """The address of the Prefect server that is set; None if there is none, or only a temporary one."""
    from prefect.settings import get_current_settings  # noqa: PLC0415 - half a second to load

    url = get_current_settings().api.url
    return None if url is None or url in _temporary else str(url)
