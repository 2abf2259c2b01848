"""Sends a message when runs fail, stop, wait for approval, do worse than before, or cost too much.

    export ALERT_WEBHOOK_URL=https://hooks.slack.com/services/...
    python examples/automations/alert.py failures
    python examples/automations/alert.py stops
    python examples/automations/alert.py approvals
    python examples/automations/alert.py regressions
    python examples/automations/alert.py spend 50

Each creates one automation; running it again replaces that. Any webhook that takes {"text": ...} works:
Slack, Mattermost, Google Chat. Its address is kept as a secret in the block custom-webhook/imagemill-alerts.
For email, Teams and others, add a notification block in the UI, and pass its slug, which `prefect block ls`
shows:

    python examples/automations/alert.py failures --block email/oncall

"spend 50" alerts when the runs of an output have cost 50 USD within 24 hours; amounts are rounded down to one
digit. It and "regressions" need the deployment build-dashboard, which looks once an hour.
"""

import argparse
import os
import sys
from typing import Any

from prefect.automations import Automation, EventTrigger, Posture
from prefect.blocks.fields import SecretDict
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.exceptions import ObjectNotFound

FLOWS = [
    "generate-catalog", "preview-catalog", "refresh-catalog", "retry-failed", "build-dashboard", "calibrate",
]  # fmt: skip
STATE_SUBJECT = "imagemill: {{ flow.name }} is {{ flow_run.state.name }}"
STATE_BODY = "{{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
APPROVAL_BODY = """\
It waits for approval. Its artifact imagemill-approval says for what; to answer, press Resume on its page.
{{ flow_run|ui_url }}
"""
"""Prefect gives a suspended run no message."""

EXPECT = {
    "failures": ["CompletedWithFailures", "CompletedWithRejectedRows", "Failed", "Crashed"],
    "stops": ["Stopped"],
    "approvals": ["Paused", "Suspended"],
}
"""The states, as docs/public-api.md lists them."""

REGRESSION = (
    "imagemill: {{ event.payload.catalog }} on {{ event.payload.provider }} did worse",
    """\
Run {{ event.payload.run_id }}: {{ event.payload.in_words }}.
Report: {{ event.payload.report }}
All runs: {{ event.payload.dashboard }}
""",
)
SPEND = (
    "imagemill: ${{ event.payload.cost_24h_usd }} within 24 hours",
    """\
The runs below {{ event.payload.output }} have cost ${{ event.payload.cost_24h_usd }} within 24 hours.
All runs: {{ event.payload.dashboard }}
""",
)
AMOUNTS = [digit * 10**power for power in range(-2, 7) for digit in range(1, 10)]
"""The amounts in USD of which an event says which was reached."""


def trigger(kind: str, usd: float) -> EventTrigger:
    """What the automation waits for."""
    once: dict[str, Any] = {"posture": Posture.Reactive, "threshold": 1, "within": 0}
    if kind == "regressions":
        # To watch a single catalog and API: imagemill.catalog.products-parquet.together
        match: dict[str, Any] = {"prefect.resource.id": "imagemill.catalog.*"}
        # One alert per catalog and API, even if several regress in one dashboard.
        once["for_each"] = {"prefect.resource.id"}
        return EventTrigger(expect={"imagemill.regression"}, match=match, **once)
    if kind == "spend":
        from_here = [f"{amount:.7g}" for amount in AMOUNTS if amount >= max(a for a in AMOUNTS if a <= usd)]
        match = {"prefect.resource.id": "imagemill.output.*", "imagemill.cost-24h-usd": from_here}
        return EventTrigger(expect={"imagemill.spend"}, match=match, **once)
    states = {f"prefect.flow-run.{name}" for name in EXPECT[kind]}
    of_ours: Any = {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}
    match = {"prefect.resource.id": "prefect.flow-run.*"}
    return EventTrigger(expect=states, match=match, match_related=of_ours, **once)


def main(kind: str, usd: float, block: str | None = None) -> None:
    """Create the automation, and the block that sends its messages unless one is given."""
    if block is None:
        url = os.environ.get("ALERT_WEBHOOK_URL")
        if not url:
            sys.exit(
                "Nowhere to send alerts: export ALERT_WEBHOOK_URL, or pass a block: --block email/oncall."
            )
        block = save_webhook(url)
    block_type, _, name = block.partition("/")
    subject, body = {
        "regressions": REGRESSION,
        "spend": SPEND,
        "approvals": (STATE_SUBJECT, APPROVAL_BODY),
    }.get(kind, (STATE_SUBJECT, STATE_BODY))
    with get_client(sync_client=True) as client:
        try:
            document = client.read_block_document_by_name(name, block_type)
        except ObjectNotFound:
            sys.exit(f"There is no saved block {block!r}. List them with: prefect block ls")
        if document.block_schema is None or "notify" not in document.block_schema.capabilities:
            sys.exit(f"The block {block!r} cannot send messages. Pass one such as email/oncall.")
        before = client.read_automations_by_name(f"imagemill-{kind}")
        Automation(
            name=f"imagemill-{kind}",
            description=f"Sends an alert on {kind} of imagemill's runs.",
            trigger=trigger(kind, usd),
            actions=[SendNotification(block_document_id=document.id, subject=subject, body=body)],
        ).create()
        for automation in before:
            client.delete_automation(automation.id)
    print(f"The automation imagemill-{kind} sends its messages through the block {block}.")


def save_webhook(url: str) -> str:
    """Save a webhook that takes messages as {"text": ...}; its block's name."""
    CustomWebhookNotificationBlock(
        name="imagemill",
        url="{{address}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets=SecretDict({"address": url}),
    ).save("imagemill-alerts", overwrite=True)
    return "custom-webhook/imagemill-alerts"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("kind", choices=[*EXPECT, "regressions", "spend"], metavar="KIND")
    parser.add_argument("usd", type=float, nargs="?", default=50.0, metavar="USD", help="for spend")
    parser.add_argument("--block", metavar="TYPE/NAME", help="a saved notification block")
    given = parser.parse_args()
    if given.usd < AMOUNTS[0]:
        parser.error(f"spend begins at {AMOUNTS[0]} USD")
    main(given.kind, given.usd, given.block)
