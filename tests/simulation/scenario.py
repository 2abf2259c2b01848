"""What one seed stands for: an API, a store, trouble, and deaths."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from imagemill.emulator.settings import Settings
from tests.simulation.object_store import StoreWeather
from tests.simulation.vendor import BASE_URL, NetworkWeather


@dataclass(frozen=True, slots=True)
class Death:
    """A process that dies at its point number ``at``, and what comes after: how it is resumed.

    With ``interrupt_after_s`` it is interrupted so many virtual seconds after its start, if it lives then.
    """

    at: int | None
    how: str
    interrupt_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a simulation plays."""

    seed: int
    api: str = "together"
    api_settings: dict[str, Any] = field(default_factory=lambda: {"base_url": BASE_URL})
    store: str = "memory"
    prompts: list[str] = field(default_factory=lambda: ["a", "b", "c"])
    side: int = 128
    concurrency: int | str = 4
    shard_size: int = 250
    max_cost_usd: float | None = None
    vendor: Settings = field(default_factory=Settings)
    network: NetworkWeather = field(default_factory=NetworkWeather)
    store_weather: StoreWeather = field(default_factory=StoreWeather)
    conditional: bool = True
    deaths: tuple[Death, ...] = ()
    disk_full: tuple[float, float] = (0.0, 0.0)
    clock_error_s: float = 0.0
    second_after_s: float | None = None
    measures: bool = False


APIS = {"together": 0.0027, "fal": 0.003, "runware": 0.0013}


def drawn(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(f"scenario:{seed}")
    api = rng.choice(list(APIS))
    count = rng.randint(2, 8)
    prompts = [f"prompt {n}" for n in range(count)]
    if rng.random() < 0.3:
        prompts += rng.choices(prompts, k=2)
    deaths = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        how = rng.choice(["restart", "restart", "power cut", "empty machine"])
        deaths.append(Death(rng.randint(1, 60 + 22 * count), how))
    return Scenario(
        seed,
        api=api,
        store=rng.choice(["memory", "sqlite"]),
        prompts=prompts,
        concurrency=rng.choice([1, 2, 4, "auto"]),
        shard_size=rng.choice([2, 250]),
        vendor=Settings(
            latency_s=rng.choice([0.1, 0.5, 3.0]),
            max_concurrent=rng.choice([None, None, 1, 2, 3]),
            seed=seed,
            hang_s=100.0,
        ),
        deaths=tuple(deaths),
        measures=rng.random() < 0.08,
    )
