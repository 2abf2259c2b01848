"""The accounts that a run buys from, as its settings name them, and the routes to them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import anyio
import httpx

from imagemill.blocks.apis import ImageApi
from imagemill.blocks.apis.learning import learn_published
from imagemill.blocks.loading import image_api
from imagemill.catalog.makers import PictureMaker, makers_of, route_names
from imagemill.engine.breaker import Breaker
from imagemill.engine.cost_limit import CostLimit
from imagemill.engine.limits.leased_rate import EvenRate, JointRate, Rate
from imagemill.engine.limits.pacer import Limit, Pacer
from imagemill.engine.recorder import Recorder
from imagemill.engine.route import Route
from imagemill.engine.routes import Routes
from imagemill.engine.setup_fault import SetupFault
from imagemill.errors import InputError
from imagemill.jobs import Job
from imagemill.runs.folder import RunFolder
from imagemill.runs.log_replay import costs_of, last_lines
from imagemill.runs.remembered_limit import read_limit
from imagemill.runs.route_costs import count_in_shares
from imagemill.settings import ApiSettings, LimitSettings, RouteSettings, RunSettings
from imagemill.stores import JobStore, JobTotals

AnyApi = TypeVar("AnyApi", bound=ApiSettings)

_SUSPICIOUS_AFTER = 4
"""With other routes to turn to, one counts as down after this many failures in a row."""


@dataclass(frozen=True, slots=True)
class Account:
    """An API with the limits that the run sets for it. ``known`` is what it took in an earlier run."""

    name: str
    api: ImageApi
    concurrency: int | None
    per_minute: float | None
    share_usd: float | None = None
    known: Limit | None = None


def named_settings(settings: RunSettings) -> tuple[RunSettings, list[ImageApi]]:
    """The APIs of a run, and its settings with the names that blocks and defaults stand for.

    Raises:
        InputError: something that the settings name cannot be used.
    """
    if not settings.routes:
        refuse_given_up([], settings.execution.give_up)
        api = image_api(settings.api)
        return settings.model_copy(update={"api": _named(settings.api, api)}), [api]
    routes, apis = named_routes(settings.routes)
    refuse_given_up(routes, settings.execution.give_up)
    return settings.model_copy(update={"api": routes[0], "routes": routes}), apis


def named_routes(given: Sequence[RouteSettings]) -> tuple[list[RouteSettings], list[ImageApi]]:
    """The routes with their names, vendors and models, and the API of each.

    Raises:
        InputError: one cannot be used, or two are the same.
    """
    apis = [image_api(each) for each in given]
    routes = [_named(route, api) for route, api in zip(given, apis, strict=True)]
    names = route_names(routes)
    routes = [route.model_copy(update={"name": name}) for route, name in zip(routes, names, strict=True)]
    accounts = Counter((api.base_url, api.model, api.api_key.get_secret_value()) for api in apis)
    if max(accounts.values()) > 1:
        raise InputError("Two routes are the same account and model: a run over it once is as fast.")
    return routes, apis


def _named(given: AnyApi, api: ImageApi) -> AnyApi:
    return given.model_copy(update={"provider": api.provider, "model": api.model})


def refuse_given_up(routes: Sequence[RouteSettings], given_up: Collection[str]) -> None:
    """Check that the routes to give up are the run's, and not all of them.

    Raises:
        InputError: they are not, or they are all.
    """
    names = [route.name or "" for route in routes]
    if unknown := [name for name in given_up if name not in names]:
        there = f"its routes are {', '.join(names)}" if names else "it is over one API"
        raise InputError(f"The run has no route {unknown[0][:60]!r} to give up: {there}.")
    if names and not set(names) - set(given_up):
        raise InputError("All routes of the run are given up: leave one that makes the pictures.")


def maker_of(settings: RunSettings, apis: Sequence[ImageApi]) -> PictureMaker:
    """What makes the run's pictures, for its plan.

    Raises:
        InputError: the routes make different models, and the settings do not allow that.
    """
    if not settings.routes:
        return apis[0]
    return makers_of(settings.routes, apis, mix=settings.picture.mix_models)


def learn_models(settings: RunSettings, apis: Sequence[ImageApi], folder: RunFolder) -> None:
    """Let each API know what its vendor publishes of its model; kept in the run's folder."""
    names = [route.name for route in settings.routes] or [None]
    for name, api in zip(names, apis, strict=True):
        learn_published(api, folder.model_of(name))


def accounts_of(settings: RunSettings, apis: Sequence[ImageApi]) -> list[Account]:
    """The APIs with their limits, as the run's settings and earlier runs have them.

    Raises:
        InputError: a route's price must be known, and is not.
    """
    limits = settings.limits
    needing = {
        "--route-policy cheapest": limits.route_policy == "cheapest",
        "--max-cost": limits.max_cost_usd is not None,
        "approve_above_usd": limits.approve_above_usd is not None,
    }
    fixed = limits.concurrency if isinstance(limits.concurrency, int) else None
    if not settings.routes:
        known = read_limit(apis[0]) if fixed is None else None
        return [Account("", apis[0], fixed, limits.max_images_per_minute, known=known)]
    for route, api in zip(settings.routes, apis, strict=True):
        if api.has_price_rule:
            continue
        needing["its max_cost_usd"] = route.max_cost_usd is not None
        if needs := [name for name, is_set in needing.items() if is_set]:
            raise InputError(
                f"The price of route {route.name!r} is unknown, and {needs[-1]} needs one: set usd_per_image"
                " or usd_per_megapixel of the route."
            )
    return [
        Account(
            route.name or "",
            api,
            route.concurrency or fixed,
            route.max_images_per_minute,
            route.max_cost_usd,
            read_limit(api) if (route.concurrency or fixed) is None else None,
        )
        for route, api in zip(settings.routes, apis, strict=True)
    ]


def refuse_past_deadline(limits: LimitSettings) -> None:
    """Reject the deadline of a new run that has passed: all would be bought where it costs most.

    Raises:
        InputError: it has passed.
    """
    if limits.finish_by is not None and limits.finish_by <= datetime.now(UTC):
        raise InputError(
            f"--finish-by {limits.finish_by.isoformat()} has passed. Give a later time, or none at all."
        )


def pacer_of(account: Account, leased: Rate | None, joint: Rate | None) -> Pacer:
    """What finds and keeps an account's limit; ``joint`` is a rate that the run's accounts share."""
    own = leased or (EvenRate(account.per_minute) if account.per_minute else None)
    rate = JointRate(own, joint) if own is not None and joint is not None else own or joint
    return Pacer(
        account.concurrency,
        known=account.known,
        leased=rate,
        first_per_s=account.api.first_per_s,
        queues=account.api.queues,
    )


async def routes_to(
    accounts: Sequence[Account],
    pacers: Sequence[Pacer],
    clients: Sequence[httpx.AsyncClient],
    recorder: Recorder,
    store: JobStore,
    before: JobTotals,
    limits: LimitSettings,
    given_up: Collection[str] = (),
    *,
    log: Path,
) -> Routes:
    """The routes to the accounts of a run; nothing more is bought at, or asked of, those ``given_up``.

    ``before`` are the store's totals; ``log`` is the run's, which knows what jobs cost at routes that they
    have left.
    """
    several = len(accounts) > 1
    routes = [
        Route.of(
            account.api,
            http,
            pacer,
            Breaker(
                limits.outage_share,
                limits.outage_timeout_s,
                in_a_row=_SUSPICIOUS_AFTER if several else None,
            ),
            recorder,
            setup=SetupFault(limits.setup_fault_share, worked=before.done > 0 and not several),
            name=account.name,
            share=CostLimit(account.share_usd) if account.share_usd is not None else None,
        )
        for account, pacer, http in zip(accounts, pacers, clients, strict=True)
    ]
    for route in routes:
        if route.name in given_up:
            route.give_up()
    all_routes = Routes(
        routes,
        limits.route_policy,
        deadline=_deadline(limits),
        left=lambda: recorder.left,
    )
    await _count_spent(store, all_routes, log)
    return all_routes


async def _count_spent(store: JobStore, routes: Routes, log: Path) -> None:
    """Count what all jobs have cost, and may have cost, against the routes' parts of the budget."""
    if all(route.share is None for route in routes):
        return
    moved: list[Job] = []
    async for jobs in store.all_jobs():
        for job in jobs:
            if job.attempts > 1 or job.unanswered:
                moved.append(job)
            elif job.cost_usd:
                count_in_shares(routes, job, costs_of(job, None))
    lines = last_lines(log, [job.number for job in moved])
    for job in moved:
        count_in_shares(routes, job, costs_of(job, lines.get(job.number)))


def _deadline(limits: LimitSettings) -> float | None:
    """When the run should be finished, in monotonic seconds."""
    left_s = math.inf
    if limits.finish_by is not None:
        left_s = (limits.finish_by - datetime.now(UTC)).total_seconds()
    elif limits.max_hours is not None:
        left_s = 3600 * limits.max_hours
    return anyio.current_time() + left_s if left_s < math.inf else None
