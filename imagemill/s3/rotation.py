"""Fixed S3 keys, read again every few minutes: who rotates them need not restart the runs in progress.

boto3 renews the keys of roles and of processes that say when they expire. Others it reads once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING

from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError

from imagemill.secrets import keep_secret

if TYPE_CHECKING:
    import boto3

READ_EVERY_S = 300.0
"""How often keys are read again, in seconds."""


class RotatingCredentials(Credentials):  # type: ignore[misc] # botocore has no types
    """Keys that a thread reads anew once they are some minutes old; until it has them, the old ones are used.

    ``read`` gives them, or None; where it fails, the old ones stay. ``clock`` counts seconds.
    """

    def __init__(
        self,
        first: Credentials,
        read: Callable[[], Credentials | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(first.access_key, first.secret_key, first.token, method=first.method)
        self._read = read
        self._clock = clock
        self._due = clock() + READ_EVERY_S
        self._lock = threading.Lock()
        self._context = copy_context()  # it has the settings with Prefect's address

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys of now."""
        with self._lock:
            is_due = self._clock() >= self._due
            if is_due:
                self._due = self._clock() + READ_EVERY_S
            now = super().get_frozen_credentials()
        if is_due:
            run = self._context.copy().run
            threading.Thread(target=run, args=(self._replace,), name="imagemill-keys", daemon=True).start()
        return now

    def _replace(self) -> None:
        try:
            found = self._read()
            known = found and found.get_frozen_credentials()
        except Exception:  # noqa: BLE001 - whatever keeps them from being read, the old ones may still do
            return
        if known:
            keep_secret(known.secret_key or "")
            keep_secret(known.token or "")
            with self._lock:
                self.access_key, self.secret_key, self.token = (
                    value and value.strip() for value in known[:3]
                )


def read_again(session: boto3.Session, again: Callable[[], boto3.Session]) -> None:
    """Let a session read its keys again in time, from the session that ``again`` makes, if they are fixed."""
    found = None
    with suppress(BotoCoreError):  # whoever uses the session says what is wrong
        found = session.get_credentials()
    if type(found) is Credentials:
        core = session._session  # noqa: SLF001 - boto3 has no other way to give a session credentials
        core._credentials = RotatingCredentials(found, lambda: again().get_credentials())  # noqa: SLF001
