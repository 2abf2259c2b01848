"""Several accounts on the command line: what a run over them makes, records, resumes and finds again."""

from __future__ import annotations

import io
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from imagemill.catalog.makers import makers_of
from imagemill.cli.options import settings_of
from imagemill.cli.parser import parser
from imagemill.cli.routes import apis_of, changed_apis, limits_to_change
from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.runs.accounts import accounts_of, named_routes, named_settings
from imagemill.settings import LimitSettings, RouteSettings, RunSettings, only_route
from tests.cli.test_command import wait_for
from tests.conftest import Command, Place


def output(place: Place) -> list[str]:
    """Where the pictures go, and their size."""
    size = ("--width", "512", "--height", "512")
    return ["--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url, *size]


def route(vendor: str, emulated: Emulator, **more: object) -> str:
    given = {"base_url": emulated.base_url, "usd_per_image": 0.002, **more}
    return ",".join([vendor, *(f"{name}={value}" for name, value in given.items())])


def table(place: Place, name: str) -> Any:
    return pq.read_table(io.BytesIO(place.read(name)))


@pytest.mark.slow
def test_a_run_over_two_accounts_is_recorded_by_route_and_found_again_by_either(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    own_home: Path,
) -> None:
    first, second = emulator(latency_s=0.05), emulator(latency_s=0.05)
    path = catalog(prompt=[f"p{n}" for n in range(40)], made_by=["ours"] * 40)
    given = output(place)
    routes = ["--route", route("together", first, name="gpu"), "--route", route("fal", second)]
    ran = command("run", path, *given, *routes, "--run-id", "both", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["done"], ran.json["generated"]) == (40, 40)
    jobs = table(place, "runs/both/jobs.parquet")
    made = Counter(jobs["route"].to_pylist())
    assert made == {"gpu": first.bill()["images"], "fal": second.bill()["images"]}
    record = orjson.loads((own_home / "runs" / "both" / "run.json").read_bytes())["settings"]
    assert [each["name"] for each in record["routes"]] == ["gpu", "fal"]
    assert "key" not in str(record["routes"])
    manifest = table(place, "manifest.parquet")
    vendors = {"together": first, "fal": second}
    makers = Counter(maker.partition("/")[0] for maker in manifest["made_by"].to_pylist())
    assert makers == {vendor: emulated.bill()["images"] for vendor, emulated in vendors.items()}
    assert set(manifest["catalog_made_by"].to_pylist()) == {"ours"}
    again = command(
        "run", path, *given, "--route", route("fal", second), "--route", route("together", first), "--json"
    )
    assert again.code == 0, again.err
    assert (again.json["generated"], again.json["reused"]) == (0, 40)
    alone = command("run", path, *given, "--route", route("fal", second), "--limit", "3", "--json")
    assert (alone.json["generated"], alone.json["reused"]) == (3, 0)  # a run over one keeps its vendor's keys


def test_a_route_that_has_spent_its_part_says_how_to_raise_it(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    emulated = emulator()
    given = ["run", catalog(prompt=["a", "b", "c", "d"]), *output(place), "--run-id", "r"]

    def over_both(usd: float) -> list[str]:
        routes = [route(vendor, emulated, max_cost_usd=usd) for vendor in ("together", "fal")]
        return ["--route", routes[0], "--route", routes[1]]

    stopped = command(*given, *over_both(0.003))
    assert stopped.code == 3, stopped.err
    assert (
        "fal: The next image would exceed the route's max_cost_usd of $0.003 ($0.002 is spent): repeat"
        " the run's command with a higher one and its run id to go on." in stopped.err
    )
    assert "imagemill resume" not in stopped.err  # which would stop again
    done = command(*given, *over_both(1), "--json")
    assert (done.code, done.json["done"]) == (0, 4), done.err
    assert emulated.bill()["images"] == 4


@pytest.mark.slow
def test_a_killed_run_over_two_accounts_goes_on_with_another_deadline_and_agrees_with_the_bill(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    start_command: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    gpu, queue = emulator(latency_s=0.3), emulator(latency_s=0.3, max_concurrent=4)
    path = catalog(prompt=[f"p{n}" for n in range(120)])
    routes = [
        *("--route", route("together", gpu, name="gpu", concurrency=4)),
        *("--route", route("fal", queue)),
    ]
    out = output(place)
    process = start_command("run", path, *out, *routes, "--run-id", "r", "--json", "--store", "sqlite")
    wait_for(lambda: min(gpu.bill()["images"], queue.bill()["images"]) >= 10, process)
    process.kill()
    process.communicate()

    done = command("resume", "r", "--route-policy", "cheapest", "--max-hours", "0.5", "--json")

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["pending"]) == (120, 0)
    assert [each["count"] for each in queue.bill()["by_key"].values() if each["count"] > 1] == []
    charged = gpu.bill()["images"] + queue.bill()["images"]
    assert 120 <= charged <= 120 + 4  # what was on its way to an API that cannot be asked
    assert len([name for name in place.objects() if name.startswith("images/")]) == 120
    jobs = table(place, "runs/r/jobs.parquet").to_pylist()
    made = Counter(job["route"] for job in jobs)
    assert set(made) == {"gpu", "fal"}

    bill = tmp_path / "bill.csv"
    lines = [f"{job['request_id']},0.002" for job in jobs if job["route"] == "fal"]
    bill.write_text("\n".join(["request_id,cost_usd", *lines]))
    compared = command("reconcile", "r", "--route", "fal", "--from", str(bill), "--json")
    assert compared.code == 0, compared.err
    assert compared.json["reasons"]["agreed"]["requests"] == made["fal"]

    checked = command("check", *out, *routes)
    assert checked.code == 0, checked.err
    assert {"gpu", "fal"} <= set(re.findall(r"[a-z]+", checked.out))


@pytest.mark.slow
def test_a_route_that_is_given_up_gets_nothing_more(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
) -> None:
    gpu, queue = emulator(latency_s=0.1), emulator(latency_s=0.1)
    path = catalog(prompt=[f"p{n}" for n in range(60)])
    out = output(place)
    routes = ["--route", route("together", gpu, name="gpu"), "--route", route("fal", queue)]
    stopped = command("run", path, *out, *routes, "--run-id", "r", "--max-cost", "0.041", "--json")
    assert stopped.code == 3, stopped.err
    charged = queue.bill()["images"]
    assert charged + gpu.bill()["images"] == 20

    unknown = command("resume", "r", "--give-up", "nobody", "--max-cost", "1", "--json")
    assert unknown.code == 2
    assert "The run has no route 'nobody' to give up: its routes are gpu, fal." in unknown.err
    done = command("resume", "r", "--give-up", "fal", "--max-cost", "1", "--json")
    assert done.code == 0, done.err
    assert done.json["done"] == 60
    assert (queue.bill()["images"], gpu.bill()["images"]) == (charged, 60 - charged)
    stops = {route["route"]: route["stopped"] for route in done.json["routes"]}
    assert stops == {"gpu": None, "fal": "You gave this route up."}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["together,api_key=tgp-1"], "'api_key=…' is not NAME=VALUE with one of the names block, base_url"),
        (["together,max_cost=-1"], "--route 'together,max_cost=-1': max_cost_usd: Input should be greater"),
        (["together,name=a", "fal,name=a"], "Two routes are called 'a': give each a name of its own."),
        (["together", "together,name=b"], "Two routes are the same account and model"),
        (["together", "fal,model=fal-ai/flux/dev"], "together makes flux.1-schnell, fal makes flux.1-dev"),
    ],
)
def test_routes_that_cannot_be_used_are_refused_in_a_sentence(given: list[str], words: str) -> None:
    options = [part for each in given for part in ("--route", each)]
    given = ["run", "catalog.parquet", *options]
    arguments = parser(given).parse_args(given)
    with pytest.raises(InputError) as refused:
        makers_of(*named_routes(apis_of(arguments)), mix=False)  # type: ignore[arg-type] # they are several
    assert words in str(refused.value)
    assert "tgp-1" not in str(refused.value)


def test_a_resume_may_change_how_long_each_route_is_waited_for() -> None:
    given = ["resume", "r", "--request-timeout", "9", "--queue-timeout", "99"]
    known = [RouteSettings(provider="together", image_hosts=["a.test"]), RouteSettings(provider="fal")]
    changed = changed_apis(parser(given).parse_args(given), known)
    times = {"request_timeout_s": 9.0, "queue_timeout_s": 99.0}
    assert changed == [route.model_copy(update=times) for route in known]
    given = ["resume", "r", "--request-timeout", "0"]
    with pytest.raises(InputError, match=r"^--request-timeout '0': Input should be greater than 0"):
        changed_apis(parser(given).parse_args(given), known)


def test_a_route_and_the_options_of_one_api_exclude_each_other() -> None:
    given = ["run", "c.parquet", "--provider", "fal", "--route", "together"]
    arguments = parser(given).parse_args(given)
    with pytest.raises(InputError, match="--provider is of a run over one API"):
        apis_of(arguments)


def test_a_new_run_needs_a_deadline_to_come_and_a_resume_may_replace_or_outlive_it(
    place: Place,
    catalog: Callable[..., str],
    emulator: Callable[..., Emulator],
    command: Callable[..., Command],
) -> None:
    emulated = emulator(latency_s=0.05)
    routes = ["--route", route("together", emulated), "--route", route("fal", emulated)]
    given = [catalog(prompt=["one"]), *output(place), *routes, "--route-policy", "cheapest", "--json"]
    late = command("run", *given, "--finish-by", "2020-01-01T00:00:00Z")
    assert late.code == 2
    assert "--finish-by 2020-01-01T00:00:00+00:00 has passed." in late.err
    assert emulated.bill()["images"] == 0

    known = LimitSettings(route_policy="cheapest", finish_by=datetime(2030, 1, 1, tzinfo=UTC))
    for options, deadlines in {
        (): (known.finish_by, None),
        ("--finish-by", "2031-01-01T00:00:00Z"): (datetime(2031, 1, 1, tzinfo=UTC), None),
        ("--max-hours", "2"): (None, 2.0),
        ("--route-policy", "failover"): (None, None),
    }.items():
        words = ["resume", "r", *options]
        arguments = parser(words).parse_args(words)
        limits = settings_of(arguments, "limits", **limits_to_change(arguments, known))
        assert (limits.finish_by, limits.max_hours) == deadlines


def test_a_route_alone_keeps_within_the_runs_own_limits() -> None:
    route = RouteSettings(provider="fal", max_cost_usd=50, max_images_per_minute=30, concurrency=7)
    _, limits = only_route(route, LimitSettings(max_cost_usd=1, max_images_per_minute=600))
    assert (limits.max_cost_usd, limits.max_images_per_minute, limits.concurrency) == (1, 30, 7)
    assert only_route(route, LimitSettings())[1].max_cost_usd == 50


@pytest.mark.parametrize(
    ("limits", "share", "words"),
    [
        ({"route_policy": "cheapest"}, None, "--route-policy cheapest needs one"),
        ({}, 1.0, "'openai' is unknown, and its max_cost_usd needs one"),
        ({"max_cost_usd": 5}, None, "'openai' is unknown, and --max-cost needs one"),
    ],
)
def test_a_route_without_a_price_is_not_taken_for_the_cheapest(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, object], share: float | None, words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-of-a-test")
    routes = [
        {"provider": "together", "usd_per_image": 0.01},
        {"provider": "openai", "model": "ours", "base_url": "http://gpu:8000/v1", "max_cost_usd": share},
    ]
    given = {"run_id": "r", "catalog": "c", "output": "s3://b/p", "api": "together", "routes": routes}
    settings, apis = named_settings(
        RunSettings.model_validate({**given, "limits": {"concurrency": 4, **limits}})
    )
    with pytest.raises(InputError, match=words):
        accounts_of(settings, apis)
    apis[1].usd_per_image = 0.0  # a machine of one's own
    assert len(accounts_of(settings, apis)) == 2
