"""The vendors: the emulator itself, on virtual time, behind a network that loses, repeats and delays."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from imagemill.emulator.bill import Bill, price
from imagemill.emulator.gallery import stamp
from imagemill.emulator.links import Link, Links
from imagemill.emulator.picture import draw
from imagemill.emulator.server import _application
from imagemill.emulator.settings import Settings
from imagemill.emulator.studio import Studio, Ticket
from tests.simulation.world import World

if TYPE_CHECKING:
    from imagemill.emulator.order import Order, Shot
    from tests.simulation.scenario import Account

_FIRST_PORT = 8700

_BROKEN = frozenset({"truncated", "wrong_size", "black", "garbage", "expired_link"})
"""Faults after which a picture that was charged can never be used: another may be bought."""

_ENDLESS = frozenset({"fal", "replicate"})
"""Queues in which a request that times out after its charge never ends; fal lists only what has ended."""

STAMP = re.compile(rb"[0-9a-f]{64}")
"""What makes each picture unique: the digest of what was asked for."""


def base_url(number: int) -> str:
    """Where the API of a run's account of this number is, from 0."""
    return f"http://127.0.0.1:{_FIRST_PORT + number}"


@dataclass(frozen=True, slots=True)
class Charge:
    """One picture on the bill: when it was asked for and made, its prompt, its price in 1e-10 USD.

    ``begun`` is when the process that asked for it started. ``whole``: whether it could be used. ``endless``:
    the vendor never says that it is made.
    """

    begun: float
    asked: float
    at: float
    prompt: str
    units: int
    whole: bool
    endless: bool


@dataclass(frozen=True, slots=True)
class NetworkWeather:
    """How likely each exchange with the API meets trouble, from 0 to 1; latencies in seconds."""

    latency_s: float = 0.02
    no_connection: float = 0.0
    lost_request: float = 0.0
    lost_answer: float = 0.0
    cut_answer: float = 0.0
    slow_answer: float = 0.0
    repeated: float = 0.0
    stale: float = 0.0
    unheard: float = 0.0
    """A queue's answer that it does not know a request, within seconds of taking it."""
    echo: float = 0.0
    """A gateway's answer in the API's place, which repeats the request's headers."""
    away: tuple[float, float] = (0.0, 0.0)
    """Virtual seconds from when to when nothing reaches the API."""


class DrawnOnce:
    """Pictures that are drawn once per size and only made unique, without threads."""

    _drawn: dict[Shot, bytes] = {}  # noqa: RUF012 - shared by all simulations: pictures never change

    async def picture(self, shot: Shot, *, fast: bool) -> bytes:
        del fast
        base = dataclasses.replace(shot, prompt="Simulated picture", steps=4, seed=0)
        if base not in self._drawn:
            self._drawn[base] = draw(base)
        return stamp(self._drawn[base], shot.digest)

    def stop(self) -> None:
        """Nothing is drawn in a thread."""

    def close(self) -> None:
        """Nothing is drawn in a thread."""


class _Links(Links):
    """Links that remember who came too late for a whole picture."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.missed: dict[str, str] = {}
        """By link, the prompts of whole pictures whose link was followed when it had expired."""

    def expired(self, link: Link) -> bool:
        over = super().expired(link)
        if over and link.fault not in _BROKEN:
            self.missed[link.url] = link.shot.prompt
        return over


class WatchedBill(Bill):
    """A bill that tells ``charged`` of each order when it grows."""

    def __init__(self, charged: Callable[[Order], None]) -> None:
        super().__init__()
        self._charged = charged

    def charge(self, order: Order) -> None:
        super().charge(order)
        self._charged(order)


class _Studio(Studio):
    """The emulator's inside, with pictures without threads and a bill that says when it grows."""

    def __init__(self, settings: Settings, world: World) -> None:
        super().__init__(settings, clock=world.monotonic)
        self._world = world
        self.gallery.close()
        self.gallery = DrawnOnce()  # type: ignore[assignment]
        self.links: _Links = _Links(self.picture, self.connections, self.stats, world.monotonic)
        self.links.ttl_s = settings.link_ttl_s
        self.bill = WatchedBill(self._note)
        self.charges: list[Charge] = []
        self.digests: dict[str, str] = {}
        self.on_charge: Callable[[], None] = lambda: None
        self._tickets: dict[int, Ticket] = {}
        self._asked: dict[int, tuple[float, float]] = {}

    def admit(self, order: Order, *, queues: bool = False, moves: bool = False) -> Ticket:
        ticket = super().admit(order, queues=queues, moves=moves)
        self._tickets[id(order)] = ticket
        asker, now = self._world.asker, self._world.loop.now
        self._asked[id(order)] = (asker.started_at if asker else now, now)
        if ticket.fault:
            self._world.met[f"API: {ticket.fault}"] += 1
        return ticket

    async def picture(self, shot: Shot) -> bytes:
        self.digests[shot.digest] = shot.prompt
        return await super().picture(shot)

    def _note(self, order: Order) -> None:
        fault = self._tickets[id(order)].fault
        endless = fault == "timeout_after_charge" and order.provider in _ENDLESS
        now = self._world.loop.now
        self.charges.append(
            Charge(
                *self._asked[id(order)],
                now,
                order.prompt,
                price(order),
                whole=fault not in _BROKEN,
                endless=endless,
            )
        )
        self._world.note(f"charged {order.prompt!r} at {order.provider} fault={fault}")
        self.on_charge()


class Vendor:
    """One account: what it was charged, and the way to it."""

    def __init__(self, world: World, account: Account, number: int) -> None:
        self.world = world
        self.account = account
        self.studio = _Studio(account.vendor, world)
        self.weather = NetworkWeather()
        self._app = _application(self.studio)
        self._rng = random.Random(f"network:{world.seed}{f':{number}' if number else ''}")
        self._answers: dict[str, tuple[int, list[tuple[bytes, bytes]], bytes]] = {}
        self.taken: list[tuple[float, bytes]] = []
        """What was posted and answered: when, in virtual seconds, and the answers."""
        self.at_work: set[asyncio.Task[None]] = set()

    @property
    def units(self) -> int:
        """The bill, in 1e-10 USD."""
        return sum(charge.units for charge in self.studio.charges)

    @property
    def missed(self) -> Counter[str]:
        """Whole pictures by prompt whose link had expired when it was followed."""
        return Counter(self.studio.links.missed.values())

    def slow(self, seconds: float) -> Counter[str]:
        """Whole pictures by prompt that took longer than so long, the wait in the queue included."""
        return Counter(
            charge.prompt
            for charge in self.studio.charges
            if charge.whole and (charge.endless or charge.at - charge.asked > seconds)
        )

    def remember(
        self, request: httpx.Request, status: int, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """Keep an answer for later trouble."""
        if request.method == "POST":
            self.taken.append((self.world.loop.now, body))
        elif not request.url.path.endswith("/stream"):
            self._answers[str(request.url)] = (status, headers, body)

    def has_just_taken(self, request: httpx.Request) -> bool:
        """Whether the API took the request that is asked about within the last five seconds."""
        since = self.world.loop.now - 5.0
        names = [*request.url.path.split("/"), *request.url.params.values()]
        ids = [name.encode() for name in names if len(name) >= 16]
        taken_at = [at for at, answer in self.taken if any(name in answer for name in ids)]
        return request.method == "GET" and bool(taken_at) and taken_at[0] >= since

    def is_away(self) -> bool:
        start, end = self.weather.away
        return start <= self.world.loop.now < end

    async def settle(self) -> None:
        """Wait until the API has finished all that it was asked for."""
        for _ in range(10_000):
            if not self.studio.limits.in_flight and not self.studio.limits.waiting:
                return
            await asyncio.sleep(1.0)


class Vendors:
    """All accounts that a run buys from."""

    def __init__(self, world: World, accounts: Sequence[Account]) -> None:
        self._world = world
        self._vendors = [Vendor(world, account, number) for number, account in enumerate(accounts)]

    def __iter__(self) -> Iterator[Vendor]:
        return iter(self._vendors)

    def at(self, url: httpx.URL) -> Vendor:
        """The one that serves an address."""
        return self._vendors[(url.port or 0) - _FIRST_PORT]

    @property
    def units(self) -> int:
        """All bills, in 1e-10 USD."""
        return sum(vendor.units for vendor in self)

    @property
    def charges(self) -> list[Charge]:
        """All that was charged."""
        return [charge for vendor in self for charge in vendor.studio.charges]

    def charged(self) -> Counter[str]:
        """Pictures charged by prompt, of those that could be used."""
        return Counter(charge.prompt for charge in self.charges if charge.whole)

    def prompt_of(self, picture: bytes) -> str | None:
        """The prompt that a picture was made for, by the stamp in it."""
        found = STAMP.search(picture)
        digest = found[0].decode() if found else ""
        return next((v.studio.digests[digest] for v in self if digest in v.studio.digests), None)

    def client(self, timeout_s: float) -> httpx.AsyncClient:
        """An HTTP client of a process."""
        return httpx.AsyncClient(transport=_Network(self), timeout=timeout_s)


@dataclass(slots=True)
class _Exchange:
    """A request on its way, and its answer as it comes."""

    request: httpx.Request
    started: asyncio.Future[tuple[int, list[tuple[bytes, bytes]]]]
    body: asyncio.Queue[bytes | httpx.ReadTimeout | None] = field(default_factory=asyncio.Queue)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def patience_s(self) -> float:
        """How long the client waits for the next bytes."""
        return float(self.request.extensions["timeout"]["read"])

    @property
    def status(self) -> int:
        """The answer's status, once it has begun; 0 where it never will."""
        lost = self.started.cancelled() or self.started.exception()
        return 0 if lost else self.started.result()[0]

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        """Status and headers of the answer."""
        late = self.started.get_loop().call_later(self.patience_s, self._give_up)
        try:
            return await self.started
        finally:
            late.cancel()

    async def part(self) -> bytes | None:
        """The next bytes of the answer's body; None at its end."""
        late = self.started.get_loop().call_later(self.patience_s, self.body.put_nowait, self._late())
        part = await self.body.get()
        late.cancel()
        if isinstance(part, httpx.ReadTimeout):
            raise part
        return part

    async def silence(self, seconds: float) -> None:
        """Nothing arrives for so long; the client may give up before."""
        await asyncio.sleep(min(seconds, self.patience_s))
        if seconds > self.patience_s:
            raise self._late()

    async def lose(self, after_s: float) -> None:
        """Let the whole answer be given, and nothing of it arrive."""
        while await self.part() is not None:
            pass
        await self.silence(after_s)
        raise httpx.ReadError("the connection was reset", request=self.request)

    def _late(self) -> httpx.ReadTimeout:
        return httpx.ReadTimeout("", request=self.request)

    def _give_up(self) -> None:
        if not self.started.done():
            self.started.set_exception(self._late())


def _unpassed(request: httpx.Request, fate: str) -> httpx.Response:
    """An answer to a request that does not get to the API."""
    if fate == "unheard":
        return httpx.Response(404, json={"detail": "There is no such request."}, request=request)
    headers = "; ".join(f"{name}: {value}" for name, value in request.headers.items())
    return httpx.Response(502, text=f"No upstream took {request.url} ({headers})", request=request)


class _Network(httpx.AsyncBaseTransport):
    def __init__(self, vendors: Vendors) -> None:
        self._vendors = vendors

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        vendor = self._vendors.at(request.url)
        world, rng, weather = vendor.world, vendor._rng, vendor.weather
        content = await request.aread()
        what = f"{request.method} {request.url.path.rpartition('/')[2][:12]}"
        world.point(f"API request: {request.method}")
        fate = self._fate(vendor, request)
        if fate:
            world.met[f"network: {fate.replace('_', ' ')}"] += 1
            world.note(f"{what}: {fate}")
        there, back = (weather.latency_s * rng.expovariate(1) for _ in range(2))
        if fate == "slow_answer":
            back += rng.choice([5.0, 20.0, 70.0])
        if fate == "no_connection":
            await asyncio.sleep(there)
            raise httpx.ConnectError("no connection", request=request)
        if fate == "stale" and str(request.url) in vendor._answers:
            await asyncio.sleep(there + back)
            status, headers, body = vendor._answers[str(request.url)]
            return httpx.Response(status, headers=headers, content=body, request=request)
        if fate in {"unheard", "echo"}:
            await asyncio.sleep(there + back)
            return _unpassed(request, fate)
        exchange = _Exchange(request, world.loop.create_future())
        if fate == "lost_request":
            await exchange.silence(rng.choice([1.0, 600.0]))
            raise httpx.ReadError("the connection was reset", request=request)
        world.outside_later(there, lambda: self._deliver(vendor, request, content, exchange))
        if fate == "repeated":
            world.outside_later(there + rng.expovariate(1), lambda: self._repeat(vendor, exchange, content))
        try:
            status, headers = await exchange.head()
            if fate == "lost_answer":
                await exchange.lose(rng.choice([0.0, 600.0]))
            await exchange.silence(back)
            world.point(f"API answer: {request.method}")
        except BaseException:
            exchange.left.set()
            raise
        return httpx.Response(
            status,
            headers=headers,
            stream=_Body(exchange, cut=fate == "cut_answer", request=request, vendor=vendor),
            request=request,
        )

    def _repeat(self, vendor: Vendor, exchange: _Exchange, content: bytes) -> None:
        """Deliver a request once more, unless its answer was a refusal: that is passed on, by any gateway."""
        if not exchange.started.done() or exchange.status < 400:
            again = _Exchange(exchange.request, vendor.world.loop.create_future())
            self._deliver(vendor, exchange.request, content, again)

    @staticmethod
    def _fate(vendor: Vendor, request: httpx.Request) -> str | None:
        weather, draw = vendor.weather, vendor._rng.random()
        if vendor.is_away():
            vendor.world.met["API away"] += 1
            return "no_connection" if draw < 0.5 else "lost_request"
        for name in ("no_connection", "lost_request", "lost_answer", "cut_answer", "slow_answer", "repeated",
                     "stale", "unheard", "echo"):  # fmt: skip
            share = getattr(weather, name)
            if draw < share:
                if name == "stale" and request.method != "GET":
                    return None
                if name == "unheard" and not vendor.has_just_taken(request):
                    return None
                # A network repeats what is safe to repeat; a client-named task is.
                if name == "repeated" and request.method != "GET" and b"taskUUID" not in request.content:
                    return None
                return name
            draw -= share
        return None

    def _deliver(self, vendor: Vendor, request: httpx.Request, content: bytes, exchange: _Exchange) -> None:
        task = vendor.world.loop.create_task(self._serve(vendor, request, content, exchange))
        vendor.at_work.add(task)
        task.add_done_callback(vendor.at_work.discard)

    @staticmethod
    async def _serve(vendor: Vendor, request: httpx.Request, content: bytes, exchange: _Exchange) -> None:
        sent = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port or 80),
            "client": ("127.0.0.1", 1),
            "root_path": "",
        }
        parts: list[bytes] = []
        started: tuple[int, list[tuple[bytes, bytes]]] | None = None

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": content, "more_body": False}
            await exchange.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = (message["status"], list(message.get("headers", [])))
                if not exchange.started.done():
                    exchange.started.set_result(started)
            elif body := message.get("body", b""):
                parts.append(body)
                exchange.body.put_nowait(body)

        try:
            await vendor._app(scope, receive, send)
        finally:
            lost = httpx.RemoteProtocolError("the connection was closed", request=request)
            if started is None:
                if not exchange.started.done():
                    exchange.started.set_exception(lost)
                    exchange.started.exception()
            else:
                vendor.remember(request, *started, b"".join(parts))
            exchange.body.put_nowait(None)


class _Body(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange, *, cut: bool, request: httpx.Request, vendor: Vendor) -> None:
        self._exchange = exchange
        self._cut = cut
        self._request = request
        self._vendor = vendor

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self._exchange.part()) is not None:
            if self._cut:
                yield part[: len(part) // 2]
                raise httpx.RemoteProtocolError("the connection was closed", request=self._request)
            yield part
            self._vendor.world.point("API answer: body")

    async def aclose(self) -> None:
        self._exchange.left.set()
