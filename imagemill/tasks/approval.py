"""Asks for approval before a run spends more than it may on its own."""

from __future__ import annotations

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput

from imagemill.catalog.cost import Lever
from imagemill.catalog.counts import PlanCounts
from imagemill.errors import InputError
from imagemill.formatting import money

WAIT_S = 24 * 3600
POLL_S = 3
"""How often a waiting run checks for an answer, in seconds."""


class Approval(RunInput):
    """The answer to an estimate."""

    approve: bool = True


def ask_approval(
    images: int, cost_usd: float, limit_usd: float | None, counts: PlanCounts, look: str = ""
) -> None:
    """Pause a flow run that would cost more than the limit until someone approves it in the UI.

    What would make the catalog of these ``counts`` cheaper is shown beside the estimate, and ``look``, which
    is Markdown about a preview.

    Raises:
        InputError: it was not approved.
    """
    if limit_usd is None or cost_usd <= limit_usd:
        return
    levers = "".join(f"\n- {Lever(**lever)}" for lever in counts.levers)
    per_row = f" ({counts.rows:,} rows, {counts.variants} pictures each)" if counts.variants > 1 else ""
    estimate = (
        f"This run would generate **{images:,} images{per_row} for about {money(cost_usd)}**, more than the"
        f" {money(limit_usd)} that it may spend without approval."
    )
    if not _approved(estimate, f"Continue? If not, the run ends.\n\n{look}\n{levers}", approve=True):
        raise InputError(f"The estimate of {money(cost_usd)} for {images:,} images was not approved.")


def ask_loss_approval(loss: str | None) -> None:
    """Hold a refresh that would take much from the manifest until someone approves it in the UI.

    Raises:
        InputError: it was not approved.
    """
    if loss is None:
        return
    if not _approved(loss, "Continue? If not, the refresh ends, and nothing changes.", approve=False):
        raise InputError(f"The refresh was not approved. {loss}")


def _approved(why: str, question: str, *, approve: bool) -> bool:
    """The answer to a question, also shown on the run's page; ``approve`` is how its switch stands."""
    get_run_logger().warning("Waiting for approval: press Resume. %s", why.replace("**", ""))
    create_markdown_artifact(
        f"### This run waits for approval\n\n{why} {question}\n\nResume, on the run's page, asks.",
        key="imagemill-approval",
        description="What the run waits for.",
    )
    answer_with = Approval.with_initial_data(description=f"{why}\n\n{question}", approve=approve)
    return pause_flow_run(wait_for_input=answer_with, timeout=WAIT_S, poll_interval=POLL_S).approve
