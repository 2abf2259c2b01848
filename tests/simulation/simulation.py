"""One simulation: a run that is killed, resumed and finished, and what must be true of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import random
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest import mock

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import imagemill.stores.sql
from imagemill import pipeline
from imagemill.engine.engine import StopKind
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import Job
from imagemill.runs.session import Session, open_session
from imagemill.runs.summary import RunSummary
from imagemill.settings import RunSettings
from imagemill.tasks.prepare import Prepared, left_to_do, prepare
from imagemill.tasks.reopen_failed import reopen_failed
from tests.simulation import disk as disks
from tests.simulation.invariants import Violation, check_end, check_written
from tests.simulation.object_store import Bucket, StoreWeather
from tests.simulation.process import outside_world, scene
from tests.simulation.scenario import SERVER_STORE, Account, Death, Scenario
from tests.simulation.store_server import ServerStore, ServerWeather, StoreServer
from tests.simulation.vendor import NetworkWeather, Vendor, Vendors
from tests.simulation.world import DiedError, Machine, Process, World

PREFIX = "out"
MOST_TRIES = 12
_SEEDS_A_COLLECTION = 100

_MAY_REFUSE = (
    "is writing to", "Another run has just begun", "is being worked on", "cannot be reached", "HTTP 503",
    "does not take images", "does not let", "(Postgres at db.simulated:5432) cannot be used",
)  # fmt: skip
"""Words with which a run may refuse to begin: another run is at work, or a server is away."""


@dataclass
class Ending:
    """How one process ended."""

    process: Process
    summary: RunSummary | None = None
    stopped: StopKind | None = None
    jobs: list[Job] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def died(self) -> bool:
        return not self.process.alive


@dataclass
class Report:
    """What one simulation brought."""

    seed: int
    met: Counter[str]
    violations: list[str]
    points: int
    trace: list[str] | None

    @property
    def command(self) -> str:
        return f"python -m tests.simulation {self.seed}"


class _NoArtifacts:
    def conclude(self, _: RunSummary) -> None:
        """Nobody watches."""


class Simulation:
    """A scenario, played."""

    def __init__(self, scenario: Scenario, home: Path, *, trace: bool = False) -> None:
        self.scenario = scenario
        self.world = world = World(scenario.seed)
        world.trace = [] if trace else None
        self.home = home
        self.catalog = home / "catalog.parquet"
        self.changed_catalog = home / "changed.parquet"
        self.bucket = Bucket(world, conditional=scenario.conditional)
        self.vendors = Vendors(world, scenario.accounts)
        self.violations: list[str] = []
        self.rng = random.Random(f"simulation:{scenario.seed}")
        self.endings: list[Ending] = []
        self.machines_lost = 0
        self.left: list[Machine] = []
        """Machines that the run has left for others, with their disks."""
        self.power_cuts = 0
        self.session: Session | None = None
        self.ended_on_full_disk = False
        self.overtaken: set[float] = set()
        """When processes started that lost their lease to another run, whether or not they noticed."""
        self._at_work: dict[str, Process] = {}
        self._holder: str | None = None
        self.kept: set[tuple[str, str]] = set()
        """Runs and prompts of pictures on the disk of a process that stopped: no other run knows of them."""
        self.store_server = StoreServer(scenario.seed)
        scene.world, scene.bucket, scene.vendors = world, self.bucket, self.vendors
        scene.store_server, scene.home = self.store_server, home
        scene.measures = scenario.measures
        self.bucket.written = self._written
        for vendor in self.vendors:
            vendor.studio.on_charge = partial(self._check_budget, vendor)

    def _guard(self, check: Callable[..., None], *arguments: object) -> None:
        try:
            check(*arguments)
        except Violation as violation:
            self.violations.append(str(violation))

    def _written(self, name: str, content: bytes) -> None:
        self._guard(check_written, self, name, content)
        if name == f"{PREFIX}/refresh.lease":
            before, self._holder = self._holder, orjson.loads(content)["holder"]
            process = self._at_work.get(before or "")
            if self._holder not in {None, before} and process is not None and process.pid in self.world.alive:
                self.overtaken.add(process.started_at)

    def _check_budget(self, vendor: Vendor) -> None:
        if self.forgets:
            return
        runs = 1 + (self.scenario.second_after_s is not None) + (self.scenario.refresh is not None)
        for who, limit_usd, units in (
            ("the APIs", self.scenario.max_cost_usd, self.vendors.units),
            (vendor.account.api, vendor.account.share_usd, vendor.units),
        ):
            if limit_usd is not None and units / 1e10 > runs * limit_usd + 1e-9:
                words = f"{units / 1e10:.6f} USD of at most {runs * limit_usd:.6f}"
                self.violations.append(f"{who} charged {words}")

    @property
    def forgets(self) -> bool:
        """Whether what was known of requests in flight may be lost.

        With a machine or in a power cut while the bucket was away, or where the disk was full and the bucket
        away, too, or the disk stayed full until the process had ended.
        """
        full = self.world.met["disk: full"] and (self.is_bucket_away or self.ended_on_full_disk)
        return bool(((self.machines_lost or self.power_cuts) and self.is_bucket_away) or full)

    @property
    def is_bucket_away(self) -> bool:
        """Whether the bucket has had any trouble."""
        return any(what.startswith("bucket") for what in self.world.met)

    @property
    def loses_pictures(self) -> bool:
        """Whether neither bucket nor disk may have taken a picture, and its link has expired since."""
        expires = any(account.vendor.link_ttl_s is not None for account in self.scenario.accounts)
        return expires and self.is_bucket_away and bool(self.world.met["disk: full"])

    # One process

    def settings(self, run_id: str) -> RunSettings:
        scenario = self.scenario
        refresh, catalog = scenario.refresh, self.catalog
        more: dict[str, object] = {}
        if run_id == "refresh" and refresh is not None:
            more = {"refresh": {"allow_loss": True, "prune_after_days": 0.0}, "prune": refresh.prune}
            catalog = self.changed_catalog
        return RunSettings.model_validate(
            {
                "run_id": run_id,
                "catalog": str(catalog),
                **more,
                "api": {"provider": scenario.api, **scenario.api_settings},
                "routes": [self._route(account) for account in scenario.accounts] if scenario.others else [],
                "output": f"s3://bucket/{PREFIX}",
                "picture": dict(zip(("width", "height"), scenario.size, strict=True)),
                "limits": {
                    "concurrency": scenario.concurrency,
                    "max_cost_usd": scenario.max_cost_usd,
                    "route_policy": scenario.route_policy,
                    "outage_timeout_s": 60.0,
                },
                "execution": {"store": scenario.store, "shard_size": scenario.shard_size},
            }
        )

    @staticmethod
    def _route(account: Account) -> dict[str, object]:
        named = {"provider": account.api, "family": "flux.1-schnell", "max_cost_usd": account.share_usd}
        return {**named, **account.settings}

    def start(
        self, run_id: str, machine: Machine, dies_at: int | None, *, retries: bool = False
    ) -> tuple[Ending, asyncio.Future[None]]:
        """Start a process that works on a run, resumes it, or retries its failed jobs."""
        world = self.world
        folder = self.home / machine.name / "runs" / run_id
        saved = self.home / f"saved-{machine.name}-{run_id}"

        def remember() -> None:
            disks.disk.save(folder, saved)

        process = Process(world, machine, dies_at=dies_at, on_death=remember)
        world.alive[process.pid] = self._at_work[run_id] = process
        ending = Ending(process)
        settings = self.settings(run_id)

        def main() -> None:
            try:
                with open_session(settings) as session:
                    run = pipeline.Run(session, _NoArtifacts(), None)  # type: ignore[arg-type]
                    if run_id == "run":
                        self.session = session
                    prepared = _reopened(session) if retries else prepare.fn(session)
                    pipeline.generate(run, prepared)
                    ending.summary = pipeline.finish(run, prepared)
                    stopped = session.engine.stopped
                    ending.stopped = stopped.kind if stopped else None

                    async def jobs() -> list[Job]:
                        return [job async for batch in session.store.all_jobs() for job in batch]

                    ending.jobs = session.wait(jobs)
            except (InputError, StoreUnavailableError) as error:
                ending.error = error

        async def until_gone() -> None:
            over = process.spawn(main)
            with contextlib.suppress(DiedError):
                try:
                    await over
                except DiedError:
                    raise
                except Exception as error:  # noqa: BLE001 - a traceback is what is looked for
                    ending.error = error
            await world.gone(process)
            del world.alive[process.pid]
            if not process.alive:
                disks.disk.restore(saved, folder)
            self._note_kept(run_id, folder)
            process.alive = False if process.death else process.alive
            stopped = ending.summary and ending.summary.stopped
            self._note_end()
            world.note(f"ended: {process.death or ending.error or stopped or 'well'}")

        return ending, world.outside(until_gone())

    def _note_end(self) -> None:
        begun, ended = disks.disk.full
        self.ended_on_full_disk |= begun <= self.world.loop.now < ended

    def _note_kept(self, run_id: str, folder: Path) -> None:
        """Note the pictures that a process has left on its disk."""
        for file in folder.glob("unsaved/*"):
            if prompt := self.vendors.prompt_of(file.read_bytes()):
                self.kept.add((run_id, prompt))

    # The whole

    async def play(self) -> None:
        scenario, world = self.scenario, self.world
        machine = Machine("machine-0", scenario.clock_error_s)
        self.weather(on=True)
        world.met["several routes"] += bool(scenario.others)
        world.met["store on a server"] += scenario.store == SERVER_STORE
        deaths = list(scenario.deaths)
        if scenario.clock_jump is not None:
            self.world.outside_later(scenario.clock_jump[0], lambda: self._jump(machine, scenario.clock_jump))
        other: asyncio.Future[None] | None = None
        if scenario.second_after_s is not None:
            other = world.outside(self._second(scenario.second_after_s))
        tries = 0
        while tries < MOST_TRIES:
            death = deaths.pop(0) if deaths else None
            if death is None:
                self.weather(on=False)
            ending, over = self.start("run", machine, death.at if death else None)
            self.session = None
            if death is not None and death.interrupt_after_s is not None:
                world.outside_later(death.interrupt_after_s, partial(self._interrupt, death.let_go_after_s))
            await over
            self.endings.append(ending)
            self._check_ending(ending)
            if not ending.process.alive and death is not None:
                machine = self._after_death(machine, death.how)
                await asyncio.sleep(scenario.away_s)
                continue
            if death is None and self._is_over(ending):
                break
            waits = other is not None and not other.done() and "is writing to" in str(ending.error)
            tries += not waits  # the other ends, or its own tries do
            await asyncio.sleep(30.0)
        else:
            self._does_not_end()
        if other is not None:
            await other
        await self._follow_ups(machine)
        for vendor in self.vendors:
            await vendor.settle()
        self._guard(check_end, self)

    async def _follow_ups(self, machine: Machine) -> None:
        """What follows once the run is over: its failed jobs are retried, its catalog is refreshed."""
        scenario = self.scenario
        if scenario.retry_dies is not None and any(job.retryable for job in self.endings[-1].jobs):
            self.world.met["retry-failed"] += 1
            machine = await self._follow_up("run", machine, scenario.retry_dies, retries=True)
        if scenario.refresh is not None:
            self.world.met["refresh"] += 1
            await self._follow_up("refresh", machine, scenario.refresh.dies)

    async def _follow_up(
        self, run_id: str, machine: Machine, dies: Death, *, retries: bool = False
    ) -> Machine:
        """Work on a run until it is over, by processes of which the first may die; the last one's machine."""
        death: Death | None = dies
        for _ in range(MOST_TRIES):
            ending, over = self.start(run_id, machine, death.at if death else None, retries=retries)
            await over
            self.endings.append(ending)
            self._check_ending(ending)
            if not ending.process.alive and death is not None:
                machine = self._after_death(machine, death.how)
            elif self._is_over(ending):
                return machine
            death = None
            retries = retries and ending.stopped is None  # else it said that a resume goes on
            await asyncio.sleep(30.0)
        self._does_not_end()
        return machine

    def _does_not_end(self) -> None:
        self.violations.append(f"does not end: {self.endings[-1].error or self.endings[-1].summary}")

    async def _second(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        for _ in range(MOST_TRIES):
            ending, over = self.start("second", Machine("machine-second"), None)
            await over
            self._check_ending(ending)
            if self._is_over(ending):
                self.endings.append(ending)
                return
            self.world.met["two at once: refused"] += isinstance(ending.error, InputError)
            await asyncio.sleep(60.0)

    def _interrupt(self, let_go_after_s: float | None) -> None:
        session = self.session
        if session is not None and session.engine.stopped is None:
            self.world.met["interrupt"] += 1
            session.engine.stop(StopKind.INTERRUPTED, "Interrupted.")
            if let_go_after_s is not None:
                self.world.met["second interrupt"] += 1
                self.world.outside_later(let_go_after_s, session.engine.let_go)

    def _jump(self, machine: Machine, jump: tuple[float, float] | None) -> None:
        if jump is not None:
            self.world.met["clock jump"] += 1
            machine.clock_error_s = jump[1]

    def _after_death(self, machine: Machine, how: str) -> Machine:
        self.world.met[f"after death: {how}"] += 1
        if how == "power cut":
            self.power_cuts += 1
            machine.boots += 1
            disks.disk.cut_power(self.home / machine.name)
        elif how == "empty machine":
            self.machines_lost += 1
            self.left.append(machine)
            return Machine(f"machine-{self.machines_lost}", self.scenario.clock_error_s)
        elif how == "machine that was left" and self.left:
            self.machines_lost += 1
            self.left.append(machine)
            return self.left.pop(0)
        return machine

    def _is_over(self, ending: Ending) -> bool:
        if ending.summary is None:
            return False
        if ending.stopped is StopKind.OUT_OF_BUDGET:
            return True
        return ending.stopped is None and ending.summary.pending == 0

    def _check_ending(self, ending: Ending) -> None:
        error = ending.error
        if error is not None and not isinstance(error, InputError | StoreUnavailableError):
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "/imagemill/" in f.filename]
            lines = "".join(traceback.format_list(frames[-3:]))
            self.violations.append(f"a traceback: {type(error).__name__}: {error}\n{lines}")
        if isinstance(error, InputError) and not self._may_refuse(str(error)):
            self.violations.append(f"refused: {error}")

    @staticmethod
    def _may_refuse(words: str) -> bool:
        return any(known in words for known in _MAY_REFUSE)

    def weather(self, *, on: bool) -> None:
        """Trouble, as the scenario has it, or none."""
        scenario = self.scenario
        self.bucket.weather = scenario.store_weather if on else StoreWeather()
        self.store_server.weather = scenario.server_weather if on else ServerWeather()
        for vendor in self.vendors:
            vendor.weather = vendor.account.network if on else NetworkWeather()
            if not on:
                vendor.studio.configure(replace(vendor.account.vendor, faults={}, credit_images=None))
        disks.disk.full = scenario.disk_full if on else (0.0, 0.0)

    def write_catalog(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        rows = self.scenario.prompts
        pq.write_table(pa.table({"id": [str(n) for n in range(len(rows))], "prompt": rows}), self.catalog)
        if self.scenario.refresh is not None:
            changed = self.scenario.refresh.prompts
            table = pa.table({"id": list(changed), "prompt": list(changed.values())})
            pq.write_table(table, self.changed_catalog)

    def prompts_of(self, run_id: str) -> set[str]:
        """What a run is to make."""
        refresh = self.scenario.refresh
        return set(refresh.prompts.values() if run_id == "refresh" and refresh else self.scenario.prompts)


def _reopened(session: Session) -> Prepared:
    """What the flow ``retry_failed`` prepares."""
    reopen_failed.fn(session, permanent=False)
    prepared = prepare.fn(session)
    reopen_failed.fn(session, permanent=False, prepared=True)
    unfinished = session.wait(session.store.unfinished_numbers)
    return left_to_do(session, prepared.counts, unfinished, prepared.loss, prepared.newer)


@contextmanager
def simulator(home: Path) -> Iterator[Callable[..., Report]]:
    """A function that plays scenarios, with all that they need put in place; files are below ``home``."""
    logging.getLogger("imagemill").setLevel(logging.CRITICAL)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    pa.set_cpu_count(1)  # a pool of threads per small file costs more than the file
    scene.world = World(0)
    gc.freeze()
    gc.disable()  # it takes a fifth of the time, and what is collected when would not replay
    count = itertools.count(1)
    with (
        outside_world(home),
        mock.patch.object(imagemill.stores.sql, "PostgresStore", ServerStore),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")

        def play(scenario: Scenario, *, trace: bool = False) -> Report:
            if next(count) % _SEEDS_A_COLLECTION == 0:
                gc.collect()
            with disks.simulated_disk(home, random.Random(f"disk:{scenario.seed}")):
                simulation = Simulation(scenario, home, trace=trace)
                world = simulation.world
                simulation.write_catalog()
                try:
                    world.run(simulation.play())
                except Exception as error:  # noqa: BLE001 - stuck, or the simulator's own fault
                    lines = "".join(traceback.format_exception(error)[-4:])
                    simulation.violations.append(f"{type(error).__name__}: {error}\n{lines}")
                for ending in simulation.endings:
                    for job in ending.jobs:
                        world.note(
                            f"{job.id} {job.prompt!r} {job.status} attempts={job.attempts}"
                            f" cost={job.cost_usd} unanswered={job.unanswered} reused={job.reused}"
                            f" id={job.request_id} {job.error_code}"
                        )
                points = sum(ending.process.points for ending in simulation.endings)
                world.close()
                return Report(scenario.seed, world.met, simulation.violations, points, world.trace)

        yield play
    gc.enable()
    scene.world.loop.close()
