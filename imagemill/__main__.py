"""The process of the command: ``imagemill``, or ``python -m imagemill``."""

import signal
import sys


def process() -> int:
    """Run the command as a process of its own; its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # While the command loads, Ctrl-C just ends it: an exception could come out of any library.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from imagemill.cli.command import process  # noqa: PLC0415 - takes time

    return process()


if __name__ == "__main__":
    sys.exit(process())
