"""What one seed stands for: an API, a store, trouble, and deaths."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from imagemill.emulator.settings import Settings
from tests.simulation.object_store import StoreWeather
from tests.simulation.store_server import ServerWeather
from tests.simulation.vendor import NetworkWeather, base_url


@dataclass(frozen=True, slots=True)
class Death:
    """A process that dies at its point number ``at``, and what comes after: how it is resumed.

    With ``interrupt_after_s`` it is interrupted so many virtual seconds after its start, if it lives then,
    and with ``let_go_after_s`` once more so many seconds later.
    """

    at: int | None
    how: str
    interrupt_after_s: float | None = None
    let_go_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """A refresh of the output from a changed catalog: its prompts, by id. Its first process ends so."""

    prompts: dict[str, str]
    prune: bool
    dies: Death


@dataclass(frozen=True, slots=True)
class Account:
    """An account that a run buys from: its API, how the run is told of it, what it allows, and the way to it.

    ``share_usd`` is its part of the budget, in USD.
    """

    api: str
    settings: dict[str, Any]
    vendor: Settings
    network: NetworkWeather
    share_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """All that a simulation plays."""

    seed: int
    api: str = "together"
    api_settings: dict[str, Any] = field(default_factory=lambda: {"base_url": base_url(0)})
    store: str = "memory"
    prompts: list[str] = field(default_factory=lambda: ["a", "b", "c"])
    size: tuple[int, int] = (128, 128)
    concurrency: int | str = 4
    shard_size: int = 250
    max_cost_usd: float | None = None
    vendor: Settings = field(default_factory=Settings)
    network: NetworkWeather = field(default_factory=NetworkWeather)
    store_weather: StoreWeather = field(default_factory=StoreWeather)
    server_weather: ServerWeather = field(default_factory=ServerWeather)
    conditional: bool = True
    deaths: tuple[Death, ...] = ()
    disk_full: tuple[float, float] = (0.0, 0.0)
    clock_error_s: float = 0.0
    clock_jump: tuple[float, float] | None = None
    """After how many virtual seconds the machine's clock is set, and how wrong it is then, in seconds.

    S3 takes no requests from a machine whose clock is 15 minutes off.
    """
    second_after_s: float | None = None
    away_s: float = 0.0
    """How long a machine stays down after a death, in seconds."""
    measures: bool = False
    others: tuple[Account, ...] = ()
    """Further accounts, of a run over several routes."""
    share_usd: float | None = None
    """The first account's part of the budget, in USD."""
    route_policy: str = "fastest"
    retry_dies: Death | None = None
    """Once the run is over, its failed jobs are retried: by a process that ends so, then by others."""
    refresh: Refresh | None = None
    """What follows in the end."""

    @property
    def accounts(self) -> tuple[Account, ...]:
        """All accounts that the run buys from, in the order in which it names them."""
        first = Account(self.api, self.api_settings, self.vendor, self.network, self.share_usd)
        return first, *self.others

    @property
    def apis(self) -> frozenset[str]:
        """The APIs that the run buys from."""
        return frozenset(account.api for account in self.accounts)


_USUAL_APIS = {"together": 0.0027, "openai": 0.003, "fal": 0.003, "replicate": 0.003, "runware": 0.0013}
_MORE_APIS = {"bfl": 0.025, "cloudflare": 0.0006336}
APIS = {**_USUAL_APIS, **_MORE_APIS}
"""Synchronous, queued and client-named APIs, with their price in USD per megapixel or image."""

SYNCHRONOUS = frozenset({"together", "openai", "cloudflare"})
"""APIs that cannot be asked about a request whose answer was lost."""

UNLISTED = SYNCHRONOUS | {"bfl"}
"""APIs that cannot be asked about a request whose id was lost."""

CLIENT_NAMED = frozenset({"runware"})
"""APIs whose requests have names that the client derives from run, picture and attempt."""

LISTS = frozenset({"fal", "replicate"})
"""APIs that list past requests, whichever run sent them."""

LISTS_ENDED = frozenset({"fal"})
"""APIs that list a request only once it has ended."""

RENEWING = frozenset({"fal"})
"""APIs that give a fresh link to an old picture; elsewhere a picture is lost with its link."""

_FAULTS = (
    "400", "429", "500", "502", "503", "504", "truncated", "wrong_size", "black", "garbage", "flagged",
    "fail", "html", "wrong_shape", "timeout_after_charge", "expired_link", "hang",
)  # fmt: skip


SIZES = {"openai": (512, 512), "replicate": (448, 544), "bfl": (256, 256), "cloudflare": (1024, 1024)}
"""Width and height in pixels, where an API makes none of 128 x 128."""


SERVER_STORE = "postgresql://imagemill@db.simulated/jobs"
"""The address of a job store on a server."""


_ROUTES = ("together", "openai", "fal", "runware")
"""APIs that make one model, FLUX.1 [schnell], in one size."""


def price_usd(api: str, size: tuple[int, int]) -> float:
    """What a picture of this width and height in pixels costs at an API, in USD."""
    width, height = size
    return APIS[api] * (width * height / 1e6 if api in {"together", "runware"} else 1)


def drawn(seed: int) -> Scenario:
    """The scenario of a seed."""
    rng = random.Random(f"scenario:{seed}")
    later = random.Random(f"later:{seed}")  # what was added since: seeds without it are what they were
    api = rng.choice(list(_USUAL_APIS))
    if later.random() < 0.15:
        api = later.choice(list(_MORE_APIS))
    count = rng.randint(2, 8)
    prompts = [f"prompt {n}" for n in range(count)]
    if rng.random() < 0.3:
        prompts += rng.choices(prompts, k=2)
    settings = _api_settings(api, rng.choice([5.0, 20.0, 60.0]))
    size = SIZES.get(api, (128, 128))
    budget = None
    if rng.random() < 0.25:
        budget = price_usd(api, size) * rng.randint(1, count + 1) * 1.0001
    scenario = Scenario(
        seed,
        api=api,
        api_settings=settings,
        store=rng.choice(["memory", "sqlite"]),
        prompts=prompts,
        size=size,
        concurrency=rng.choice([1, 2, 4, "auto"]),
        shard_size=rng.choice([2, 250]),
        max_cost_usd=budget,
        vendor=_vendor(rng, seed),
        network=_network(rng),
        store_weather=_store_weather(rng),
        conditional=rng.random() < 0.85,
        deaths=_deaths(rng, count),
        disk_full=_window(rng) if rng.random() < 0.1 else (0.0, 0.0),
        clock_error_s=rng.choice([0.0, 0.0, -600.0, 45.0, 800.0]),
        clock_jump=(rng.uniform(0.0, 20.0), rng.choice([-850.0, 850.0])) if rng.random() < 0.15 else None,
        second_after_s=rng.uniform(0.0, 20.0) if rng.random() < 0.12 else None,
        measures=rng.random() < 0.08,
        retry_dies=_death(later, count) if later.random() < 0.3 else None,
        refresh=_refresh(later, prompts) if later.random() < 0.1 else None,
    )
    if scenario.second_after_s is not None:
        scenario = replace(scenario, away_s=rng.choice([0.0, 0.0, 100.0, 400.0]), refresh=None)
    newest = random.Random(f"newest:{seed}")
    if newest.random() < 0.2:
        name, share = newest.choice(["unheard", "echo"]), newest.choice([0.05, 0.2])
        scenario = replace(scenario, network=replace(scenario.network, **{name: share}))
    if scenario.disk_full[1] and newest.random() < 0.3:  # the disk fills with what the bucket does not take
        weather = replace(scenario.store_weather, away=((0.5, scenario.disk_full[1]),))
        scenario = replace(scenario, store_weather=weather)
    scenario = _with_returns(scenario, random.Random(f"return:{seed}"))
    scenario = _with_second_interrupts(scenario, random.Random(f"second interrupt:{seed}"))
    server = random.Random(f"server:{seed}")
    if server.random() < 0.15:
        scenario = replace(scenario, store=SERVER_STORE, server_weather=_server_weather(server))
    longer = random.Random(f"longer:{seed}")
    if longer.random() < (0.2 if scenario.store == SERVER_STORE else 0.01):
        scenario = _with_more_rows(scenario, longer)
    routes = random.Random(f"several:{seed}")
    return _over_routes(scenario, routes) if api in _ROUTES and routes.random() < 0.25 else scenario


def _api_settings(api: str, request_timeout_s: float, number: int = 0) -> dict[str, Any]:
    """How a run is told of its account of this number, from 0."""
    settings: dict[str, Any] = {"base_url": base_url(number), "request_timeout_s": request_timeout_s}
    if api == "runware":
        settings["usd_per_megapixel"] = APIS[api]
    elif api != "together":  # which has a list price that needs no vendor to be asked
        settings["usd_per_image"] = APIS[api]
    if api == "cloudflare":
        settings["account"] = "simulated"
    if api == "openai":
        settings["model"] = "black-forest-labs/FLUX.1-schnell"
    return settings


def _over_routes(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with further accounts, of which one may be away, run out of credit or spend its share."""
    accounts = [*scenario.accounts]
    for number in range(1, rng.choice([2, 2, 3])):
        api = rng.choice(_ROUTES)
        settings = _api_settings(api, rng.choice([5.0, 20.0, 60.0]), number)
        accounts.append(Account(api, settings, _vendor(rng, scenario.seed + number), _network(rng)))
    size = SIZES["openai"] if any(account.api == "openai" for account in accounts) else (128, 128)
    hit = rng.randrange(len(accounts))
    account = accounts[hit]
    match rng.choice(["away", "away", "credit", "share", ""]):
        case "away":
            account = replace(account, network=replace(account.network, away=_window(rng)))
        case "credit":
            account = replace(account, vendor=replace(account.vendor, credit_images=rng.randint(0, 3)))
        case "share":
            share_usd = price_usd(account.api, size) * rng.randint(1, 3) * 1.0001
            account = replace(account, share_usd=share_usd)
    accounts[hit] = account
    budget = scenario.max_cost_usd
    if budget is not None:
        dearest = max(price_usd(account.api, size) for account in accounts)
        budget = dearest * rng.randint(1, len(scenario.prompts) + 1) * 1.0001
    first, *others = accounts
    return replace(
        scenario,
        vendor=first.vendor,
        network=first.network,
        others=tuple(others),
        share_usd=first.share_usd,
        size=size,
        max_cost_usd=budget,
        route_policy=rng.choice(["fastest", "failover", "cheapest"]),
    )


def _death(rng: random.Random, count: int) -> Death:
    at = rng.randint(1, 60 + 22 * count) if rng.random() < 0.7 else None
    return Death(at, rng.choice(["restart", "restart", "power cut", "empty machine"]))


def _refresh(rng: random.Random, prompts: list[str]) -> Refresh:
    """A catalog with a row fewer, some with other prompts, and new ones."""
    changed = dict(enumerate(prompts))
    changed.pop(rng.randrange(len(prompts)))
    for number in rng.sample(sorted(changed), min(len(changed), rng.randint(0, 2))):
        changed[number] = f"changed prompt {number}"
    changed |= {len(prompts) + n: f"new prompt {n}" for n in range(rng.randint(0, 2))}
    named = {str(number): prompt for number, prompt in changed.items()}
    return Refresh(named, prune=rng.random() < 0.5, dies=_death(rng, len(named)))


def _vendor(rng: random.Random, seed: int) -> Settings:
    faults = {}
    if rng.random() < 0.5:
        for name in rng.sample(_FAULTS, rng.randint(1, 3)):
            faults[name] = rng.choice([0.05, 0.15, 0.3])
    limits: dict[str, Any] = {}
    if rng.random() < 0.4:
        limits = rng.choice(
            [
                {"max_concurrent": rng.randint(1, 3)},
                {"per_minute": rng.choice([30, 120]), "burst": 2},
                {"dynamic_per_minute": 60, "dynamic_window_s": 60.0},
                {"polls_per_minute": 60},
            ]
        )
    return Settings(
        latency_s=rng.choice([0.1, 0.5, 3.0]),
        latency_sigma=rng.choice([0.0, 0.35, 0.8]),
        faults=faults,
        seed=seed,
        hang_s=rng.choice([10.0, 100.0]),
        link_ttl_s=rng.choice([None, None, 5.0]),
        runware_repeats=rng.choice(["refused", "answered"]),
        **limits,
    )


def _network(rng: random.Random) -> NetworkWeather:
    if rng.random() < 0.35:
        return NetworkWeather()
    names = ("no_connection", "lost_request", "lost_answer", "cut_answer", "slow_answer", "repeated", "stale")
    chosen = {name: rng.choice([0.02, 0.08, 0.2]) for name in rng.sample(names, rng.randint(1, 3))}
    return NetworkWeather(latency_s=rng.choice([0.005, 0.05]), **chosen)


def _store_weather(rng: random.Random) -> StoreWeather:
    if rng.random() < 0.55:
        return StoreWeather(latency_s=rng.choice([0.005, 0.1]))
    names = ("refused", "lost", "lost_answer")
    chosen = {name: rng.choice([0.02, 0.1]) for name in rng.sample(names, rng.randint(1, 2))}
    away = (_window(rng),) if rng.random() < 0.3 else ()
    return StoreWeather(latency_s=0.02, away=away, **chosen)


def _server_weather(rng: random.Random) -> ServerWeather:
    weather = ServerWeather(latency_s=rng.choice([0.0005, 0.005, 0.03]))
    if rng.random() < 0.5:
        return weather
    lost, lost_answer = (rng.choice([0.0, 0.02, 0.1]) for _ in range(2))
    away = _window(rng) if rng.random() < 0.3 else (0.0, 0.0)
    return replace(weather, lost=lost, lost_answer=lost_answer, away=away)


def _with_returns(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same, where the run may go back to a machine that it has left for an empty one."""
    deaths: list[Death] = []
    for death in scenario.deaths:
        is_elsewhere = any(before.how == "empty machine" for before in deaths)
        returns = is_elsewhere and rng.random() < 0.5
        deaths.append(replace(death, how="machine that was left") if returns else death)
    return replace(scenario, deaths=tuple(deaths))


def _with_second_interrupts(scenario: Scenario, rng: random.Random) -> Scenario:
    deaths = [
        death
        if death.interrupt_after_s is None or rng.random() < 0.5
        else replace(death, let_go_after_s=rng.uniform(0.0, 3.0))
        for death in scenario.deaths
    ]
    return replace(scenario, deaths=tuple(deaths))


def _with_more_rows(scenario: Scenario, rng: random.Random) -> Scenario:
    """The same with a catalog of which most is not sent yet when a machine is lost."""
    count = rng.randint(12, 40)
    budget, per_row = scenario.max_cost_usd, count / len(scenario.prompts)
    return replace(
        scenario,
        prompts=[f"prompt {n}" for n in range(count)],
        max_cost_usd=None if budget is None else budget * per_row,
        deaths=tuple(
            replace(
                death, at=None if death.at is None else max(1, round(death.at * rng.uniform(0.1, per_row)))
            )
            for death in scenario.deaths
        ),
        refresh=None,
        second_after_s=None,  # it would wait for longer than it has patience
    )


def _deaths(rng: random.Random, count: int) -> tuple[Death, ...]:
    deaths = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        how = rng.choice(["restart", "restart", "restart", "power cut", "empty machine"])
        interrupted = rng.uniform(0.0, 8.0) if rng.random() < 0.2 else None
        at = None if interrupted is not None and rng.random() < 0.7 else rng.randint(1, 60 + 22 * count)
        deaths.append(Death(at, how, interrupted))
    return tuple(deaths)


def _window(rng: random.Random) -> tuple[float, float]:
    start = rng.uniform(0.0, 10.0)
    return start, start + rng.choice([1.0, 30.0, 200.0])
