"""Prefect as users have it: a server, a worker and deployments, shared by the tests that need them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.workers.process import ProcessWorker

from imagemill.emulator import Emulator, Settings
from tests.conftest import BUCKET, Place
from tests.installation import ROOT, Installation, installation
from tests.patience import PATIENCE_S
from tests.s3_server import S3Server


@dataclass
class Office:
    """A whole installation, what its worker reaches, and where its catalogs lie."""

    prefect: Installation
    place: Place
    emulated: Emulator
    folder: Path

    def catalog(self, name: str, rows: int) -> str:
        path = self.folder / f"{name}.parquet"
        prompts = [f"{name} {n}" for n in range(rows)]
        pq.write_table(pa.table({"id": prompts, "prompt": prompts}), path)
        return str(path)

    def place_of(self, name: str) -> Place:
        """An output of its own: a manifest belongs to one catalog."""
        return Place(self.place.s3, f"{self.place.uri}/{name}")

    def call(self, method: str, path: str, **document: Any) -> Any:
        body = document or None
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = httpx.request(method, f"{self.prefect.api}{path}", json=body, timeout=30)
            busy = answer.status_code == httpx.codes.SERVICE_UNAVAILABLE  # the server's SQLite
            if not busy or time.monotonic() > deadline:
                return answer.raise_for_status().json()
            time.sleep(0.2)

    @contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of the server; in the block, this process's Prefect is the installation's."""
        home = Path(self.prefect.environment["PREFECT_HOME"])
        with (
            temporary_settings({PREFECT_API_URL: self.prefect.api, PREFECT_HOME: home}),
            get_client(sync_client=True) as client,
        ):
            yield client

    def deployment(self, name: str) -> str:
        return str(self.call("GET", f"/deployments/name/{name}")["id"])

    def start(self, name: str, **parameters: Any) -> str:
        """Start a run of a deployment; its flow run's id."""
        path = f"/deployments/{self.deployment(name)}/create_flow_run"
        return str(self.call("POST", path, parameters=parameters)["id"])

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/flow_runs/{flow_run_id}")
        return found

    def wait(self, what: str, met: Callable[[], Any]) -> Any:
        """The first true answer of ``met``."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := met():
                return found
            time.sleep(0.2)
        raise AssertionError(f"{what}\n{self.prefect.log('worker')[-4000:]}")

    def wait_for(self, flow_run_id: str, *states: str) -> dict[str, Any]:
        """The flow run, once it is in one of these states."""

        def met() -> dict[str, Any] | None:
            found = self.flow_run(flow_run_id)
            return found if found["state_name"] in states else None

        found: dict[str, Any] = self.wait(f"no {states}: {self.flow_run(flow_run_id)['state']}", met)
        return found

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        """The flow runs of a deployment that are not its schedule's."""
        wanted = {"deployments": {"id": {"any_": [self.deployment(deployment)]}}}
        found = self.call("POST", "/flow_runs/filter", **wanted)
        return [run for run in found if not run["auto_scheduled"]]

    def set_latency(self, seconds: float) -> None:
        self.emulated.configure(latency_s=seconds)


@pytest.fixture(scope="package")
def office(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """prefect.yaml as a user would edit it: their bucket, their API; deployed, and worked on."""
    folder = tmp_path_factory.mktemp("office")
    place = Place(s3, f"s3://{BUCKET}/office")
    emulated = Emulator(Settings(latency_s=0.4, max_concurrent=8, pictures="fast"))
    emulated.start()
    try:
        with installation(folder) as prefect:
            office = Office(prefect, place, emulated, folder)
            project = yaml.safe_load((ROOT / "prefect.yaml").read_text())
            for deployment in project["deployments"]:
                parameters = {**deployment.get("parameters", {})}  # the file's deployments share theirs
                deployment["parameters"] = parameters
                if "output" in parameters:
                    parameters["output"] = office.place_of(deployment["name"]).settings()
                if "api" in parameters:
                    parameters["api"] = {"provider": "fal", "base_url": emulated.base_url}
                if "catalog" in parameters:
                    parameters["picture"] = {"width": 256, "height": 256}
                if "refresh" in parameters:
                    parameters["refresh"] = {"only_paths": [f"{folder}/*"]}
            (folder / "prefect.yaml").write_text(yaml.safe_dump(project))
            with office.client() as client:
                template = ProcessWorker.get_default_base_job_template()
                pool = WorkPoolCreate(name="imagemill", type="process", base_job_template=template)
                client.create_work_pool(pool)
            keys = {"FAL_KEY": "key", "TOGETHER_API_KEY": "key"}
            with prefect.worker(**s3.environment, **keys, PREFECT_WORKER_QUERY_SECONDS="1"):
                prefect.prefect("deploy", "--all", "--prefect-file", str(folder / "prefect.yaml"))
                yield office
    finally:
        emulated.stop()
