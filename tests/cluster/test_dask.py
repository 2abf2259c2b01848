"""A run on several processes, through a real Dask cluster."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from imagemill.blocks.apis import Together
from imagemill.cluster.dask import leading
from imagemill.cluster.worker import RunMember
from imagemill.emulator import Emulator
from imagemill.runs.log_parts import LeaderLog
from imagemill.runs.planning import plan_run
from imagemill.runs.session import open_session
from imagemill.settings import RunSettings
from imagemill.stores import Shard
from tests.cli.test_command import wait_for
from tests.cluster.local_cluster import Cluster
from tests.conftest import Command, Place, full_disk
from tests.patience import PATIENCE_S
from tests.s3_server import S3Server
from tests.servers import PASSWORD


@pytest.fixture(scope="module")
def shared_cluster(
    s3: S3Server, prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """One for all runs of the module, as users have it; its processes take long to start."""
    environment = {
        **s3.environment,
        "PREFECT_API_URL": prefect_server,
        "TOGETHER_API_KEY": "test-key-together",
        "FAL_KEY": "test-key-fal",
        "IMAGEMILL_STORE_PASSWORD": PASSWORD,
    }
    with Cluster(tmp_path_factory.mktemp("cluster"), 3, **environment) as running:
        yield running


@pytest.fixture
def cluster(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The module's cluster, with nobody missing whom a test before has killed."""
    monkeypatch.setenv("IMAGEMILL_STORE_PASSWORD", PASSWORD)
    shared_cluster.complete()
    return shared_cluster


@pytest.fixture
def arguments(
    place: Place, catalog: Callable[..., str], store_url: Callable[[str], str], cluster: Cluster
) -> Callable[..., list[str]]:
    """The command line of a run on the cluster, with a job store of this kind."""

    def make(emulated: Emulator, run_id: str, store: str, rows: int = 300) -> list[str]:
        return [
            *("run", catalog(prompt=[f"p{n}" for n in range(rows)]), "--run-id", run_id, "--json"),
            *("--provider", "together", "--base-url", emulated.base_url, "--width", "256", "--height", "256"),
            *("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url),
            *("--store", store_url(store), "--task-runner", "dask", "--scheduler", cluster.address),
            *("--shard-size", "50"),
        ]

    return make


@pytest.mark.slow
def test_three_workers_hold_one_rate(
    place: Place,
    emulator: Callable[..., Emulator],
    arguments: Callable[..., list[str]],
    command: Callable[..., Command],
    cluster: Cluster,
) -> None:
    emulated = emulator(latency_s=0.5, per_minute=1800, burst=10)
    given = arguments(emulated, "one-rate", "postgres")

    done = command(*given, "--max-images-per-minute", "1800")

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["generated"]) == (300, 300)
    bill, stats = emulated.bill(), emulated.stats()
    assert sorted(line["count"] for line in bill["by_key"].values()) == [1] * 300
    assert {row["status"] for row in place.table("manifest.parquet")} == {"done"}
    lines = [json.loads(line) for line in place.read("runs/one-rate/log.jsonl").splitlines()]
    assert len({line["job"] for line in lines if line["event"] == "done"}) == 300
    assert len({line["worker"] for line in lines if line["event"] == "done"}) == 3
    assert not [name for name in place.objects() if "/parts/" in name]
    assert all(PASSWORD not in log for log in cluster.logs())
    assert stats["rate_limited"] <= 0.1 * stats["generation_requests"]


@pytest.mark.slow
def test_the_workers_of_a_run_over_two_routes_hold_the_rate_of_each(
    place: Place,
    emulator: Callable[..., Emulator],
    arguments: Callable[..., list[str]],
    command: Callable[..., Command],
) -> None:
    slow, fast = (emulator(latency_s=0.3, per_minute=rate, burst=10) for rate in (600, 1200))
    given = arguments(slow, "two-rates", "postgres")
    start = given.index("--provider")
    given[start : start + 4] = [
        *("--route", f"together,base_url={slow.base_url},max_images_per_minute=600"),
        *("--route", f"fal,base_url={fast.base_url},max_images_per_minute=1200"),
    ]

    done = command(*given)

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["generated"]) == (300, 300)
    made = Counter(row["route"] for row in place.table("runs/two-rates/jobs.parquet"))
    assert made == {"together": slow.bill()["images"], "fal": fast.bill()["images"]}
    assert min(made.values()) >= 50
    for emulated in (slow, fast):
        stats = emulated.stats()
        assert stats["rate_limited"] <= 0.1 * stats["generation_requests"]


@pytest.mark.usefixtures("prefect_server")
def test_a_worker_buys_nothing_of_a_shard_that_it_has_not(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    store_url: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as one that another took over while it stood still."""
    monkeypatch.setenv("IMAGEMILL_STORE_PASSWORD", PASSWORD)
    emulated = emulator()
    settings = RunSettings.model_validate(
        {
            "run_id": "fenced",
            "catalog": catalog(prompt=["a", "b"]),
            "api": {"provider": "together", "base_url": emulated.base_url},
            "output": place.settings(),
            "execution": {
                "store": store_url("redis"), "task_runner": "dask", "scheduler": "tcp://127.0.0.1:1"
            },
        }
    )  # fmt: skip
    with open_session(settings) as lead:
        plan_run(lead)
        plugin = RunMember(settings)
        plugin.setup(None)
        with leading(lead), plugin.member() as worker:
            session, membership = worker.session, worker.membership
            session.wait(membership.claim, Shard(0, 0))
            session.wait(session.engine.run_shard, 0, 1)
            session.wait(membership.release, Shard(0, 0))
    assert [line["prompt"] for line in emulated.bill()["by_key"].values()] == ["a"]


@pytest.mark.slow
def test_workers_together_keep_to_the_budget_and_a_resume_goes_on(
    emulator: Callable[..., Emulator],
    arguments: Callable[..., list[str]],
    command: Callable[..., Command],
) -> None:
    emulated = emulator(latency_s=0.1)
    given = arguments(emulated, "budget", "redis", 600)
    image_usd = Together(api_key="k").price_usd(256, 256, 4)

    stopped = command(*given, "--max-cost", str(200.5 * image_usd))

    assert stopped.code == 3, stopped.err
    assert "limit" in stopped.err
    assert emulated.bill()["images"] == 200  # no worker keeps money that another needs
    assert stopped.json["done"] == emulated.bill()["images"]

    done = command("resume", "budget", "--max-cost", str(600.5 * image_usd), "--json")

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["pending"]) == (600, 0)
    assert emulated.bill()["images"] == 600


@pytest.mark.slow
def test_a_full_disk_that_does_not_take_the_workers_lines_leaves_the_run_to_a_resume(
    emulator: Callable[..., Emulator],
    arguments: Callable[..., list[str]],
    command: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = arguments(emulator(), "full-disk", "postgres", 20)

    with monkeypatch.context() as patch:
        patch.setattr(LeaderLog, "_gather", full_disk)
        stopped = command(*given)
    assert stopped.code == 3
    assert "runs/full-disk (No space left on device). Run the same command again" in stopped.err
    assert "Traceback" not in stopped.err
    done = command(*given)
    assert (done.code, done.json["done"]) == (0, 20), done.err


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(
    place: Place,
    emulator: Callable[..., Emulator],
    arguments: Callable[..., list[str]],
    start_command: Callable[..., subprocess.Popen[str]],
    cluster: Cluster,
) -> None:
    emulated = emulator(latency_s=0.3)
    given = arguments(emulated, "killed", "postgres")
    process = start_command(*given, "--concurrency", "10")
    wait_for(lambda: emulated.bill()["images"] >= 60, process)
    cluster.workers[0].send_signal(signal.SIGKILL)

    out, err = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 0, err
    summary = json.loads(out)
    assert (summary["done"], summary["pending"]) == (300, 0)
    charged = [line["count"] for line in emulated.bill()["by_key"].values()]
    assert len(charged) == 300
    # What the killed worker had in flight: ten requests, and as many images on their way to the bucket.
    assert sum(charged) - 300 <= 20
    assert len([name for name in place.objects() if name.startswith("images/")]) == 300


@pytest.mark.slow
def test_a_run_whose_scheduler_dies_goes_on_in_threads(
    place: Place,
    emulator: Callable[..., Emulator],
    arguments: Callable[..., list[str]],
    command: Callable[..., Command],
    start_command: Callable[..., subprocess.Popen[str]],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "5s")  # for a scheduler that is gone
    emulated = emulator(latency_s=0.3)
    given = arguments(emulated, "headless", "postgres")
    process = start_command(*given, "--concurrency", "10")
    wait_for(lambda: emulated.bill()["images"] >= 60, process)
    cluster.kill_scheduler()

    err = process.communicate(timeout=PATIENCE_S)[1]

    assert process.returncode == 3, err
    assert "The Dask scheduler" in err
    assert "is gone" in err
    assert "Traceback" not in err

    done = command("resume", "headless", "--task-runner", "threads", "--json")

    assert done.code == 0, done.err
    assert (done.json["done"], done.json["pending"]) == (300, 0)
    assert len([name for name in place.objects() if name.startswith("images/")]) == 300
    assert emulated.bill()["images"] - 300 <= 30  # what three workers had in flight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--store", "sqlite", "--scheduler", "tcp://127.0.0.1:1"], "job store that all machines can reach"),
        (["--store", "postgresql://mill@127.0.0.1/jobs"], "needs the scheduler's address"),
        (
            ["--store", "postgresql://mill@127.0.0.1/jobs", "--scheduler", "tcp://127.0.0.1:1"],
            "does not answer",
        ),
    ],
)
def test_what_cannot_run_on_dask_is_refused(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    command: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr("imagemill.cluster.dask._CONNECT_S", 1)
    refused = command(
        *("run", catalog(prompt=["a"]), "--base-url", emulator().base_url, "--task-runner", "dask"),
        *("--output", place.uri, "--s3-endpoint-url", place.s3.endpoint_url, *options),
    )
    assert (refused.code, refused.out) == (2, "")
    assert sentence in refused.err
    assert "Traceback" not in refused.err
