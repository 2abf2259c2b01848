"""Sends a message when build-dashboard finds a run that did clearly worse than those before it.

    export ALERT_WEBHOOK_URL=https://hooks.slack.com/services/...
    python examples/alert_on_regression.py

Any webhook that takes {"text": ...} will do: Slack, Mattermost, Google Chat. Its address is kept as a secret,
in the block custom-webhook/imagemill-alerts. For Email, Teams and others, add a notification block in the UI
instead, and name it as `prefect block ls` shows it:

    python examples/alert_on_regression.py email/oncall

Said again, it replaces what it made before.
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
    # One catalog and API alone: imagemill.catalog.products-parquet.together
    match={"prefect.resource.id": "imagemill.catalog.*"},
    # An alert each: five catalogs that regress in one dashboard are five events.
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
    """Make the automation, and the block that it sends by unless that is named."""
    if block is None:
        url = os.environ.get("ALERT_WEBHOOK_URL")
        if not url:
            sys.exit("Nobody is told: export ALERT_WEBHOOK_URL, or name a saved block, as in email/oncall.")
        block = save_webhook(url)
    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as client:
        try:
            told = client.read_block_document_by_name(name, kind)
        except ObjectNotFound:
            sys.exit(f"There is no saved block {block!r}: prefect block ls shows which there are.")
        if told.block_schema is None or "notify" not in told.block_schema.capabilities:
            sys.exit(f"The block {block!r} sends no messages: name a notification block, as in email/oncall.")
        before = client.read_automations_by_name(NAME)
        Automation(
            name=NAME,
            description="Tell of catalogs whose images got slower, dearer or fail more often.",
            trigger=TRIGGER,
            actions=[SendNotification(block_document_id=told.id, subject=SUBJECT, body=BODY)],
        ).create()
        for automation in before:
            client.delete_automation(automation.id)
    print(f"The automation {NAME} sends its messages by the block {block}.")


def save_webhook(url: str) -> str:
    """Save a webhook that takes messages as {"text": ...}; the block's name."""
    CustomWebhookNotificationBlock(
        name="imagemill",
        url="{{address}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets=SecretDict({"address": url}),
    ).save("imagemill-alerts", overwrite=True)
    return "custom-webhook/imagemill-alerts"


if __name__ == "__main__":
    main(*sys.argv[1:])
