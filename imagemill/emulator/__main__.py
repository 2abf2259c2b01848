"""The command line: `python -m imagemill.emulator`."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from imagemill.emulator.faults import NAMES
from imagemill.emulator.server import Emulator
from imagemill.emulator.settings import Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DEFAULT_PORT = 8700
_LARGEST_PORT = 65535
_USAGE_ERROR = 2


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{message[:1].upper()}{message[1:].rstrip('.')}.\n")
        raise SystemExit(_USAGE_ERROR)


def _parser() -> argparse.ArgumentParser:
    usual = Settings()
    parser = _Parser(
        prog="imagemill emulator",
        description="Run the image APIs of fal, Together, Replicate, Black Forest Labs, OpenAI, Runware and"
        " Cloudflare on loopback.",
        epilog="Faults: " + ", ".join(sorted(NAMES)) + ". A prompt that contains #fault:NAME "
        "gets that fault each time, #fault:NAME*2 its first two times. Bill, statistics and "
        "settings are at /__bill, /__stats and /__config, which takes every setting.",
    )
    add = parser.add_argument
    add("--port", type=int, default=_DEFAULT_PORT, help="port, 0 for a free one (%(default)s)")
    add(
        "--max-concurrent",
        type=int,
        metavar="N",
        help="requests in progress at once; beyond it fal's queue waits and the others refuse (no limit)",
    )
    add("--per-minute", type=float, metavar="N", help="requests a minute, as a token bucket")
    add(
        "--dynamic-per-minute",
        type=float,
        metavar="N",
        help="base of Together's dynamic rate, 60 at the vendor (no dynamic rate)",
    )
    add(
        "--capacity-per-s",
        type=float,
        metavar="N",
        help="requests a second that Together has capacity for within its dynamic rate (no limit)",
    )
    add("--burst", type=int, default=1, metavar="N", help="capacity of the bucket (%(default)s)")
    add(
        "--latency",
        type=float,
        default=usual.latency_s,
        metavar="SECONDS",
        help="median generation latency (%(default)s); 0 for none",
    )
    add(
        "--latency-sigma",
        type=float,
        default=usual.latency_sigma,
        metavar="SIGMA",
        help="sigma of the lognormal latency (%(default)s)",
    )
    add(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=RATE",
        help="share of requests, 0 to 1, with a fault; repeatable",
    )
    add("--credit-images", type=int, metavar="N", help="images until the credit is exhausted")
    add(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="key to accept; repeatable (every key)",
    )
    add(
        "--pictures",
        choices=("full", "fast"),
        default=usual.pictures,
        help="draw each picture, or stamp one a size, for benchmarks (%(default)s)",
    )
    add("--seed", type=int, default=usual.seed, help="seed of all random draws (%(default)s)")
    add("--link-ttl", type=float, metavar="SECONDS", help="life of an image link (no end)")
    return parser


def _faults(pairs: Sequence[str]) -> dict[str, float]:
    faults = {}
    for pair in pairs:
        name, _, rate = pair.partition("=")
        try:
            faults[name] = float(rate)
        except ValueError:
            message = f"The fault {pair!r} is not of the form NAME=RATE with a number as rate."
            raise SettingsError(message) from None
    return faults


def _settings(options: argparse.Namespace) -> Settings:
    if not 0 <= options.port <= _LARGEST_PORT:
        message = f"The port must be from 0 to {_LARGEST_PORT}, not {options.port}."
        raise SettingsError(message)
    return Settings(
        max_concurrent=options.max_concurrent,
        per_minute=options.per_minute,
        dynamic_per_minute=options.dynamic_per_minute,
        capacity_per_s=options.capacity_per_s,
        burst=options.burst,
        latency_s=options.latency,
        latency_sigma=options.latency_sigma,
        faults=_faults(options.fault),
        credit_images=options.credit_images,
        api_keys=tuple(options.api_key),
        pictures=options.pictures,
        seed=options.seed,
        link_ttl_s=options.link_ttl,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the emulator until SIGINT or SIGTERM; return 0, or 2 when it cannot start."""
    try:
        options = _parser().parse_args(argv)
        emulator = Emulator(_settings(options), port=options.port)
    except SystemExit as leave:
        return int(leave.code or 0)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE_ERROR
    over = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: over.set()) for number in signals]
    try:
        emulator.start()
        _announce(emulator.base_url)
        over.wait()
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
        sys.stderr.write(f"Port {options.port} {reason}.\n")
        return _USAGE_ERROR
    finally:
        emulator.stop()
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
    return 0


def _announce(url: str) -> None:
    sys.stdout.write(
        f"{url} emulates image APIs; try: curl {url}/v1/images/generations "
        "-H 'Authorization: Bearer key' -H 'Content-Type: application/json' "
        '-d \'{"model": "black-forest-labs/FLUX.1-schnell", "prompt": "A lighthouse at dusk"}\'\n'
    )
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
