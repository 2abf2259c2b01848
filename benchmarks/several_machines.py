"""Holds one account's limit with one to eight worker processes; writes the tables into several_machines.md.

    python -m benchmarks.several_machines

A real Dask scheduler and workers, each with a working folder of its own, a Postgres job store, a Prefect
server and an S3 server, all on this machine. One run loses a worker to SIGKILL half way, in another a worker
stands still for a while.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.emulator_process import EmulatorProcess, emulator_process
from benchmarks.recording import Figures, Run, Spread, options, record
from benchmarks.workshop import Ended, Workshop, machine, wait_for, workshop
from imagemill.emulator import Settings
from tests.cluster.local_cluster import Cluster
from tests.servers import PASSWORD, PostgresServer, url_of

FILE = Path(__file__).with_suffix(".md")
IMAGES = 2_400
PER_MINUTE, BURST = 1_800, 10
STALL_S = 12.0
"""Longer than the six seconds after which a silent worker's shards are taken over."""
SHARD_IMAGES = 400
SHARDS = {"4 shards": 100, "400 shards": 1}
"""Images per shard of the runs whose difference is the cost of a shard."""
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """A run on so many workers; what happens to the first of them half way."""

    name: str
    workers: int
    signal: int | None = None


CASES = (
    Case("1", 1),
    Case("4", 4),
    Case("8", 8),
    Case("4, one killed half way", 4, signal.SIGKILL),
    Case(f"4, one stopped half way for {STALL_S:.0f} s", 4, signal.SIGSTOP),
)


def at_limit(case: Case, shop: Workshop, postgres: PostgresServer) -> Figures:
    """One run at the account's rate, as the account saw it."""
    limit = Settings(latency_s=0.5, pictures="fast", per_minute=PER_MINUTE, burst=BURST)
    with emulator_process(limit) as emulated:

        def disturb(process: subprocess.Popen[str], workers: list[subprocess.Popen[bytes]]) -> None:
            if case.signal is not None:
                wait_for(lambda: emulated.bill()["images"] >= IMAGES // 2, process)
                workers[0].send_signal(case.signal)
            if case.signal == signal.SIGSTOP:
                time.sleep(STALL_S)
                workers[0].send_signal(signal.SIGCONT)

        rate = {"shard-size": "100", "max-images-per-minute": str(PER_MINUTE)}
        ended, _ = _run(shop, postgres, emulated, IMAGES, case.workers, rate, disturb)
        stats, bill = emulated.stats(), emulated.bill()
    seconds = stats["last_answer_at"] - stats["first_request_at"]
    return {
        "seconds": seconds,
        "share": IMAGES / seconds / (PER_MINUTE / 60),
        "refused": stats["rate_limited"] / stats["generation_requests"],
        "done": ended.summary["done"],
        "twice": sum(line["count"] - 1 for line in bill["by_key"].values()),
    }


def in_shards(size: int, shop: Workshop, postgres: PostgresServer) -> Figures:
    """One run without a limit on one worker: its seconds, and the CPU of the scheduler and of the leader."""
    with emulator_process(Settings(latency_s=0.0, pictures="fast")) as emulated:
        ended, cpu = _run(shop, postgres, emulated, SHARD_IMAGES, 1, {"shard-size": str(size)})
        stats = emulated.stats()
    assert ended.summary["done"] == SHARD_IMAGES, ended
    return {"seconds": stats["last_answer_at"] - stats["first_request_at"], **cpu}


def _run(
    shop: Workshop,
    postgres: PostgresServer,
    emulated: EmulatorProcess,
    images: int,
    workers: int,
    given: Mapping[str, str],
    disturb: Callable[[subprocess.Popen[str], list[subprocess.Popen[bytes]]], None] | None = None,
) -> tuple[Ended, Figures]:
    """One run on a cluster of its own: how it ended, and the CPU of each part, in seconds."""
    # A server of one's own: at Together, a new account starts at two requests a second.
    server = {"base-url": f"{emulated.base_url}/v1", "usd-per-image": "0.001"}
    work = shop.round(emulated, "openai", [f"machines {n}" for n in range(images)], **server)
    secrets = {"IMAGEMILL_STORE_PASSWORD": PASSWORD, "OPENAI_API_KEY": "benchmark"}
    work.environment.update(secrets)
    environment = {**shop.s3.environment, "PREFECT_API_URL": shop.prefect_url, **secrets}
    with Cluster(work.home / "cluster", workers, **environment) as cluster:
        before = _of_children()
        process = work.start(
            store=url_of(postgres), **{"task-runner": "dask", "scheduler": cluster.address, **given}
        )
        if disturb is not None:
            disturb(process, cluster.workers)
        ended = work.finish(process)
        cpu = {
            "leader": _of_children() - before,
            "scheduler": _cpu_s(cluster.scheduler),
            "worker": _cpu_s(cluster.workers[0]),
        }
    if ended.code:
        sys.exit(ended.err)
    return ended, cpu


def _of_children() -> float:
    """CPU seconds of all children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _cpu_s(process: subprocess.Popen[bytes] | None) -> float:
    assert process is not None
    try:
        stat = Path("/proc", str(process.pid), "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it was killed
        return 0.0
    return (int(stat[11]) + int(stat[12])) * _TICK_S


def tables(found: Mapping[str, list[Figures]]) -> str:
    """The tables."""
    return "\n".join(_lines(found))


def _lines(found: Mapping[str, list[Figures]]) -> Iterator[str]:
    rounds = min(map(len, found.values()))
    yield (
        f"{machine()}; {rounds} round{'s' if rounds > 1 else ''}. {IMAGES:,} images in a run, an account of"
        f" {PER_MINUTE:,} requests a minute in a bucket of {BURST}.\n"
    )
    yield "| workers | seconds | share of the rate | 429s | images done | paid twice |"
    yield "|---|---:|---:|---:|---:|---:|"
    for case in CASES:
        forms = {"seconds": ".1f", "share": ".1%", "refused": ".2%", "done": ",.0f", "twice": ".0f"}
        cells = [
            Spread.of([each[name] for each in found[case.name]]).text(form) for name, form in forms.items()
        ]
        yield f"| {case.name} | {' | '.join(cells)} |"
    few, many = (found[name] for name in SHARDS)
    sizes = list(SHARDS.values())
    more = SHARD_IMAGES // sizes[1] - SHARD_IMAGES // sizes[0]
    yield f"\nEach additional shard, from {SHARD_IMAGES} images in {' and in '.join(SHARDS)} on one worker:\n"
    yield "| seconds | CPU ms, scheduler | CPU ms, leader | CPU ms, worker |"
    yield "|---:|---:|---:|---:|"
    cells = [
        Spread.of([scale * (b[name] - a[name]) / more for a, b in zip(few, many, strict=False)]).text(form)
        for name, scale, form in (
            ("seconds", 1, ".3f"),
            ("scheduler", 1000, ".1f"),
            ("leader", 1000, ".1f"),
            ("worker", 1000, ".1f"),
        )
    ]
    yield f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure in rounds that alternate, and write the tables. A round takes minutes: the page needs one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options(parser, minutes=10)
    arguments = parser.parse_args()
    with workshop() as shop, PostgresServer() as postgres:
        runs = [
            *(Run(case.name, partial(at_limit, case, shop, postgres), 1) for case in CASES),
            *(Run(name, partial(in_shards, size, shop, postgres), 1) for name, size in SHARDS.items()),
        ]
        return record(FILE, runs, tables, arguments, sizes=[IMAGES, PER_MINUTE, STALL_S])


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    sys.exit(main())
