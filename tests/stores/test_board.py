"""The board that the processes of one run share, in the stores that several machines reach."""

from __future__ import annotations

import anyio
import pytest

from imagemill.stores import Board
from tests.stores.conftest import Make

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("kind", ["postgres", "redis"])]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_each_process_sees_the_notes_of_all(make: Make) -> None:
    async with make() as lead, make(join=True) as member, make("another-run") as stranger:
        assert isinstance(lead, Board)
        assert isinstance(member, Board)
        assert isinstance(stranger, Board)
        assert [note.owner for note in await lead.exchange("lead", {"said": 'a "b" é'})] == ["lead"]
        assert {n.owner: n.content for n in await member.exchange("member", {"n": [1, None]})} == {
            "lead": {"said": 'a "b" é'},
            "member": {"n": [1, None]},
        }
        notes = {note.owner: note for note in await lead.exchange("lead", {"said": "more"})}
        assert notes["lead"].content == {"said": "more"}
        assert all(0 <= note.age_s < 60 for note in notes.values())
        assert await stranger.exchange("stranger", None) == []
        assert [note.owner for note in await member.exchange("member", None)] == ["lead"]
        await lead.clear_board()
        assert await member.exchange("member", None) == []


async def test_a_budget_is_never_given_out_twice(make: Make) -> None:
    async with make() as lead, make(join=True) as member:
        assert isinstance(lead, Board)
        assert isinstance(member, Board)
        await lead.set_committed(0.4)
        taken: list[bool] = []

        async def take(board: Board) -> None:
            taken.append(await board.commit_usd(0.1, 1.0))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(take, lead)
                group.start_soon(take, member)
        assert sum(taken) == 6
        assert await member.commit_usd(-0.1, 1.0)
        assert await lead.commit_usd(0.1, 1.0)
        assert not await lead.commit_usd(0.01, 1.0)


async def test_a_reservation_whose_answer_was_lost_is_made_once(make: Make) -> None:
    async with make() as lead:
        assert isinstance(lead, Board)
        await lead.set_committed(0.0)
        for _ in range(3):  # as a store that is tried again
            assert await lead.commit_usd(0.6, 1.0, token="one")
        assert not await lead.commit_usd(0.6, 1.0, token="two")
        assert await lead.commit_usd(0.4, 1.0, token="three")
        for _ in range(2):
            assert await lead.commit_usd(-0.4, 1.0, token="four")
        assert await lead.commit_usd(0.4, 1.0)
        assert not await lead.commit_usd(0.01, 1.0)
