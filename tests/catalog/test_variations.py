"""Several pictures per row: what each is, what it costs, and that the first is the picture of before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr, ValidationError

from imagemill.blocks.apis import Together
from imagemill.bucket.image_bucket import copy_name
from imagemill.catalog.counts import PlanCounts
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner, planned_jobs, write_plan
from imagemill.cli.command import main
from imagemill.errors import InputError
from imagemill.jobs import Job
from imagemill.settings import CatalogSettings, PictureSettings

STYLED = {"prompt_template": "{{ title }}, {{ style }}", "vary": {"style": ["photo", "watercolour"]}}


def plan(
    path: str, picture: dict[str, Any] | None = None, **settings: Any
) -> tuple[list[Job], list[dict[str, Any]], list[dict[str, Any]], PlanCounts]:
    """The jobs, the plan's rows, the rejected rows and the counts."""
    catalog = open_catalog(CatalogSettings(path=path, **settings))
    planner = Planner(Together(api_key=SecretStr("k")), PictureSettings(**picture or {}))
    jobs: list[Job] = []
    place = Path(path).parent
    counts = write_plan(planner, catalog, place / "plan", place / "rejected", jobs.extend)
    planned, rejected = (pq.read_table(place / name).to_pylist() for name in ("plan", "rejected"))
    again = [job for batch in planned_jobs(place / "plan", planner.api.model, "png") for job in batch]
    assert again == jobs  # what another machine takes up
    return jobs, planned, rejected, counts


def test_the_first_of_the_variations_is_the_picture_of_a_run_without(catalog: Callable[..., str]) -> None:
    path = catalog(id=["a", "b", "c"], prompt=["x", "y", "x"], seed=[None, 5, None])
    before, *_ = plan(path)
    three, planned, rejected, counts = plan(path, variations=3)
    four, *_ = plan(path, variations=4)
    assert [(row["id"], row["variant"]) for row in planned] == [(i, n) for i in "abc" for n in (1, 2, 3)]
    assert [(job.id, job.variant) for job in three] == [(i, n) for i in "ab" for n in (1, 2, 3)]
    assert [job.key for job in three if job.variant == 1] == [job.key for job in before]
    assert [job.key for job in four if job.variant <= 3] == [job.key for job in three]
    assert len({job.key for job in four}) == 8
    assert rejected == []
    assert (counts.rows, counts.variants, counts.unique, counts.duplicates) == (3, 3, 6, 3)
    assert counts.cost_usd == pytest.approx(6 * 0.0027 * 1.048576)


def test_every_combination_is_made_and_templates_see_it(catalog: Callable[..., str]) -> None:
    path = catalog(title=["Mug", "Vase"], width=[256, 512])
    vary = {**STYLED["vary"], "size": "1024x1024,768x1344"}
    jobs, planned, _, _ = plan(path, prompt_template=STYLED["prompt_template"], vary=vary)
    assert [(job.prompt, job.variant, job.width, job.height) for job in jobs[:4]] == [
        ("Mug, photo", 1, 1024, 1024), ("Mug, photo", 2, 768, 1344),
        ("Mug, watercolour", 3, 1024, 1024), ("Mug, watercolour", 4, 768, 1344),
    ]  # fmt: skip
    assert json.loads(jobs[3].varied) == {"style": "watercolour", "size": "768x1344"}
    assert [row["carried:style"] for row in planned[:4]] == ["photo", "photo", "watercolour", "watercolour"]
    assert [row["carried:title"] for row in planned[3:5]] == ["Mug", "Vase"]
    twice, *_ = plan(path, prompt_template=STYLED["prompt_template"], vary=vary, variations=2)
    assert {job.key for job in jobs} < {job.key for job in twice}
    assert [job.variant for job in twice[:8]] == list(range(1, 9))
    assert twice[4].varied == twice[0].varied


def test_seeds_steps_and_fields_of_the_model_are_varied_too(catalog: Callable[..., str]) -> None:
    path = catalog(prompt=["x"])
    jobs, *_ = plan(path, vary={"seed": [1, 2], "steps": [2, 4]})
    assert [(job.seed, job.steps) for job in jobs] == [(1, 2), (1, 4), (2, 2), (2, 4)]
    jobs, *_ = plan(path, vary={"seed": ["7"]}, variations=2)
    assert jobs[0].seed == 7 != jobs[1].seed


def test_a_row_is_rejected_once_and_a_combination_alone(catalog: Callable[..., str]) -> None:
    path = catalog(id=["a", " ", "c", "a"], title=["Mug", "Jar", None, "Cup"], colour=["red", "x", "x", "x"])
    jobs, planned, rejected, counts = plan(
        path,
        prompt_template="{% if style == 'plain' %}{{ title }}{% else %}{{ colour }}{% endif %}",
        vary={"style": ["plain", "coloured"]},
        variations=2,
    )
    assert [(row["row"], row["varied"]) for row in rejected] == [
        (1, None), (2, '{"style": "plain"}'), (3, None),
    ]  # fmt: skip
    assert rejected[0]["reason"] == "blank id"
    assert rejected[2]["reason"] == "an earlier row has the same id and other content"
    assert [(row["id"], row["variant"], row["reason"] is None) for row in planned] == [
        ("a", 1, True), ("a", 2, True), ("a", 3, True), ("a", 4, True),
        (None, 1, False),
        ("c", 1, False), ("c", 2, True), ("c", 4, True),
        ("a", 1, False),
    ]  # fmt: skip
    assert [job.prompt for job in jobs] == ["Mug", "red", "Mug", "red", "x", "x"]
    assert (counts.rows, counts.rejected, counts.unique, counts.duplicates) == (4, 3, 6, 0)


def test_batches_end_between_rows(catalog: Callable[..., str]) -> None:
    path = catalog(id=[str(n) for n in range(2_500)], prompt=[str(n % 2_400) for n in range(2_500)])
    jobs, planned, _, counts = plan(path, variations=7)
    assert [job.number for job in jobs] == list(range(2_400 * 7))
    assert (len(planned), counts.duplicates) == (2_500 * 7, 700)
    assert [row["job"] for row in planned[-7:]] == [row["job"] for row in planned[99 * 7 : 100 * 7]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vary": {"style": ["a", "b"]}}, "Varying 'style' changes no picture: no template reads it"),
        ({"vary": {"title": ["a"]}, "prompt_template": "{{ title }}"}, "has a column 'title' of its own"),
    ],
)
def test_what_cannot_be_varied_is_said(
    catalog: Callable[..., str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan(catalog(prompt=["x"], title=["Mug"]), **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"vary": {"size": ["big"]}}, {"vary": {"seed": ["-1"]}}, {"vary": {"style": []}},
        {"vary": {"style": ["a", "a"]}}, {"vary": {"size": ["1x1"], "width": ["1"]}},
        {"vary": {"prompt": ["a"]}},
        {"vary": {"a": [str(n) for n in range(40)], "b": [str(n) for n in range(40)]}}, {"variations": 0},
    ],
)  # fmt: skip
def test_unusable_variations_are_refused_at_once(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CatalogSettings(path="x", **settings)


def test_the_command_estimates_all_pictures(
    catalog: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = catalog(title=["Mug", "Vase"])
    options = ["--prompt-template", "{{ title }}, {{ style }}", "--vary", "style=photo,watercolour"]
    assert main(["estimate", path, "--json", *options, "--variations", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["variants"], found["unique"]) == (2, 6, 12)
    assert main(["estimate", path, "--vary", "style=a", "--vary", "style=b"]) == 2
    assert "--vary is given twice for one name" in capsys.readouterr().err
    assert main(["estimate", path, "--vary", "style"]) == 2
    assert "--vary 'style' is not of the form NAME=A,B" in capsys.readouterr().err


def test_copies_of_variants_never_share_a_name() -> None:
    ids = ["x", "2", "x.png", "variant-2", "x~2", "variant-2/x", "a/b"]
    names = [copy_name(row_id, "png", variant) for row_id in ids for variant in (1, 2, 3)]
    assert len(set(names)) == len(names)
    assert copy_name("x", "png") == "catalog/x.png"
    folders = {name.rpartition("/")[0] for name in names}
    assert not folders & set(names)  # nor on a disk
