"""A nightly refresh from one long-running Python process, without a work pool.

    python examples/scheduled_refresh.py CATALOG s3://BUCKET/PREFIX

``serve`` registers the deployment with the Prefect server and runs it when it is due; prefect.yaml does the
same for a worker. Only new and changed rows cost anything.
"""

import sys

from prefect.client.schemas.schedules import CronSchedule

from imagemill.flows.refresh_catalog import refresh_catalog


def main(catalog: str, output: str) -> None:
    """Serve the nightly refresh until interrupted."""
    refresh_catalog.serve(
        name="nightly-from-python",
        schedule=CronSchedule(cron="30 2 * * *", timezone="Europe/Berlin"),
        parameters={
            "catalog": {"path": catalog},
            "output": {"uri": output},
            "api": {"provider": "together"},
            "limits": {"max_cost_usd": 50},
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
