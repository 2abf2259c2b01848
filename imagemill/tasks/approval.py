"""Asks for approval before a run spends more, or takes more from a manifest, than it may on its own.

The flow run of a deployment is suspended: its process ends, and a worker starts it again with the answer. Any
other run has nobody to start it again, so it waits in its own process.
"""

from __future__ import annotations

from hashlib import sha256
from math import ceil
from typing import cast
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput, keyset_from_paused_state
from prefect.runtime import deployment, flow_run
from prefect.states import Suspended

from imagemill.catalog.cost import Lever
from imagemill.catalog.counts import PlanCounts
from imagemill.errors import InputError
from imagemill.formatting import money
from imagemill.prefect_address import lasting_server

WAIT_S = 24 * 3600
POLL_S = 3
"""How often a run that waits in its own process checks for an answer, in seconds."""

COST, LOSS = "imagemill-cost", "imagemill-loss"
"""What approval is asked for: how the keys of the questions in Prefect begin."""


class Approval(RunInput):
    """The answer to an estimate."""

    approve: bool = True


def answers(kind: str) -> dict[str, bool]:
    """What a suspended flow run that was started again has asked of a kind, and the answers.

    A question is named by what was asked for: the cost in millionths of a dollar, or a digest of the loss.
    """
    if not _is_started_again():
        return {}
    with get_client(sync_client=True) as client:
        asked = client.read_flow_run(UUID(flow_run.get_id())).empirical_policy.pause_keys or ()
    return {key.rpartition("-")[2]: _answer(key) for key in asked if key.startswith(kind)}


def _answer(key: str) -> bool:
    answer_with = Approval.with_initial_data(approve=False)
    given = answer_with.load(keyset_from_paused_state(Suspended(pause_key=key)))
    return cast("Approval", given).approve  # in a flow that is not async, load waits for it


def ask_approval(
    images: int, cost_usd: float, limit_usd: float | None, counts: PlanCounts, look: str = ""
) -> None:
    """Hold a flow run that would cost more than the limit until someone approves it in the UI.

    What would make the catalog of these ``counts`` cheaper is shown beside the estimate, and ``look``, which
    is Markdown about a preview. A run that was started again with an answer only asks again if it would cost
    more than was approved.

    Raises:
        InputError: it was not approved, or there is nobody to ask.
        Pause: the flow run is suspended until there is an answer.
    """
    if limit_usd is None:
        return
    given = answers(COST)
    approved = all(given.values())
    if approved:
        if cost_usd <= max([limit_usd, *(int(micros) / 1e6 for micros in given)]):
            return
        levers = "".join(f"\n- {Lever(**lever)}" for lever in counts.levers)
        per_row = f" ({counts.rows:,} rows, {counts.variants} pictures each)" if counts.variants > 1 else ""
        estimate = (
            f"This run would generate **{images:,} images{per_row} for about {money(cost_usd)}**, more than"
            f" the {money(limit_usd)} that it may spend without approval."
        )
        question = f"Continue? If not, the run ends.\n\n{look}\n{levers}"
        key = f"{COST}-{ceil(cost_usd * 1e6)}"
        approved = _approved(key, estimate, question, approve=True)
    if not approved:
        raise InputError(f"The estimate of {money(cost_usd)} for {images:,} images was not approved.")


def ask_loss_approval(loss: str | None) -> None:
    """Hold a refresh that would take much from the manifest until someone approves it in the UI.

    If the loss is another one when the run is started again, it is asked about anew.

    Raises:
        InputError: it was not approved, or there is nobody to ask.
        Pause: the flow run is suspended until there is an answer.
    """
    given = answers(LOSS)
    approved = all(given.values())
    if approved:
        digest = sha256((loss or "").encode()).hexdigest()[:16]
        if loss is None or digest in given:
            return
        question = "Continue? If not, the refresh ends, and nothing changes."
        approved = _approved(f"{LOSS}-{digest}", loss, question, approve=False)
    if not approved:
        raise InputError(f"The refresh was not approved. {loss or ''}".rstrip())


def refuse_without_server() -> None:
    """Check that someone can be asked: a server of its own, which Prefect starts for a run, nobody looks at.

    Raises:
        InputError: nobody can.
    """
    if lasting_server() is None:
        raise InputError(
            "The run needs approval, and there is no Prefect server on which to give it: set PREFECT_API_URL,"
            " or leave out limits.approve_above_usd and refresh.approve_loss."
        )


def _is_started_again() -> bool:
    """Whether somebody starts this flow run again once it is suspended. Prefect suspends no subflows."""
    return deployment.id is not None and flow_run.parent_flow_run_id is None


def _approved(key: str, why: str, question: str, *, approve: bool) -> bool:
    """The answer to a question, also shown on the run's page; ``approve`` is how its switch stands."""
    refuse_without_server()
    get_run_logger().warning("Waiting for approval: press Resume. %s", why.replace("**", ""))
    create_markdown_artifact(
        f"### This run waits for approval\n\n{why} {question}\n\nTo answer, press Resume on the run's page.",
        key="imagemill-approval",
        description="What the run waits for.",
    )
    answer_with = Approval.with_initial_data(description=f"{why}\n\n{question}", approve=approve)
    if _is_started_again():
        return suspend_flow_run(wait_for_input=answer_with, timeout=WAIT_S, key=key).approve
    return pause_flow_run(wait_for_input=answer_with, timeout=WAIT_S, poll_interval=POLL_S, key=key).approve
