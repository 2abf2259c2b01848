"""The notes of a run's processes in Postgres."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from imagemill.stores.board import Board, Note
from imagemill.stores.encoding import from_json, to_json
from imagemill.stores.tables import BUDGETS, NOTES, RESERVATIONS


class PostgresBoard(Board):
    """One row per note, and one row for the run's budget."""

    now: ClassVar[sa.ColumnElement[float]]
    _run_id: str

    @abstractmethod
    async def _in_transaction(self, statements: Sequence[sa.Executable]) -> list[Any]:
        """Execute statements in one transaction, waiting out outages; the rows of each."""

    async def exchange(self, owner: str, content: dict[str, Any] | None) -> list[Note]:
        of_run = NOTES.c.run_id == self._run_id
        mine: sa.Executable = sa.delete(NOTES).where(of_run, NOTES.c.owner == owner)
        if content is not None:
            values = {"content": to_json(content).decode(), "at": self.now}
            insert = postgresql.insert(NOTES).values(run_id=self._run_id, owner=owner, **values)
            mine = insert.on_conflict_do_update(index_elements=["run_id", "owner"], set_=values)
        all_notes = sa.select(NOTES.c.owner, self.now - NOTES.c.at, NOTES.c.content).where(of_run)
        _, rows = await self._in_transaction([mine, all_notes])
        return [Note(name, age_s, from_json(text.encode())) for name, age_s, text in rows]

    async def clear_board(self) -> None:
        await self._in_transaction([sa.delete(NOTES).where(NOTES.c.run_id == self._run_id)])

    async def set_committed(self, usd: float) -> None:
        insert = postgresql.insert(BUDGETS).values(run_id=self._run_id, committed_usd=usd)
        await self._in_transaction(
            [
                sa.delete(RESERVATIONS).where(RESERVATIONS.c.run_id == self._run_id),
                insert.on_conflict_do_update(index_elements=["run_id"], set_={"committed_usd": usd}),
            ]
        )

    async def _commit_usd(self, usd: float, limit_usd: float, token: str) -> bool:
        made = sa.select(RESERVATIONS.c.token).where(
            RESERVATIONS.c.run_id == self._run_id, RESERVATIONS.c.token == token
        )
        reserved = (
            sa.update(BUDGETS)
            .where(
                BUDGETS.c.run_id == self._run_id,
                sa.or_(sa.literal(usd <= 0), BUDGETS.c.committed_usd + usd <= limit_usd + 1e-9),
                ~made.exists(),
            )
            .values(committed_usd=BUDGETS.c.committed_usd + usd)
            .returning(BUDGETS.c.run_id)
            .cte("reserved")
        )
        note = sa.insert(RESERVATIONS).from_select(
            ["run_id", "token"], sa.select(reserved.c.run_id, sa.literal(token))
        )
        _, rows = await self._in_transaction([note, made])
        return bool(rows)
