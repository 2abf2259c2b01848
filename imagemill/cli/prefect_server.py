"""A temporary Prefect server for one command, where none is set: it starts while everything else loads.

Prefect starts one too, but only once a flow begins, and for that loads its whole server into this process.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from imagemill.errors import InputError

_ENDS_WITHIN_S = 5.0


@contextmanager
def own_server() -> Iterator[None]:
    """Start a server if Prefect has none, and let this process use it while the block runs.

    It is in another process group, which Ctrl-C does not reach: a run reports its final state to it.
    """
    from prefect.logging.handlers import APILogHandler
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    from imagemill.cli.child_process import ended_afterwards
    from imagemill.prefect_address import temporary_server

    settings = get_current_settings()
    if settings.api.url is not None or not settings.server.ephemeral.enabled:
        yield
        return
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        process = subprocess.Popen(  # noqa: S603 - this module itself
            [sys.executable, "-m", "imagemill.cli.prefect_server", str(listening.fileno()), str(os.getpid())],
            env=os.environ | settings.to_environment_variables(exclude_unset=True),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
    with (
        ended_afterwards(process, _ENDS_WITHIN_S),
        temporary_settings({PREFECT_API_URL: url}),
        temporary_server(url),
    ):
        try:
            yield
        finally:
            APILogHandler().flush()  # or Prefect tries for a minute to send the last lines to no server


def wait_for_server() -> None:
    """Wait until the temporary server answers, if there is one.

    Raises:
        InputError: it does not.
    """
    from prefect.settings import get_current_settings

    from imagemill.prefect_address import lasting_server

    settings = get_current_settings()
    if settings.api.url is None or lasting_server() is not None:
        return
    patience_s = settings.server.ephemeral.startup_timeout_seconds
    try:
        # Its socket is open from the beginning: the answer comes once it has started.
        health = f"{settings.api.url}/health"
        httpx.get(health, timeout=patience_s, trust_env=False, verify=False).raise_for_status()  # noqa: S501
    except httpx.HTTPError as error:
        raise InputError(
            f"Prefect's temporary server did not start ({type(error).__name__}). Start one yourself with:"
            " prefect server start, and set PREFECT_API_URL to its address."
        ) from error


def end_with(parent: int) -> None:
    """End this process once the one that started it is gone, killed or with its terminal."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def serve(listening: socket.socket) -> None:
    """Serve Prefect's API on an open socket until SIGTERM."""
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(
        create_app(ephemeral=True, final=True),
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=1,  # it does not wait for open connections
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["PREFECT_UI_ENABLED"] = "false"
    threading.Thread(target=end_with, args=(int(sys.argv[2]),), daemon=True).start()
    serve(socket.socket(fileno=int(sys.argv[1])))
