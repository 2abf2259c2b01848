"""Starts a run again whose machine died: a worker takes it up under its run id, and nothing is paid twice.

    python examples/automations/restart.py

Creates two automations; running it again replaces them. imagemill-restart is for a machine that is gone with
its worker: a running flow run sends Prefect a heartbeat every 180 seconds, or as often as
PREFECT_FLOWS_HEARTBEAT_FREQUENCY says in its environment (30 at least). A run that has neither ended nor sent
one for SECONDS, 600 unless given, is scheduled again:

    python examples/automations/restart.py 100

imagemill-restart-crashed is for a process or container whose end its worker saw, such as one that ran out of
memory. It starts each run again at most once an hour: one that crashes again sooner stays crashed.

Only runs of deployments are started again, since others have no worker. A run that still works but is cut off
from Prefect keeps its output: the new one is then refused, and costs nothing.
"""

import argparse
from datetime import timedelta
from typing import Any

from prefect.automations import Automation, EventTrigger, Posture
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState

FLOWS = ["generate-catalog", "refresh-catalog", "retry-failed"]
USUAL_S = 600
"""Three times Prefect's usual time between heartbeats, and some more."""


def main(within_s: int) -> None:
    """Create the automations."""
    of_ours: Any = [
        {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
        {"prefect.resource.role": "deployment"},
    ]
    silence = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.*"},  # the next heartbeat, or a state
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=of_ours,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )
    crash = EventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=of_ours,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(hours=1),  # it fires once in that time
    )
    create("imagemill-restart", silence, "Its machine has been silent: it is resumed.")
    create("imagemill-restart-crashed", crash, "It crashed: it is resumed.")
    print(f"Runs are started again that crash, or have been silent for {within_s} seconds.")


def create(name: str, trigger: EventTrigger, message: str) -> None:
    """Create an automation that schedules the run again, in the place of the last one of this name."""
    again = ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=message)
    with get_client(sync_client=True) as client:
        before = client.read_automations_by_name(name)
        Automation(
            name=name,
            description="Starts imagemill's runs again whose machine or process died.",
            trigger=trigger,
            actions=[again],
        ).create()
        for automation in before:
            client.delete_automation(automation.id)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("within_s", type=int, nargs="?", default=USUAL_S, metavar="SECONDS")
    given = parser.parse_args()
    if given.within_s < 10:
        parser.error("Prefect looks every 10 seconds at most")
    main(given.within_s)
