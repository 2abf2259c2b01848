"""The emulated APIs as a process of their own, which does not share Python's lock with what is measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import httpx

from imagemill.emulator import Emulator, Settings


class EmulatorProcess:
    """What a benchmark asks of the process: its address, bill, statistics, and other settings."""

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        self._http = httpx.Client(base_url=base_url)

    def bill(self) -> dict[str, Any]:
        """What the vendor would charge."""
        return dict(self._http.get("/__bill").json())

    def stats(self) -> dict[str, Any]:
        """Requests and refusals so far."""
        return dict(self._http.get("/__stats").json())

    def configure(self, **changes: object) -> None:
        """Change settings while it runs."""
        self._http.post("/__config", json=changes).raise_for_status()

    def close(self) -> None:
        """Close the connection; the process goes on."""
        self._http.close()


def _serve(settings: Settings, connection: Connection) -> None:
    with Emulator(settings) as emulated:
        connection.send(emulated.base_url)
        connection.poll(None)  # until the benchmark closes its end


@contextmanager
def emulator_process(settings: Settings) -> Iterator[EmulatorProcess]:
    """Start it, and end it with the block."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(settings, theirs))
    process.start()
    theirs.close()
    emulated = EmulatorProcess(ours.recv())
    try:
        yield emulated
    finally:
        emulated.close()
        ours.close()
        process.join()
