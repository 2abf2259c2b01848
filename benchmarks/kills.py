"""Kills runs with SIGKILL at random moments and resumes them; prints a Markdown table.

    python -m benchmarks.kills [ROUNDS] [SEED]

ROUNDS of each job store on each API, by default 7: a synchronous one (together), two queued ones that answer
with links and list requests (fal only those that have ended), and one whose requests this client names
(runware). Each prompt is made in two sizes. A round starts ``imagemill run``, kills it one to three times,
and resumes it to its end under the same run id. Then jobs, bucket and the emulated API's bill are compared.
What an emulated API had begun when a process died, it makes and charges: so do real ones.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack

from benchmarks.workshop import Round, Size, Workshop, machine, wait_for, workshop
from imagemill.emulator import Emulator, Settings
from tests.servers import PostgresServer, RedisServer, url_of

PROVIDERS: dict[str, tuple[Size, Size]] = {
    "together": ((256, 256), (320, 256)),
    "fal": ((256, 256), (320, 256)),
    "replicate": ((512, 512), (448, 544)),
    "runware": ((256, 256), (320, 256)),
}
"""APIs, each with two sizes that it makes."""

COLUMNS = ("rounds", "kills", "jobs", "lost", "wrong", "twice", "in_flight", "unanswered", "failed_rounds")


def kill_round(shop: Workshop, provider: str, store: str, rng: random.Random) -> Counter[str]:
    """One round; its counts."""
    settings = Settings(
        latency_s=rng.uniform(0.1, 0.3), pictures="fast", max_concurrent=30, seed=rng.getrandbits(31)
    )
    with Emulator(settings) as emulated:
        prompts = [f"p{number}" for number in range(rng.randint(30, 75))]
        a_round = shop.round(emulated, provider, prompts, sizes=PROVIDERS[provider], store=store)
        kills = kill(a_round, rng, rng.randint(1, 3))
        ended = a_round.finish()
        settle(emulated)
        audit = a_round.audit()
    for line in ended.err.splitlines() if ended.code else ():
        print(f"  {a_round.name}: {line}", file=sys.stderr)
    print(f"{store.partition(':')[0]:10} {provider:8} {kills} kills {audit}", file=sys.stderr, flush=True)
    return Counter(
        rounds=1,
        kills=kills,
        jobs=audit.jobs,
        lost=audit.lost + len(a_round.wanted) - audit.jobs,
        wrong=audit.wrong + audit.failed,
        twice=audit.twice,
        in_flight=audit.in_flight,
        unanswered=ended.summary.get("unanswered", 0),
        failed_rounds=int(ended.code != 0),
    )


def kill(a_round: Round, rng: random.Random, times: int) -> int:
    """Start the run and kill it, again and again, at any moment; how often it lived long enough for that."""
    killed = 0
    for _ in range(times):
        process = a_round.start()
        before = a_round.emulated.bill()["images"]
        images = before + rng.randint(0, max(0, len(a_round.wanted) - before))
        if wait_for(lambda images=images: a_round.emulated.bill()["images"] >= images, process):  # type: ignore[misc]
            time.sleep(rng.uniform(0.0, 0.4))  # anywhere between two images, or while it publishes
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        settle(a_round.emulated)
    return killed


def settle(emulated: Emulator) -> None:
    """Let the API finish what it had begun."""
    while emulated.stats()["in_flight"]:
        time.sleep(0.01)


def main(rounds: int, seed: int) -> None:
    """Run all rounds, print the table."""
    rng = random.Random(seed)
    with ExitStack() as servers:
        shop = servers.enter_context(workshop())
        stores = {
            "memory": "memory",
            "sqlite": "sqlite",
            "postgres": url_of(servers.enter_context(PostgresServer())),
            "redis": url_of(servers.enter_context(RedisServer())),
        }
        rows = {
            (store, provider): sum(
                (kill_round(shop, provider, url, rng) for _ in range(rounds)), Counter[str]()
            )
            for store, url in stores.items()
            for provider in PROVIDERS
        }
    rows["all", ""] = sum(rows.values(), Counter[str]())
    print(f"`python -m benchmarks.kills {rounds} {seed}`, {machine()}.\n")
    print(
        "| store | API | rounds | kills | jobs | jobs lost | states wrong | images charged twice"
        " | of which in flight at a kill | unanswered, says the summary | rounds not ended with 0 |"
    )
    print("|---|---|" + "---:|" * len(COLUMNS))
    for (store, provider), counts in rows.items():
        print(f"| {store} | {provider} | " + " | ".join(f"{counts[c]:,}" for c in COLUMNS) + " |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
