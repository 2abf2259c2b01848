"""Asks for approval before a run spends more than it may on its own."""

from __future__ import annotations

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
    question = Approval.with_initial_data(
        description=f"This run would generate **{images:,} images{per_row} for about {money(cost_usd)}**,"
        f" more than the {money(limit_usd)} that it may spend without approval. Continue? If not, the run"
        f" ends."
        f"\n\n{look}\n{levers}",
        approve=True,
    )
    if not _approved(question):
        raise InputError(f"The estimate of {money(cost_usd)} for {images:,} images was not approved.")


def ask_loss_approval(loss: str | None) -> None:
    """Pause a refresh that would take much from the manifest until someone approves it in the UI.

    Raises:
        InputError: it was not approved.
    """
    if loss is None:
        return
    question = Approval.with_initial_data(
        description=f"{loss}\n\nContinue? If not, the refresh ends, and nothing changes.", approve=False
    )
    if not _approved(question):
        raise InputError(f"The refresh was not approved. {loss}")


def _approved(question: type[Approval]) -> bool:
    answer = pause_flow_run(wait_for_input=question, timeout=WAIT_S, poll_interval=POLL_S)
    return answer.approve
