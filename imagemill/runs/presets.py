"""Names what a run's own parameters take away from those of its deployment.

Prefect replaces a parameter as a whole: a run that gives ``limits: {max_cost_usd: 1}`` loses the
``approve_above_usd`` that its deployment had in ``limits``. Merging the two would bring back what somebody
has just removed from the form, so the log names the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.runtime import deployment, flow_run

_ALONE = {"catalog": "path", "output": "uri", "api": "provider"}
"""What a string alone stands for, by parameter."""

_INSTEAD = {"api.provider": "block", "api.block": "provider"}
"""What says the same as a setting in another way."""


def warn_of_lost_presets() -> None:
    """Log which settings of its deployment do not apply to the current flow run."""
    if deployment.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            preset = client.read_deployment(UUID(str(deployment.id))).parameters
            given = client.read_flow_run(UUID(flow_run.get_id())).parameters
    except (httpx.HTTPError, PrefectException):
        return  # the deployment was deleted, for example: a warning is not worth a run
    if lost := lost_presets(preset, given):
        get_run_logger().warning(
            "Not used: %s of the deployment. A parameter that a run sets replaces the deployment's as a"
            " whole: repeat in it what should stay.",
            ", ".join(lost),
        )


def lost_presets(preset: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    """The settings, such as ``limits.max_cost_usd``, that a run's own parameters leave out."""
    return sorted(name for group in preset for name in _lost(group, preset[group], given.get(group)))


def _lost(name: str, preset: object, given: object) -> Iterator[str]:
    if isinstance(given, str) and name in _ALONE:
        given = {_ALONE[name]: given}
    if not isinstance(preset, Mapping) or not isinstance(given, Mapping):
        return
    for field, value in preset.items():
        setting = f"{name}.{field}"
        if field in given:
            yield from _lost(setting, value, given[field])
        elif value not in (None, [], {}) and _INSTEAD.get(setting) not in given:
            yield setting
