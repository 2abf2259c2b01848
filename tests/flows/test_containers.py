"""deploy/: what each pool's worker would make of it, against the schemas that others have published."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import botocore.session
import jsonschema
import kubernetes_validate
import prefect.server.api
import pytest
import yaml
from botocore.validate import ParamValidator
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.templating import apply_values

from tests.installation import ROOT

DEPLOY = ROOT / "deploy"
PROJECT: dict[str, Any] = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())
PREFECTS = files(prefect.server.api) / "collections_data" / "views" / "aggregate-worker-metadata.json"
TEMPLATES = {"kubernetes": "kubernetes-job.json", "ecs": "ecs-task.json"}
GRACE_S = 90
"""What a stop takes at most: 20 s for requests in flight, then uploads."""


def template_of(kind: str, *, ours: bool = True) -> dict[str, Any]:
    """The base job template of a pool: ours where we have one, else Prefect's."""
    if ours and kind in TEMPLATES:
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
