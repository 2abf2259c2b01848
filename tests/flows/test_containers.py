"""deploy/: what each pool's worker would make of it, against the schemas that others have published."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import prefect.server.api
import pytest
import yaml
from botocore.validate import ParamValidator
from docker.types import HostConfig
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flows import load_flow_from_entrypoint
from prefect.states import AwaitingRetry
from prefect.utilities.templating import apply_values
from prefect_aws import AwsClientParameters, AwsCredentials, S3Bucket
from pydantic import SecretStr

from imagemill.blocks import RedisServer
from imagemill.cli.child_process import ended_afterwards
from imagemill.emulator import Emulator
from tests.cli.test_command import wait_for
from tests.conftest import BUCKET, Place
from tests.docker_daemon import DockerDaemon, docker_daemon, why_not
from tests.installation import ROOT
from tests.patience import PATIENCE_S
from tests.s3_server import ACCESS_KEY, SECRET_KEY
from tests.servers import PASSWORD, url_of
from tests.servers import RedisServer as RunningRedis

DEPLOY = ROOT / "deploy"
PROJECT: dict[str, Any] = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())
PREFECTS = files(prefect.server.api) / "collections_data" / "views" / "aggregate-worker-metadata.json"
TEMPLATES = {
    "docker": "docker-container.json",
    "kubernetes": "kubernetes-job.json",
    "ecs": "ecs-task.json",
}
POD_ENV: dict[str, str] = PROJECT["definitions"]["env"]
GRACE_S = 90
"""What a stop takes at most: 20 s for requests in flight, then uploads."""


def template_of(kind: str, *, ours: bool = True) -> dict[str, Any]:
    """The base job template of a pool: ours, or Prefect's."""
    if ours:
        document: dict[str, Any] = json.loads((DEPLOY / TEMPLATES[kind]).read_text())
        return document
    for workers in json.loads(PREFECTS.read_text()).values():
        if kind in workers:
            document = workers[kind]["default_base_job_configuration"]
    return document


def job_of(kind: str) -> dict[str, Any]:
    """The job that a pool's worker makes of its template and of the job variables in prefect.yaml."""
    template = template_of(kind)
    properties = template["variables"]["properties"].items()
    known = {name: each["default"] for name, each in properties if each.get("default") is not None}
    given = {**PROJECT["definitions"]["pools"][kind]["job_variables"], "image": "registry/imagemill:0.2.0"}
    known |= {"command": "prefect flow-run execute", "labels": {"flow": "x"}, "name": "run", **given}
    job: dict[str, Any] = apply_values(template["job_configuration"], known)
    return job


@pytest.mark.parametrize("kind", ["docker", "kubernetes", "ecs"])
def test_job_variables_are_those_that_prefect_knows(kind: str) -> None:
    template = template_of(kind, ours=False)
    assert template_of(kind)["variables"] == template["variables"]
    given = PROJECT["definitions"]["pools"][kind]["job_variables"]
    assert given.keys() <= template["variables"]["properties"].keys()
    jsonschema.validate(given, template["variables"])


def test_the_docker_container_has_no_rights() -> None:
    job = job_of("docker")
    own = job.pop("container_create_kwargs")
    assert job.keys() <= template_of("docker", ours=False)["job_configuration"].keys()
    made = HostConfig("1.41", **{name: value for name, value in own.items() if name != "user"})
    assert made["ReadonlyRootfs"]
    assert (made["CapDrop"], made["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert own["user"] == "1000:1000"


def test_the_kubernetes_job_is_one_with_no_rights_and_time_to_stop() -> None:
    manifest = job_of("kubernetes")["job_manifest"]
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    variables = container["env"].items()  # the worker makes a list of them, and a list of the command
    container |= {"env": [{"name": n, "value": v} for n, v in variables], "args": container["args"].split()}
    kubernetes_validate.validate(manifest, "1.30", strict=True)
    assert pod["terminationGracePeriodSeconds"] >= GRACE_S
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/data"]
    assert "limits" in container["resources"]


def test_the_ecs_task_is_one_that_aws_takes() -> None:
    task = job_of("ecs")["task_definition"]
    (container,) = task["containerDefinitions"]
    task |= {"cpu": str(task["cpu"]), "memory": str(task["memory"]), "family": "imagemill"}
    container["name"] = "prefect"  # as the worker names what has no name
    shape = botocore.session.get_session().get_service_model("ecs").operation_model("RegisterTaskDefinition")
    found = ParamValidator().validate(task, shape.input_shape)
    assert not found.has_errors(), found.generate_report()
    assert GRACE_S <= container["stopTimeout"] <= 120  # the most that Fargate allows
    assert container["readonlyRootFilesystem"]


@pytest.mark.parametrize("deployment", PROJECT["deployments"], ids=lambda each: each["name"])
def test_a_deployment_needs_nothing_of_this_machine(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"])  # by module: there is no folder in the image
    assert ":" not in deployment["entrypoint"]
    parameters = deployment["parameters"]
    missing = set(flow.parameters.model_dump().get("required", [])) - set(parameters)
    assert missing <= {"run_id"}
    assert flow.validate_parameters({**dict.fromkeys(missing, "some-run"), **parameters})
    assert parameters["output"]["uri"].startswith("s3://")
    assert "path" not in parameters.get("catalog", {}) or parameters["catalog"]["path"].startswith("s3://")
    assert PROJECT["pull"] == []
    others = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    (same,) = (each for each in others if each["name"] == deployment["name"])
    assert deployment["entrypoint"].replace(".", "/") == same["entrypoint"].replace(".py:", "/")
    for name in ("description", "schedules", "concurrency_limit", "triggers"):
        assert deployment.get(name) == same.get(name)


IMAGE = "registry/imagemill:0.2.0"


@pytest.fixture(scope="module")
def deployed(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """deploy/prefect.yaml on a server, once per kind of pool; what to build and push is left out."""
    text = (DEPLOY / "prefect.yaml").read_text().replace("{{ built.image }}", IMAGE)
    kinds = list(PROJECT["definitions"]["pools"])
    deployments = list[dict[str, Any]]()
    with get_client(sync_client=True) as client:
        for kind in kinds:
            chosen = yaml.safe_load(
                text.replace("{<<: *kubernetes} # or", f"{{<<: *{kind}, name: pods-{kind}}} # or")
            )
            deployments += [{**each, "name": f"{each['name']}-{kind}"} for each in chosen["deployments"]]
            template = template_of(kind)
            client.create_work_pool(
                WorkPoolCreate(name=f"pods-{kind}", type=kind, base_job_template=template)
            )
        file = tmp_path_factory.mktemp("deploy") / "prefect.yaml"
        file.write_text(json.dumps({**PROJECT, "build": None, "push": None, "deployments": deployments}))
        subprocess.run(  # without a question about the image that is built elsewhere
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
            env={**os.environ, "PREFECT_API_URL": prefect_server},
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            check=True,
        )
        yield kinds
        for kind in kinds:
            client.delete_work_pool(f"pods-{kind}")


@pytest.mark.slow
def test_each_variant_can_be_deployed(deployed: list[str]) -> None:
    assert deployed == ["docker", "kubernetes", "ecs"]
    with get_client(sync_client=True) as client:
        for kind in deployed:
            for each in PROJECT["deployments"]:
                flow = each["entrypoint"].rpartition(".")[2].replace("_", "-")
                made = client.read_deployment_by_name(f"{flow}/{each['name']}-{kind}")
                assert made.work_pool_name == f"pods-{kind}"
                assert made.job_variables["image"] == IMAGE
                assert (made.pull_steps, made.entrypoint) == ([], each["entrypoint"])
        with pytest.raises(PrefectHTTPStatusError, match="mem_limit"):  # it is held to the pool's schema
            client.create_deployment(
                made.flow_id, "wrong", work_pool_name="pods-docker", job_variables={"mem_limit": 2}
            )


class Pod:
    """What a worker starts for a flow run: the image's command, its job's environment, an empty disk."""

    def __init__(self, flow_run: FlowRun, disk: Path, server: str, job_env: dict[str, str]) -> None:
        disk.mkdir()
        with (disk / "pod.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "flow-run", "execute"],
                env={
                    **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
                    **job_env,
                    "PREFECT_API_URL": server,
                    "PREFECT__FLOW_RUN_ID": str(flow_run.id),
                    **dict.fromkeys(("HOME", "TMPDIR"), str(disk)),
                    "IMAGEMILL_HOME": str(disk / "imagemill"),
                    "PREFECT_HOME": str(disk / "prefect"),
                },
                cwd=disk,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                text=True,
            )
        self._log = disk / "pod.log"

    @property
    def said(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def pod(prefect_server: str, tmp_path: Path) -> Iterator[Callable[[FlowRun], Pod]]:
    """Starts the next pod of a flow run."""
    made = list[Pod]()

    def start(flow_run: FlowRun) -> Pod:
        made.append(Pod(flow_run, tmp_path / f"pod-{len(made)}", prefect_server, POD_ENV))
        return made[-1]

    yield start
    for each in made:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.mark.slow
def test_a_pod_that_is_told_to_stop_hands_its_run_to_the_next(
    deployed: list[str],
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    redis_server: RunningRedis,
    pod: Callable[[FlowRun], Pod],
) -> None:
    """The next one starts at once, while the first is still closing: its leases are waited for."""
    save_bucket_block(place)
    store = RedisServer(url=url_of(redis_server, None), password=SecretStr(PASSWORD))
    store.save("pods", overwrite=True)
    emulated = emulator(latency_s=1.5, latency_sigma=0, max_concurrent=10)
    deployment = f"generate-catalog/on-demand-{deployed[1]}"
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run_from_deployment(
            client.read_deployment_by_name(deployment).id,
            parameters={
                "catalog": {"path": catalog(prompt=[f"p{n}" for n in range(100)])},
                "api": {"provider": "together", "base_url": emulated.base_url},
                "output": {"uri": place.uri, "s3_bucket_block": "images"},
                "picture": {"width": 256, "height": 256},
                "execution": {"store": "block:imagemill-redis-store/pods"},
            },
        )
        first = pod(flow_run)
        wait_for(lambda: emulated.bill()["images"] >= 20, first.process)
        first.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        wait_for(lambda: state_of(client, flow_run) is StateType.SCHEDULED, first.process)
        second = pod(flow_run)
        assert first.end() == 0, first.said
        took_s = time.monotonic() - told
        assert "Flow run successfully rescheduled." in first.said
        assert took_s < 30  # after which Prefect kills; a kubelet waits longer
        paid = emulated.bill()["images"]
        assert 20 <= paid < 100
        assert second.end() == 0, second.said
        state = client.read_flow_run(flow_run.id).state
    assert state is not None
    assert state.is_completed(), state
    (name,) = (name for name in place.objects() if name.endswith("summary.json"))
    summary = json.loads(place.read(name))
    found = [summary[name] for name in ("done", "pending", "generated", "unanswered")]
    assert found == [100, 0, 100, 0]
    bill = emulated.bill()
    assert bill["images"] == 100  # what was in flight came home
    assert summary["cost_usd"] == pytest.approx(bill["usd"], abs=1e-9)


def save_bucket_block(place: Place) -> None:
    """The block that the deployments name."""
    keys = AwsCredentials(
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SecretStr(SECRET_KEY),
        aws_client_parameters=AwsClientParameters(endpoint_url=place.s3.endpoint_url),
    )
    S3Bucket(bucket_name=BUCKET, credentials=keys).save("images", overwrite=True)


def state_of(client: Any, flow_run: FlowRun) -> StateType | None:
    state = client.read_flow_run(flow_run.id).state
    return state and state.type


@pytest.fixture(scope="module")
def docker() -> Iterator[DockerDaemon]:
    """A real daemon with the project's image."""
    if reason := why_not():
        pytest.skip(reason)
    with docker_daemon() as daemon:
        try:
            daemon.build(IMAGE)
        except RuntimeError as error:
            pytest.skip(str(error))
        yield daemon


@pytest.mark.slow
def test_the_image_runs_the_demo_as_a_user_without_rights(docker: DockerDaemon) -> None:
    asked = ["--read-only", "--volume", "demo:/data", "--health-interval", "2s"]
    container = docker.docker("run", "--detach", *asked, IMAGE, "imagemill", "demo", "--images", "60")
    seen = set[str]()
    state = ("inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", container)
    while (found := docker.docker(*state)).startswith("running "):
        seen.add(found.removeprefix("running "))
        time.sleep(0.5)
    assert docker.docker("wait", container) == "0", docker.docker("logs", container)
    assert seen == {"starting", "healthy"}
    assert "The emulated API charged" in docker.docker("logs", container)
    inside = "id -u; touch /opt/x /tmp/x; find / -xdev -name .git -o -xdev -name .env; ls /data"
    shown = docker.docker("run", "--rm", *asked[:3], IMAGE, "sh", "-c", inside).splitlines()
    assert shown == ["1000", "imagemill-demo", "prefect"]


@pytest.fixture
def docker_worker(prefect_server: str, docker: DockerDaemon, tmp_path: Path) -> Iterator[Path]:
    """A worker of the docker pool; its log."""
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "pods-docker"],
            env={
                **os.environ,
                "PREFECT_API_URL": prefect_server,
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                "DOCKER_HOST": docker.host,
            },
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    with ended_afterwards(process, 15):
        yield log


@pytest.mark.slow
def test_a_container_that_is_stopped_or_killed_is_followed_by_another(
    deployed: list[str],
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    docker: DockerDaemon,
    docker_worker: Path,
) -> None:
    """``docker stop`` hands the run over, and after ``docker kill`` a retry goes on with it."""
    save_bucket_block(place)
    emulated = emulator(latency_s=1.5, latency_sigma=0, max_concurrent=10)
    s3 = place.s3.client()
    s3.upload_file(catalog(prompt=[f"p{n}" for n in range(100)]), BUCKET, f"{place.prefix}catalog.parquet")
    s3.close()
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run_from_deployment(
            client.read_deployment_by_name(f"generate-catalog/on-demand-{deployed[0]}").id,
            parameters={
                "catalog": {"path": f"{place.uri}/catalog.parquet"},
                "api": {"provider": "together", "base_url": emulated.base_url},
                "output": {"uri": place.uri, "s3_bucket_block": "images"},
                "picture": {"width": 256, "height": 256},
            },
            job_variables={"env": {**POD_ENV, "TOGETHER_API_KEY": "a-key-of-the-emulator"}},
        )

        def until(holds: Callable[[], bool]) -> None:
            deadline = time.monotonic() + PATIENCE_S
            while not holds():
                assert time.monotonic() < deadline, docker_worker.read_text()
                time.sleep(0.1)

        def container(images: int) -> str:
            """The container of the run, once this many images are paid for."""
            until(lambda: emulated.bill()["images"] >= images)
            return docker.docker("ps", "-q", "--filter", f"label=io.prefect.flow-run-id={flow_run.id}")

        docker.docker("stop", "--time", str(GRACE_S), container(20))
        assert 20 <= emulated.bill()["images"] < 100
        docker.docker("kill", container(emulated.bill()["images"] + 20))
        until(lambda: state_of(client, flow_run) is StateType.CRASHED)
        client.set_flow_run_state(flow_run.id, AwaitingRetry())
        until(lambda: state_of(client, flow_run) is StateType.COMPLETED)
    log = docker_worker.read_text()
    assert "Flow run successfully rescheduled." in log
    (name,) = (name for name in place.objects() if name.endswith("summary.json"))
    summary = json.loads(place.read(name))
    assert (summary["done"], summary["pending"]) == (100, 0)
    # What was in flight or being uploaded at the kill, and is counted.
    again = emulated.bill()["images"] - 100
    assert 0 <= again <= min(20, summary["unanswered"])
    assert sum(name.startswith("images/") for name in place.objects()) == 100
