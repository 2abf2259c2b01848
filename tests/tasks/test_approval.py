"""A run that would cost more than it may waits for a person, who answers in the UI."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import State

from imagemill.catalog.counts import PlanCounts
from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.flows.refresh_catalog import refresh_catalog
from imagemill.tasks.approval import ask_approval, ask_loss_approval
from tests.conftest import Place
from tests.patience import PATIENCE_S


def paused_flow_run(client: SyncPrefectClient) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    only_paused = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    while time.monotonic() < deadline:
        if found := client.read_flow_runs(flow_run_filter=only_paused):
            return found[0]
        time.sleep(0.1)
    raise AssertionError("the run did not pause")


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(("approve", "limit_usd", "looked"), [(True, 0.0002, 1), (False, 0.0001, 0)])
def test_an_expensive_run_waits_for_approval(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    approve: bool,  # noqa: FBT001 - a parameter of the test
    limit_usd: float,
    looked: int,
) -> None:
    """It shows a preview of what may be spent without approval: one picture costs $0.000177."""
    emulated = emulator()
    path = catalog(prompt=["a", "b"])
    states: list[State[Any]] = []

    def run() -> None:
        states.append(
            generate_catalog(
                catalog=path,
                api={"provider": "together", "base_url": emulated.base_url},
                output=place.settings(),
                picture={"width": 256, "height": 256},
                limits={"approve_above_usd": limit_usd},
                return_state=True,
            )
        )

    thread = threading.Thread(target=run)
    thread.start()
    with get_client(sync_client=True) as client:
        flow_run = paused_flow_run(client)
        assert emulated.stats()["generation_requests"] == looked
        assert [name.endswith("/preview.html") for name in place.objects()].count(True) == looked
        client.resume_flow_run(flow_run.id, run_input={"approve": approve})
    thread.join(PATIENCE_S)

    assert emulated.bill()["images"] == (2 if approve else 0)
    assert states[0].is_completed() is approve
    if not approve:
        assert "was not approved" in str(states[0].message)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_refresh_that_would_take_too_much_waits_for_approval(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()
    shop, cut = catalog(prompt=list("abcde")), catalog("cut.parquet", prompt=["a"])
    states: list[State[Any]] = []

    def refresh(path: str) -> None:
        states.append(
            refresh_catalog(
                catalog=path,
                api={"provider": "together", "base_url": emulated.base_url},
                output=place.settings(),
                picture={"width": 256, "height": 256},
                refresh={"approve_loss": True},
                return_state=True,
            )
        )

    refresh(shop)
    assert states.pop().is_completed()
    for approve in (False, True):
        before = place.read("manifest.parquet")
        thread = threading.Thread(target=refresh, args=(cut,))
        thread.start()
        with get_client(sync_client=True) as client:
            client.resume_flow_run(paused_flow_run(client).id, run_input={"approve": approve})
        thread.join(PATIENCE_S)
        assert states[-1].is_completed() is approve
        assert (place.read("manifest.parquet") == before) is not approve
    assert "was not approved. A refresh from the catalog" in str(states[0].message)
    assert [row["status"] for row in place.table("manifest.parquet")] == ["done"] + ["retired"] * 4
    assert emulated.bill()["images"] == 5


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("approve", [True, False])
def test_the_run_of_a_deployment_is_suspended_and_starts_again_with_the_answer(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    approve: bool,  # noqa: FBT001 - a parameter of the test
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is held meanwhile, and the preview and the plan are made once. What is left after the preview
    would need no approval of its own: the answer holds nevertheless."""
    emulated = emulator()
    preset = {"output": place.settings(), "limits": {"max_cost_usd": 5, "approve_above_usd": 1}}
    deployed = generate_catalog.to_deployment("approvals", parameters=preset).apply()
    with get_client(sync_client=True) as client:
        parameters = {
            "catalog": {"path": catalog(prompt=["a", "b", "c"])},
            "api": {"provider": "together", "base_url": emulated.base_url},
            "picture": {"width": 256, "height": 256},
            "limits": {"approve_above_usd": 0.0004},
        }
        flow_run_id = client.create_flow_run_from_deployment(deployed, parameters=parameters).id

        def start() -> Any:
            return run_flow(generate_catalog, client.read_flow_run(flow_run_id), return_type="state")

        with pytest.raises(Pause):
            start()
        assert "Not used: limits.max_cost_usd of the deployment." in caplog.text
        waiting = client.read_flow_run(flow_run_id).state
        assert waiting is not None
        assert (waiting.type, waiting.name) == ("PAUSED", "Suspended")
        assert emulated.bill()["images"] == 2
        assert "refresh.lease" not in place.objects()
        assert not any(thread.name.startswith("imagemill") for thread in threading.enumerate())

        client.resume_flow_run(flow_run_id, run_input={"approve": approve})
        state = start()
    assert state.is_completed() is approve
    assert emulated.bill()["images"] == (3 if approve else 2)
    planned = [name for name in place.objects() if name.endswith("plan.parquet")]
    assert len(planned) == 1
    if not approve:
        assert "was not approved" in str(state.message)


COUNTS = PlanCounts(rows=10, rejected=0, unique=10, duplicates=0, cost_usd=2.0, duplicates_usd=0.0)


@pytest.mark.usefixtures("prefect_server")
def test_what_has_grown_since_it_was_approved_is_asked_again() -> None:
    """Another refresh may have changed the manifest while this one was suspended."""
    asked = {"loss": "1 of 5 rows", "usd": 2.0}

    @flow(name="asks")
    def asks() -> None:
        ask_loss_approval(asked["loss"])
        ask_approval(10, asked["usd"], 1.0, COUNTS)

    deployed = asks.to_deployment("grown").apply()
    with get_client(sync_client=True) as client:
        flow_run_id = client.create_flow_run_from_deployment(deployed).id

        def start() -> Any:
            return run_flow(asks, client.read_flow_run(flow_run_id), return_type="state")

        for lost, usd in ((1, 2.0), (1, 2.0), (4, 2.0), (4, 3.0)):
            asked.update(loss=f"{lost} of 5 rows", usd=usd)
            with pytest.raises(Pause):
                start()
            client.resume_flow_run(flow_run_id, run_input={"approve": True})
        asked["usd"] = 2.5
        assert start().is_completed()


def test_nobody_can_approve_on_a_server_that_prefect_starts_for_the_run() -> None:
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(InputError, match="set PREFECT_API_URL"),
    ):
        ask_loss_approval("The refresh would retire 4 of 5 rows.")
