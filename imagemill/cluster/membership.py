"""The processes that work on one run: one leads it, the others process shards.

Every second, each process posts a note to the run's board and reads the others' notes. This way a stop
reaches all of them, each knows its share of the rate, the leader sees the progress of all, and shards of a
dead process are recognized.
"""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio

from imagemill.engine.engine import Engine, StopKind
from imagemill.engine.limits.leased_rate import LeasedRate
from imagemill.engine.recorder import Recorder
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.stores import Board, Note, Shard

BEAT_S = 1.0
STALE_S = 6.0
"""A process whose note is older than this, in seconds, is considered dead."""
LEADER_STALE_S = 30.0
"""The others stop after this many seconds without the leader."""


def member_name() -> str:
    """A name for this process that is safe in file names."""
    host = "".join(c if c.isalnum() else "-" for c in socket.gethostname())
    return f"{host}-{os.getpid()}-{uuid.uuid4().hex[:4]}"


class Membership:
    """One process's membership in a run. Call all methods on the run's event loop."""

    def __init__(
        self,
        board: Board,
        name: str,
        *,
        leads: bool,
        engine: Engine,
        recorder: Recorder,
        rates: Sequence[LeasedRate] = (),
    ) -> None:
        self._board = board
        self.name = name
        self._leads = leads
        self._engine = engine
        self._recorder = recorder
        self._rates = rates
        self._epoch = uuid.uuid4().hex if leads else ""
        self._claimed: list[Shard] = []
        self._expected = 1
        self._beats = 0
        self._taken: list[Shard] = []
        self._posted_at = float("inf")
        self.stranded: dict[str, str] = {}
        """Why jobs have no route left, by the process that had them."""
        self.over = anyio.Event()
        """Set when the leader has ended or is dead."""

    async def join(self) -> None:
        """Join the run. A leader first waits until the processes of an earlier session have left.

        Raises:
            InputError: they do not leave, or the run has no leader.
        """
        await (self._take_the_lead() if self._leads else self._report_to_the_leader())
        self._share_out(await self._exchange())

    async def _take_the_lead(self) -> None:
        with anyio.move_on_after(LEADER_STALE_S) as patience:
            while any(map(_is_fresh, await self._others())):  # noqa: ASYNC110 - the board is asked
                await anyio.sleep(BEAT_S / 2)
        if patience.cancelled_caught:
            raise InputError("Other machines are still working on this run. Wait for them, or stop them.")
        await self._board.clear_board()

    async def _report_to_the_leader(self) -> None:
        leader = _leader(await self._exchange())
        if leader is None:
            raise InputError("This run has no leader any more. Resume it.")
        self._epoch = leader.content["epoch"]
        self._expected = leader.content["expected"]

    async def expect(self, processes: int) -> None:
        """Announce the number of processes that will work on the run."""
        self._expected = max(1, processes)
        await self._exchange()

    async def leave(self) -> None:
        """Remove this process's note; a leader removes all notes, which ends the others."""
        try:
            if self._leads:
                await self._board.clear_board()
            else:
                await self._board.exchange(self.name, None)
        except StoreUnavailableError:
            pass  # the note becomes stale, which has the same effect

    async def keep_exchanging(self, changed: Callable[[], None]) -> None:
        """Exchange notes every second, and immediately when this process stops, until cancelled."""
        announced = False
        while True:
            with anyio.move_on_after(BEAT_S):
                await (anyio.sleep_forever() if announced else self._engine.until_stopping())
            announced = self._engine.stopped is not None
            try:
                self._apply(await self._exchange())
            except StoreUnavailableError as error:
                self._engine.stop(StopKind.UNAVAILABLE, str(error))
                self.over.set()
            changed()

    async def claim(self, shard: Shard) -> bool:
        """Claim a shard; whether another process had claimed it before. Waits while that one is alive."""
        before = False
        while True:
            others = [note for note in await self._others() if list(shard) in note.content["shards"]]
            before = before or bool(others)
            if not any(map(_is_fresh, others)):
                self._claimed.append(shard)
                self._taken += [shard] if before else []
                self._apply(await self._exchange())
                if shard in self._claimed:  # its former holder has not come back meanwhile
                    return before
            await anyio.sleep(BEAT_S / 2)

    async def release(self, shard: Shard) -> None:
        """Release a shard that is finished or given up."""
        if shard in self._claimed:
            self._claimed.remove(shard)
        await self._exchange()

    async def owns(self, number: int) -> bool:
        """Whether the job of this number is in a claimed shard that no other process took over.

        Others take over the shards of a process that has posted no note for some seconds. One that stood
        still that long finds out here, before it buys anything.
        """
        if self._is_late:
            self._apply(await self._exchange())
        return any(shard.first <= number <= shard.last for shard in self._claimed)

    @property
    def _is_late(self) -> bool:
        return anyio.current_time() - self._posted_at > STALE_S - BEAT_S

    async def _others(self) -> list[Note]:
        return [note for note in await self._exchange() if note.owner != self.name]

    async def _exchange(self) -> list[Note]:
        """Post this process's note and read all; gives up shards that another process has by now."""
        begun, late = anyio.current_time(), self._is_late
        notes = await self._post()
        if late:
            notes = await self._post()  # a claim that was being posted at that moment is there now
        others = [note for note in notes if note.owner != self.name]
        lost = [shard for note in filter(_is_fresh, others) for shard in note.content["shards"]]
        if late:
            # Who took a shard over may have finished it since, or stand still itself. A dead process of which
            # this one took it still has it in its note, but not as taken.
            lost += [shard for note in others for shard in note.content["taken"]]
        self._claimed = [shard for shard in self._claimed if list(shard) not in lost]
        self._taken = [shard for shard in self._taken if shard in self._claimed or list(shard) not in lost]
        self._posted_at = begun
        return notes

    async def _post(self) -> list[Note]:
        stopped, stranded = self._engine.stopped, self._engine.stranded
        return await self._board.exchange(
            self.name,
            {
                "epoch": self._epoch,
                "leads": self._leads,
                "expected": self._expected,
                "stopped": [stopped.kind.value, stopped.reason] if stopped else None,
                "stranded": stranded.reason if stranded else None,
                "shards": [list(shard) for shard in self._claimed],
                "taken": [list(shard) for shard in self._taken],
                "tally": self._recorder.tally(),
            },
        )

    def _apply(self, notes: list[Note]) -> None:
        self._beats += 1
        notes = [n for n in notes if n.content["epoch"] == self._epoch or n.content["leads"]]
        leader = _leader(notes)
        if not self._leads and (
            leader is None or leader.content["epoch"] != self._epoch or leader.age_s > LEADER_STALE_S
        ):
            if self._claimed:
                self._engine.stop(StopKind.INTERRUPTED, "The process that leads the run has disappeared.")
            self.over.set()
            return
        for note in notes:
            if note.owner != self.name and (stop := note.content["stopped"]):
                self._engine.stop(StopKind(stop[0]), stop[1])
        if self._leads:
            self.stranded |= {n.owner: reason for n in notes if (reason := n.content["stranded"])}
            self._recorder.follow([n.content["tally"] for n in notes if not n.content["leads"]])
        self._share_out(notes)

    def _share_out(self, notes: list[Note]) -> None:
        """Take this process's part of the account's rate, and of the jobs that are left."""
        working = sum(1 for n in notes if n.content["shards"] and _is_fresh(n))
        # In the first seconds, the others may not have joined yet.
        part = 1.0 / max(1, working, self._expected if self._beats <= 3 else 1)
        for rate in self._rates:
            rate.share = part
        if not self._leads and (leader := _leader(notes)) is not None:
            self._recorder.expect(math.ceil(part * leader.content["tally"]["left"]))


@asynccontextmanager
async def joined(membership: Membership, changed: Callable[[], None]) -> AsyncIterator[None]:
    """Be a member of the run while the block runs. ``changed`` is called after each exchange of notes.

    Raises:
        InputError: see :meth:`Membership.join`.
    """
    await membership.join()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(membership.keep_exchanging, changed)
            yield
            group.cancel_scope.cancel()
    finally:
        await membership.leave()


def _is_fresh(note: Note) -> bool:
    return note.age_s < STALE_S


def _leader(notes: list[Note]) -> Note | None:
    return next((note for note in notes if note.content["leads"]), None)
