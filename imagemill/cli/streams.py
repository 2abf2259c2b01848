"""stdout and stderr of the command's process: no work depends on whether anybody can read them."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import select
import sys
from typing import TextIO

from imagemill.cli.exit_codes import DONE, FAILURES

_CANNOT_ENCODE = "imagemill.escape"


class _Output(io.FileIO):
    """A descriptor that drops what it cannot write: what is paid for must come home all the same.

    Nothing is buffered above it: a signal handler may print while a print of the main thread still waits.
    """

    error: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        left = memoryview(data)
        try:
            while left:
                written = super().write(left)
                if written is None:  # whoever shares the descriptor made it non-blocking
                    select.select((), (self,), ())
                left = left[written or 0 :]
        except OSError as error:
            self.error = self.error or error
        return len(data)


class Streams:
    """Replaces this process's stdout and stderr, which may be closed, full, or lack characters."""

    def __init__(self) -> None:
        codecs.register_error(_CANNOT_ENCODE, _as_in_json)
        for number in range(3):
            try:
                os.fstat(number)
            except OSError:  # closed: the next file or socket would get its number, and what is printed
                os.open(os.devnull, os.O_RDWR)
        self._stdout = _Output(1, "w", closefd=False)
        sys.stdout = _text(self._stdout, sys.stdout, line_buffering=self._stdout.isatty())
        sys.stderr = _text(_Output(2, "w", closefd=False), sys.stderr, line_buffering=True)

    def end(self, code: int) -> int:
        """Write what is left of the output; the exit code, which by itself would be ``code``."""
        sys.stdout.flush()
        error = self._stdout.error
        if error is None or error.errno == errno.EPIPE:  # its reader, like head, has seen enough
            return code
        print(
            f"imagemill: The output could not be written ({error.strerror}). Make room, or send it somewhere"
            " else. What a run has done is kept: imagemill runs shows it.",
            file=sys.stderr,
        )
        return FAILURES if code == DONE else code


def _text(output: _Output, before: TextIO | None, *, line_buffering: bool) -> TextIO:
    encoding = before.encoding if before else "utf-8"
    return io.TextIOWrapper(output, encoding, _CANNOT_ENCODE, line_buffering=line_buffering)


def _as_in_json(error: UnicodeError) -> tuple[str, int]:
    """Escape characters that the encoding lacks as JSON does: output that is JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
