"""Sends a message when build-dashboard finds a run that did clearly worse than earlier runs.

    export ALERT_WEBHOOK_URL=https://hooks.slack.com/services/...
    python examples/alert_on_regression.py

Any webhook that takes {"text": ...} works: Slack, Mattermost, Google Chat. Its address is kept as a secret in
the block custom-webhook/imagemill-alerts. For email, Teams and others, add a notification block in the UI and
pass its slug, which `prefect block ls` shows:

    python examples/alert_on_regression.py email/oncall

Running it again replaces the automation.
"""

import os
import sys

from prefect.automations import Automation, EventTrigger, Posture
from prefect.blocks.fields import SecretDict
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.exceptions import ObjectNotFound

NAME = "imagemill-regression"

TRIGGER = EventTrigger(
    posture=Posture.Reactive,
    expect={"imagemill.regression"},
    # To watch a single catalog and API: imagemill.catalog.products-parquet.together
    match={"prefect.resource.id": "imagemill.catalog.*"},
    # One alert per catalog and API, even if several regress in one dashboard.
    for_each={"prefect.resource.id"},
    threshold=1,
    within=0,
)
SUBJECT = "imagemill: {{ event.payload.catalog }} on {{ event.payload.provider }} did worse"
BODY = """\
Run {{ event.payload.run_id }}: {{ event.payload.in_words }}.
Report: {{ event.payload.report }}
All runs: {{ event.payload.dashboard }}
"""


def main(block: str | None = None) -> None:
    """Create the automation, and the block that sends its messages unless one is given."""
    if block is None:
        url = os.environ.get("ALERT_WEBHOOK_URL")
        if not url:
            sys.exit(
                "Nowhere to send alerts: export ALERT_WEBHOOK_URL, or pass a block such as email/oncall."
            )
        block = save_webhook(url)
    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as client:
        try:
            document = client.read_block_document_by_name(name, kind)
        except ObjectNotFound:
            sys.exit(f"There is no saved block {block!r}. List them with: prefect block ls")
        if document.block_schema is None or "notify" not in document.block_schema.capabilities:
            sys.exit(f"The block {block!r} cannot send messages. Pass one such as email/oncall.")
        before = client.read_automations_by_name(NAME)
        Automation(
            name=NAME,
            description="Alert on catalogs whose images got slower, more expensive or fail more often.",
            trigger=TRIGGER,
            actions=[SendNotification(block_document_id=document.id, subject=SUBJECT, body=BODY)],
        ).create()
        for automation in before:
            client.delete_automation(automation.id)
    print(f"The automation {NAME} sends its messages through the block {block}.")


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
    main(*sys.argv[1:])
