"""Brings every fault upon a run, one after another; prints a Markdown table.

    python -m benchmarks.faults [FAULT ...]

Each row is one ``imagemill run`` as a process (and one more, where it stopped and is resumed), against an
emulated API, a local S3 server and Prefect's server. Faults of the API are markers in a third of the prompts,
so that their number is known exactly; the others stand between the run and a server. Mounting the disk that
gets full takes root; otherwise that row is left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.workshop import Round, Workshop, machine, wait_for, workshop
from imagemill.emulator import Emulator, Settings
from tests.fault_proxy import FaultProxy
from tests.s3_fault_proxy import S3FaultProxy
from tests.servers import PostgresServer, RedisServer, Server, url_of

JOBS, FAULTY = 60, 20
AWAY_S = 10.0


@dataclass(frozen=True, slots=True)
class ApiFault:
    """A fault of the API: its marker, what the summary must count for each of the faulty prompts."""

    title: str
    marker: str
    counted: dict[str, int]
    fails: bool = False
    provider: str = "together"


API_FAULTS = [
    ApiFault("429, twice", "429*2", {"rate_limited": 2}),
    ApiFault("500", "500*1", {"server_error": 1}),
    ApiFault("502", "502*1", {"server_error": 1}),
    ApiFault("503 with Retry-After", "503*1", {"rate_limited": 1}),
    ApiFault("504", "504*1", {"server_error": 1}),
    ApiFault("hang", "hang*1", {"timeout": 1}),
    ApiFault("hang", "hang*1", {"timeout": 1}, provider="fal"),
    ApiFault("reset before the answer", "reset*1", {"timeout": 1}),
    ApiFault("reset before the answer", "reset*1", {"timeout": 1}, provider="fal"),
    ApiFault("reset within the body", "reset_body*1", {"timeout": 1}),
    ApiFault("reset within the body", "reset_body*1", {"timeout": 1}, provider="fal"),
    ApiFault("reset within the body", "reset_body*1", {"timeout": 1}, provider="runware"),
    ApiFault("no answer, but charged", "timeout_after_charge*1", {"timeout": 1}),
    ApiFault("no answer, but charged", "timeout_after_charge*1", {"timeout": 1}, provider="runware"),
    ApiFault("truncated image", "truncated*1", {"invalid_image": 1}),
    ApiFault("HTML with status 200", "html*1", {"server_error": 1}),
    ApiFault("JSON of another shape", "wrong_shape*1", {"server_error": 1}),
    ApiFault("image of the wrong size", "wrong_size*1", {"invalid_image": 1}),
    ApiFault("all-black image", "black", {"content_filtered": 1}, fails=True),
    ApiFault("expired image link", "expired_link*1", {}, provider="fal"),
]


@dataclass
class Row:
    """What a fault came to."""

    fault: str
    api: str
    injected: str
    a_round: Round
    codes: list[int] = field(default_factory=list)
    expected: dict[str, int] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    requests: int = 0

    def run(self, process: subprocess.Popen[str] | None = None) -> int:
        """Wait for a process of the run, or for a resume; its exit code."""
        ended = self.a_round.finish(process)
        self.codes.append(ended.code)
        if ended.code not in {0, 1} or not ended.summary:
            print(f"  {ended.err.strip()}", file=sys.stderr)
        self.counted = ended.summary.get("errors", {})
        self.requests = ended.summary.get("requests", 0)
        return ended.code

    def print(self) -> None:
        """Print the table's row."""
        audit = self.a_round.audit()
        classes = ", ".join(f"{name} {number}" for name, number in sorted(self.counted.items())) or "none"
        same = "yes" if self.counted == self.expected else f"no: {self.expected}"
        lost = audit.lost + audit.wrong + len(self.a_round.wanted) - audit.jobs
        cells = [
            self.fault, self.api, self.injected, audit.jobs, audit.done, audit.failed,
            ", then ".join(map(str, self.codes)), self.requests, audit.twice, audit.in_flight, lost,
            classes, same,
        ]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def api_fault(shop: Workshop, fault: ApiFault) -> None:
    """A third of the prompts meet a fault."""
    prompts = [f"p{n} #fault:{fault.marker}" if n % 3 == 0 else f"p{n}" for n in range(JOBS)]
    with Emulator(Settings(latency_s=0.1, pictures="fast", hang_s=60)) as emulated:
        a_round = shop.round(emulated, fault.provider, prompts, **{"request-timeout": "3"})
        times = sum(fault.counted.values()) or 1
        row = Row(fault.title, fault.provider, f"{times * FAULTY}", a_round)
        row.expected = {name: number * FAULTY for name, number in fault.counted.items()}
        row.run(a_round.start())
        row.print()


def s3_fault(shop: Workshop, title: str, fault: str, times: int) -> None:
    """Uploads of images fail a while."""
    with (
        Emulator(Settings(latency_s=0.1, pictures="fast")) as emulated,
        S3FaultProxy(urlsplit(shop.s3.endpoint_url).port or 0) as proxy,
    ):
        endpoint = f"http://127.0.0.1:{proxy.port}"
        a_round = shop.round(emulated, "together", plain(JOBS), **{"s3-endpoint-url": endpoint})
        row = Row(title, "together", "", a_round)
        process = a_round.start()
        wait_for(lambda: emulated.bill()["images"] >= 15, process)
        proxy.inject(fault, times)
        row.run(process)
        row.injected = f"{proxy.injected} uploads"
        row.print()


def plain(number: int) -> list[str]:
    """Prompts without faults."""
    return [f"p{n}" for n in range(number)]


def away(title: str, proxy: FaultProxy, a_round: Round) -> None:
    """A server behind a proxy goes away in mid-run, for ten seconds."""
    row = Row(title, a_round.provider, f"{AWAY_S:g} s away", a_round)
    process = a_round.start()
    wait_for(lambda: a_round.emulated.bill()["images"] >= 40, process)
    proxy.away = True
    time.sleep(AWAY_S)
    proxy.away = False
    if row.run(process) == 3:
        row.run()
    row.print()


def store_away(shop: Workshop, title: str, kind: type[Server], provider: str) -> None:
    """The job store goes away."""
    with (
        Emulator(Settings(latency_s=0.3, pictures="fast")) as emulated,
        kind() as server,
        FaultProxy(server.port) as proxy,
    ):
        store = url_of(server, port=proxy.port)
        away(title, proxy, shop.round(emulated, provider, plain(200), store=store, concurrency="10"))


def prefect_away(shop: Workshop) -> None:
    """Prefect's API goes away."""
    with (
        Emulator(Settings(latency_s=0.3, pictures="fast")) as emulated,
        FaultProxy(urlsplit(shop.prefect_url).port or 0) as proxy,
    ):
        a_round = shop.round(emulated, "fal", plain(200), **{"shard-size": "20", "concurrency": "10"})
        a_round.environment["PREFECT_API_URL"] = f"http://127.0.0.1:{proxy.port}/api"
        away("Prefect's API away", proxy, a_round)


def disk_full(shop: Workshop) -> None:
    """The disk of the run's folder gets full in mid-run."""
    with Emulator(Settings(latency_s=0.3, pictures="fast")) as emulated:
        a_round = shop.round(emulated, "fal", plain(200), concurrency="10")
        with tiny_disk(a_round):
            row = Row("disk full, of the checkpoint", "fal", "until the run stops", a_round)
            process = a_round.start()
            wait_for(lambda: emulated.bill()["images"] >= 40, process)
            ballast = a_round.home / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            if row.run(process) == 3:
                ballast.unlink()
                row.run()
            row.print()


@contextmanager
def tiny_disk(a_round: Round) -> Iterator[None]:
    """A disk of 4 MB under the run's folder."""
    home = a_round.home / "disk"
    home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "imagemill", home], check=True)
    a_round.home = home
    try:
        yield
    finally:
        subprocess.run(["umount", home], check=True)


def rows(shop: Workshop) -> dict[str, Callable[[], None]]:
    """All faults, by a short name."""
    found: dict[str, Callable[[], None]] = {
        f"{fault.provider}:{fault.marker}": lambda fault=fault: api_fault(shop, fault)  # type: ignore[misc]
        for fault in API_FAULTS
    }
    found |= {
        "s3:slowdown": lambda: s3_fault(shop, "S3: 503 SlowDown", "SlowDown", 30),
        "s3:500": lambda: s3_fault(shop, "S3: 500 InternalError", "InternalError", 30),
        "s3:hang": lambda: s3_fault(shop, "S3: no answer within 30 s", "hang", 4),
        "s3:reset": lambda: s3_fault(shop, "S3: connection reset", "reset", 30),
        "postgres": lambda: store_away(shop, "job store away: Postgres", PostgresServer, "fal"),
        "redis": lambda: store_away(shop, "job store away: Redis", RedisServer, "together"),
        "prefect": lambda: prefect_away(shop),
    }
    if os.geteuid() == 0:
        found["disk"] = lambda: disk_full(shop)
    return found


def main(chosen: list[str]) -> None:
    """Bring the faults, print the table."""
    with workshop() as shop:
        print(f"`python -m benchmarks.faults`, {machine()}.\n")
        print(
            "| fault | API | injected | jobs | done | failed | exit code | requests | charged twice"
            " | of which never answered | lost | classes, says the summary | as injected |"
        )
        print("|---|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---|---|", flush=True)
        for name, bring in rows(shop).items():
            if not chosen or name in chosen:
                bring()
        if os.geteuid() != 0:
            print("\nThe disk that gets full was left out: only root can mount it.")


if __name__ == "__main__":
    main(sys.argv[1:])
