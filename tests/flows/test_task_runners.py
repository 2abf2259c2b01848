"""Whatever task runner a flow is given, a run keeps its shards in its own process, beside its engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner
from prefect_dask import DaskTaskRunner

from imagemill.emulator import Emulator
from imagemill.flows.generate_catalog import generate_catalog
from tests.conftest import Place


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    "runner",
    [
        lambda: ThreadPoolTaskRunner(max_workers=1),
        lambda: ProcessPoolTaskRunner(max_workers=1),
        lambda: DaskTaskRunner(
            cluster_kwargs={"n_workers": 1, "processes": False, "dashboard_address": None}
        ),
    ],
    ids=["one thread", "processes", "dask"],
)
def test_a_run_ends_as_it_does_with_its_own(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str], runner: Callable[[], Any]
) -> None:
    summary = generate_catalog.with_options(task_runner=runner())(
        catalog=catalog(prompt=["a", "b"]),
        api={"provider": "together", "base_url": emulator().base_url},
        output=place.settings(),
        picture={"width": 256, "height": 256},
        execution={"shard_size": 1},
    )
    assert (summary.done, summary.failed, summary.pending) == (2, 0, 0)
