"""Checks the machine's environment before anything is started; each fault is one sentence."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import httpx

from imagemill.errors import InputError
from imagemill.prefect_address import lasting_server
from imagemill.runs.folder import home

PATIENCE_S = 5.0
"""How long Prefect's server may take to answer, in seconds."""

_LEAST_ROOM = 2**20
"""Bytes that must find room in a folder before anything is started: a run's first records need as much."""

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")


def refuse_environment() -> None:
    """Check that proxies can be used and folders written, and that Prefect's server answers if one is set.

    Raises:
        InputError: something is wrong; the sentence names the variable.
    """
    refuse_proxies()
    _refuse_folder("IMAGEMILL_HOME", home())
    refuse_prefect()


def refuse_proxies() -> None:
    """Check that the environment's proxies can be used. Their addresses may hold a password: don't show them.

    Raises:
        InputError: they cannot.
    """
    try:
        httpx.Client(trust_env=True, verify=False).close()  # noqa: S501 - asks for nothing; loads no certificates
    except ImportError as error:
        raise InputError(
            f"{_listed(_PROXIES)} names a SOCKS proxy, which needs one more package: pip install"
            " 'httpx[socks]', or unset it."
        ) from error
    except (httpx.InvalidURL, ValueError) as error:
        for entry in [part.strip() for part in _value("NO_PROXY").split(",")]:
            try:
                httpx.URL(f"all://*{entry}")
            except httpx.InvalidURL:
                raise InputError(
                    f"NO_PROXY holds {entry!r}, which is no host: write an IPv6 address without brackets and"
                    " without a range."
                ) from error
        raise InputError(
            f"{_listed(_PROXIES)} is no address of a proxy that can be used: give http://HOST:PORT."
        ) from error


def refuse_prefect() -> str | None:
    """Check that Prefect's home can be written and that its server answers; its address, if one is set.

    Raises:
        InputError: the home cannot be written, or there is no answer.
    """
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - a second to load
    from prefect.settings import (  # noqa: PLC0415
        PREFECT_CLIENT_MAX_RETRIES,
        get_current_settings,
        temporary_settings,
    )

    settings = get_current_settings()
    _refuse_folder("PREFECT_HOME", settings.home)
    url = lasting_server()
    if url is None:
        return None
    error: Exception | None
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(sync_client=True, httpx_settings={"timeout": PATIENCE_S}) as client,
        ):
            error = client.api_healthcheck()
    except (httpx.InvalidURL, httpx.TransportError, ValueError) as raised:
        error = raised
    if error is not None and not isinstance(error, httpx.HTTPStatusError):
        raise InputError(f"{url} does not answer ({type(error).__name__}): check PREFECT_API_URL.") from error
    return url


def _refuse_folder(variable: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LEAST_ROOM))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        room = "make room there, or " if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
        raise InputError(
            f"{folder} cannot be written ({reason}): {room}set {variable} to another folder."
        ) from error


def _listed(variables: tuple[str, ...]) -> str:
    return " or ".join(name for name in variables if _value(name)) or "A proxy variable"


def _value(variable: str) -> str:
    return os.environ.get(variable) or os.environ.get(variable.lower()) or ""
