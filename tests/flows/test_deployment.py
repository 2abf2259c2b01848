"""prefect.yaml, deployed for real: a work pool, a worker, a run with parameters."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
import yaml
from prefect.deployments import run_deployment
from prefect.exceptions import PrefectHTTPStatusError
from prefect.flows import load_flow_from_entrypoint
from prefect.server.utilities.user_templates import render_user_template_sync
from prefect.states import AwaitingRetry

from imagemill.runs.summary import RunSummary
from tests.flows.conftest import Office
from tests.installation import ROOT


@pytest.mark.slow
def test_the_deployment_runs_on_a_worker(office: Office) -> None:
    place = office.place_of("deployed")
    parameters = {"catalog": {"path": office.catalog("deployed", 2)}, "output": place.settings()}
    with office.client(), pytest.raises(PrefectHTTPStatusError, match="1"):
        # Refused before there is a run.
        run_deployment("generate-catalog/on-demand", parameters={"picture": {"width": 0}}, timeout=0)
    flow_run_id = uuid.UUID(office.start("generate-catalog/on-demand", **parameters))
    for count in (1, 2):  # the second time as Retry in the UI does: the same run is taken up again
        ended = office.wait_for(str(flow_run_id), "Completed", "Failed", "Crashed")
        assert ended["run_count"] == count
        with office.client() as client:
            state = client.read_flow_run(flow_run_id).state
            assert state is not None
            assert state.is_completed(), state
            summary = state.result()
            assert isinstance(summary, RunSummary)
            assert (summary.rows, summary.done) == (2, 2)
            if count == 1:
                client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)
    assert {row["status"] for row in place.table("manifest.parquet")} == {"done"}
    assert len({name.split("/")[1] for name in place.objects() if name.startswith("runs/")}) == 1


DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_each_deployment_fits_its_flow_and_its_form_explains_itself(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    parameters = deployment.get("parameters", {})
    schema = flow.parameters.model_dump()
    missing = set(schema.get("required", [])) - set(parameters)
    assert missing <= {"run_id"}
    assert flow.validate_parameters({**dict.fromkeys(missing, "some-run"), **parameters})
    definitions = schema.get("definitions", {})
    fields = {**schema["properties"]}
    for definition in definitions.values():
        fields |= definition["properties"]
    for name, field in fields.items():
        described = definitions.get(field.get("$ref", "").rpartition("/")[2], field)
        assert described.get("description"), name
        title = field.get("title", "")
        assert not title or title == name or title[0].isupper(), (
            title
        )  # a parameter by its name, fields in words
        assert not re.search(r"\b(Id|Url|Uri|Usd|Api)\b|\(.*\) ", title), title


def test_the_forms_say_the_same_of_the_same_parameters() -> None:
    said: dict[str, set[str]] = {}
    for deployment in DEPLOYMENTS:
        for name, field in load_flow_from_entrypoint(deployment["entrypoint"]).parameters.properties.items():
            text = re.split("[,;.]", str(field.get("description", "")))[0].replace(" go", " are")
            if text:  # else it is that of the settings, which all flows share
                said.setdefault(name, set()).add(text)
    assert {name: texts for name, texts in said.items() if len(texts) > 1} == {}


def test_schedules_name_their_time_zone() -> None:
    schedules = [schedule for each in DEPLOYMENTS for schedule in each.get("schedules", [])]
    assert schedules
    assert all(schedule["timezone"] for schedule in schedules)
    for line in (ROOT / "docs" / "deploy-it.md").read_text().splitlines():
        if re.search(r"^\|.*( at \d+:\d\d| past each hour)", line):
            assert re.search(r"Berlin time|UTC", line), line


def test_an_event_starts_a_refresh_only_of_the_catalogs_it_was_told_about() -> None:
    nightly = next(each for each in DEPLOYMENTS if each["name"] == "nightly")
    (trigger,) = nightly["triggers"]
    assert "*" not in trigger["match"]["prefect.resource.id"]
    assert nightly["parameters"]["catalog"]["path"] in nightly["parameters"]["refresh"]["only_paths"]
    flow = load_flow_from_entrypoint(nightly["entrypoint"])
    for payload, path in (({"path": "s3://x/y.parquet"}, "s3://x/y.parquet"), ({}, "")):
        event = {"event": {"payload": payload}}
        named = render_user_template_sync(trigger["parameters"]["path"], event)
        assert named == path
        flow.validate_parameters({**nightly["parameters"], "path": named})
    assert nightly["concurrency_limit"]["collision_strategy"] == "ENQUEUE"  # no upload is lost
