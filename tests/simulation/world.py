"""Virtual time, and processes that run in it until they end or are killed.

Each process runs in greenlets of one thread, on one event loop. What blocks in reality (a call to S3, a
portal, a lock) switches to the loop until it is over, so that two processes interleave as they would on two
machines, in an order that the seed alone decides.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import random
import selectors
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import greenlet

T = TypeVar("T")

EPOCH = 1_790_000_000.0
"""When each simulation begins, in Unix seconds."""

LONGEST_S = 12 * 3600.0
"""Virtual seconds after which a simulation counts as stuck."""

MOST_STEPS = 400_000

_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated_process", default=None)
_asker: contextvars.ContextVar[Process | None] = contextvars.ContextVar("asking_process", default=None)


class Killed(BaseException):
    """The process is dead: nothing that it does has an effect. No ``except Exception`` catches it."""


class StuckError(Exception):
    """Nothing can happen any more, or far too much has."""


class _NoFiles(selectors.SelectSelector):
    """Nothing is waited for in files."""

    def select(self, timeout: float | None = None) -> list[Any]:
        del timeout
        return []


class _Loop(asyncio.SelectorEventLoop):
    """Jumps to the next timer; real scheduling, no real waiting."""

    def __init__(self) -> None:
        super().__init__(_NoFiles())

    now = 0.0
    steps = 0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        """What asyncio does in a step, without debugging and without looking at files."""
        self.steps += 1
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not ready:
            if not scheduled:
                raise StuckError("everything waits, and nothing will ever happen")
            self.now = max(self.now, scheduled[0]._when)
        if self.steps > MOST_STEPS or self.now > LONGEST_S:
            raise StuckError(f"{self.steps:,} steps, {self.now:,.0f} virtual seconds")
        due = self.now + self._clock_resolution  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._when < due:
            timer = heapq.heappop(scheduled)
            timer._scheduled = False
            ready.append(timer)
        for _ in range(len(ready)):  # what they add is for the next step
            handle = ready.popleft()
            if not handle._cancelled:
                handle._run()


class _Task(asyncio.Task[T]):
    """A task whose place in a set, such as anyio's, depends on when it was made and not on its address."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], *, number: int, **named: Any) -> None:
        self._number = number
        super().__init__(coroutine, **named)

    def __hash__(self) -> int:
        return self._number


class Machine:
    """A machine: its name, its boot, and how wrong its clock is, in seconds."""

    def __init__(self, name: str, clock_error_s: float = 0.0) -> None:
        self.name = name
        self.boots = 0
        self.clock_error_s = clock_error_s


class Process:
    """A process on a machine. It dies at its point number ``dies_at``, if it gets that far.

    A point is a moment at which something leaves the process or waits: a request, an answer, a write.
    """

    def __init__(
        self, world: World, machine: Machine, *, dies_at: int | None, on_death: Callable[[], None]
    ) -> None:
        self.world = world
        self.machine = machine
        self.dies_at = dies_at
        self.pid = world.next_pid()
        self.points = 0
        self.started_at = world.loop.now
        self.alive = True
        self.death: str | None = None
        self.greenlets: dict[greenlet.greenlet, None] = {}  # in order, which a set of them would not have
        self.tasks: set[asyncio.Task[Any]] = set()
        self._on_death = on_death

    def point(self, what: str) -> None:
        """Pass a point, or die there."""
        if not self.alive:
            raise Killed
        self.points += 1
        if self.points == self.dies_at:
            self.death = what
            self.world.met[f"death: {what}"] += 1
            self.alive = False
            self._on_death()
            self.world.reap(self)
            raise Killed

    def spawn(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a function in a greenlet of this process; its result."""
        world = self.world
        over: asyncio.Future[T] = world.loop.create_future()

        def main() -> None:
            _process.set(self)
            try:
                if not self.alive:  # killed before this began
                    raise Killed  # noqa: TRY301 - handed on
                result = function()
            except BaseException as error:  # noqa: BLE001 - handed on
                if not over.done():
                    over.set_exception(DiedError() if isinstance(error, Killed) else error)
                    over.exception()  # somebody may never ask
            else:
                if not over.done():
                    over.set_result(result)
            finally:
                del self.greenlets[made]

        made = greenlet.greenlet(main, parent=world.hub)
        self.greenlets[made] = None
        world.loop.call_soon(made.switch)
        return over


class DiedError(Exception):
    """The process of a greenlet was killed."""


class World:
    """The clock, the loop, the processes, and the draws of one seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"world:{seed}")
        self.uuids = random.Random(f"uuid:{seed}")
        self.loop = _Loop()
        self.loop.set_task_factory(self._make_task)
        self.hub = greenlet.getcurrent()
        self.thread = threading.get_ident()
        self.met: Counter[str] = Counter()
        self.trace: list[str] | None = None
        self._pids = 1000
        self._numbers = itertools.count()
        self.alive: dict[int, Process] = {}

    def next_pid(self) -> int:
        self._pids += 1
        return self._pids

    def note(self, what: str) -> None:
        """A line of the trace, where one is kept."""
        if self.trace is not None:
            process = _process.get()
            self.trace.append(f"{self.loop.now:10.3f} {process.pid if process else '-':>5} {what}")

    def close(self) -> None:
        """End what still runs outside of processes."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.call_soon(self.loop.stop)
        self.loop.steps = 0  # also where too many steps were the trouble
        self.loop.run_forever()
        self.loop.close()

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run the simulation's own coroutine to its end."""
        return self.loop.run_until_complete(main)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = _Task(coroutine, number=next(self._numbers), loop=loop, **named)
        process = _process.get()
        if process is not None:
            process.tasks.add(task)
            task.add_done_callback(process.tasks.discard)
        return task

    @property
    def process(self) -> Process | None:
        """The process that is running now; None for the world around."""
        return _process.get()

    @property
    def asker(self) -> Process | None:
        """The process whose request a server is working on."""
        return _asker.get()

    def point(self, what: str) -> None:
        """A point of the process that is running now."""
        process = _process.get()
        if process is not None:
            self.note(what)
            process.point(what)

    def wall(self) -> float:
        """Unix seconds, by the clock of whoever asks."""
        process = _process.get()
        return EPOCH + self.loop.now + (process.machine.clock_error_s if process else 0.0)

    def monotonic(self) -> float:
        """Seconds that only go forward."""
        return self.loop.now

    def wait(self, awaited: asyncio.Future[T]) -> T:
        """Block the greenlet that runs now until a future is done."""
        here = greenlet.getcurrent()
        if here is self.hub:
            raise RuntimeError("the event loop cannot wait for itself")
        awaited.add_done_callback(lambda _: here.dead or here.switch())
        self.hub.switch()
        process = _process.get()
        if process is not None and not process.alive:
            raise Killed
        return awaited.result()

    def sleep(self, seconds: float) -> None:
        """Block for so long; within the event loop, not at all."""
        if greenlet.getcurrent() is self.hub or seconds <= 0:
            return
        self.point("wait")
        over = self.loop.create_future()
        self.loop.call_later(seconds, lambda: over.done() or over.set_result(None))
        self.wait(over)

    def outside(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine that belongs to no process, and outlives them: a server's."""
        context = contextvars.copy_context()
        context.run(_process.set, None)
        return self.loop.create_task(coroutine, context=context)

    def outside_later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something that belongs to no process, after so long."""
        context = contextvars.copy_context()
        context.run(_asker.set, _process.get())
        context.run(_process.set, None)
        self.loop.call_later(seconds, action, context=context)

    def reap(self, process: Process) -> None:
        """See that all of a killed process ends, without effect and without a wait."""

        def end() -> None:
            for waiting in list(process.greenlets):
                # One that has not begun is false, and ends by itself: to throw into it would end it without
                # its `finally`, and raise here.
                if waiting and waiting is not greenlet.getcurrent():
                    waiting.throw(Killed)
            for task in list(process.tasks):
                task.cancel()
            if process.greenlets or process.tasks:
                self.loop.call_soon(end)

        context = contextvars.copy_context()
        context.run(_process.set, None)
        self.loop.call_soon(end, context=context)

    async def gone(self, process: Process) -> None:
        """Wait until nothing of a process is left."""
        steps = 0
        while process.greenlets or process.tasks:
            await asyncio.sleep(0.0 if steps < 1_000 else 0.01)  # threads may wait for answers
            steps += 1


async def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function, and await what it returns where that can be awaited."""
    result = function(*arguments)
    return await result if isinstance(result, Awaitable) else result
