"""Calibration, on real sockets: what it measures, what it spends, what the next run makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.variables import Variable

from imagemill.blocks.apis import ImageApi
from imagemill.blocks.loading import image_api
from imagemill.emulator import Emulator
from imagemill.engine.limits.pacer import Limit
from imagemill.errors import InputError
from imagemill.flows.calibrate import calibrate
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.runs.remembered_limit import host_of, read_limit, variable_name, write_limit
from imagemill.settings import ApiSettings
from tests.conftest import Command, Place

pytestmark = pytest.mark.usefixtures("prefect_server")


def api_of(emulated: Emulator) -> ImageApi:
    return image_api(ApiSettings(provider="together", base_url=emulated.base_url))


@pytest.mark.slow
def test_an_account_is_measured_within_its_budget(emulator: Callable[..., Emulator], tmp_path: Path) -> None:
    emulated = emulator(max_concurrent=15, latency_s=0.4)  # 40 a second: a busy machine still fills the cap
    plot = tmp_path / "plot.html"
    found = calibrate(
        {"provider": "together", "base_url": emulated.base_url},
        {"images": 400, "seconds": 60, "width": 256, "height": 256},
        plot,
    )
    assert found.limit_seen
    assert 12 <= found.concurrency <= 17
    bill = emulated.bill()
    assert bill["images"] <= found.images <= 400
    assert [level.concurrency for level in found.levels][:3] == [5, 10, 20]
    assert found.levels[1].per_minute > 1.4 * found.levels[0].per_minute
    assert found.levels[2].refused_share > 0
    assert "<svg" in plot.read_text()
    assert "http" not in plot.read_text().replace(found.host, "")
    kept = read_limit(api_of(emulated))
    assert kept is not None
    rate = found.per_minute and pytest.approx(found.per_minute, rel=1e-2)  # it fades
    assert (kept.concurrency, kept.per_minute) == (found.concurrency, rate)


def test_time_is_a_budget_too(emulator: Callable[..., Emulator]) -> None:
    emulated = emulator(latency_s=0.2)
    found = calibrate({"provider": "together", "base_url": emulated.base_url}, {"images": 5000, "seconds": 2})
    assert found.seconds < 5
    assert not found.limit_seen
    assert read_limit(api_of(emulated)) is None


def test_what_is_known_is_used_while_it_is_fresh_and_of_the_same_host(
    emulator: Callable[..., Emulator],
) -> None:
    api = api_of(emulator())
    write_limit(api, Limit(33, 1200.0))
    known = read_limit(api)
    assert known is not None
    assert known == Limit(33, pytest.approx(1200.0, rel=1e-3))  # it fades: the rate follows recent use
    assert read_limit(api, now=datetime.now(UTC) + timedelta(days=31)) is None
    write_limit(api, Limit(33, took_per_s=60.0))
    known, later = read_limit(api), read_limit(api, now=datetime.now(UTC) + timedelta(hours=1))
    assert known == Limit(33, None, pytest.approx(60.0, rel=1e-3))
    assert later == Limit(33)
    assert read_limit(api_of(emulator())) is None
    other = {"api_key": "another-account"}, {"model": "black-forest-labs/FLUX.1-schnell-Free"}
    for given in other:
        assert read_limit(type(api)(**{"api_key": api.api_key, "base_url": api.base_url, **given})) is None
    Variable.set(variable_name(api), {"host": host_of(api), "concurrency": "many"}, overwrite=True)
    assert read_limit(api) is None


@pytest.mark.slow
def test_an_auto_run_starts_from_what_is_known_and_writes_back(
    emulator: Callable[..., Emulator], place: Place, catalog: Callable[..., str]
) -> None:
    emulated = emulator(max_concurrent=12, latency_s=0.3)
    arguments: dict[str, Any] = {
        "api": {"provider": "together", "base_url": emulated.base_url},
        "picture": {"width": 256, "height": 256},
    }
    path = catalog(prompt=[f"p{n}" for n in range(300)])
    first = generate_catalog(path, place.settings(), **arguments)
    assert (first.done, first.failed) == (300, 0)
    known = read_limit(api_of(emulated))
    assert known is not None
    assert 8 <= known.concurrency <= 20

    write_limit(api_of(emulated), Limit(11))
    emulated.reset()
    again = generate_catalog(path, {**place.settings(), "uri": f"{place.uri}/again"}, **arguments)
    assert again.done == 300
    assert again.rate_limited <= first.rate_limited + 3


@pytest.mark.slow
def test_a_user_s_mistake_is_one_sentence(
    emulator: Callable[..., Emulator], command: Callable[..., Command]
) -> None:
    emulated = emulator(api_keys=("other",))
    with pytest.raises(InputError, match="cannot be measured"):
        calibrate({"provider": "together", "base_url": emulated.base_url}, {"images": 20})
    done = command("calibrate", "--base-url", emulated.base_url, "--images", "20")
    assert (done.code, done.out) == (2, "")
    assert "cannot be measured" in done.err
    assert "Traceback" not in done.err
    few = command("calibrate", "--base-url", emulated.base_url, "--images", "3")
    assert few.code == 2
    assert "--images '3'" in few.err


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(
    emulator: Callable[..., Emulator], command: Callable[..., Command]
) -> None:
    emulated = emulator(max_concurrent=8, latency_s=0.05)
    given = ("calibrate", "--base-url", emulated.base_url, "--images", "120", "--width", "256")
    done = command(*given)
    assert done.code == 0, done.err
    assert "Paid for " in done.out
    found = json.loads(command(*given, "--json").out)
    assert found["limit_seen"]
    assert found["images"] <= 120
