"""The manifest of an output: merged, replaced, retired and pruned; and what a refresh may take from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from imagemill.blocks.apis import Fal
from imagemill.bucket.image_bucket import ImageBucket, image_name
from imagemill.bucket.manifest import OUTCOME_FIELDS, Outcomes, Publisher, write_manifest
from imagemill.bucket.manifest_diff import Changes
from imagemill.bucket.manifest_guard import (
    Standing,
    loss_of_refresh,
    newer_run,
    rebought_columns,
    refuse_other_catalog,
    standing,
)
from imagemill.bucket.replacement import Missing, Prune, replace_manifest
from imagemill.bucket.superseded import keep
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner, write_plan
from imagemill.errors import InputError, StoreUnavailableError
from imagemill.jobs import Job, JobStatus
from imagemill.settings import CatalogSettings, PictureSettings, RefreshSettings
from tests.bucket.s3_front import Answer, Asked, S3Front

Columns = dict[str, Sequence[Any]]
EMPTY: Mapping[str, str] = {}


@pytest.fixture
def output(bucket: ImageBucket, tmp_path: Path) -> Output:
    return Output(bucket, tmp_path)


class Output:
    """An output whose runs make every image, without an API."""

    def __init__(self, bucket: ImageBucket, folder: Path) -> None:
        self.bucket, self._folder = bucket, folder

    def plan(
        self, columns: Columns, name: str = "catalog.parquet", mapped: Mapping[str, str] = EMPTY
    ) -> tuple[Path, list[Job]]:
        path, plan = self._folder / name, self._folder / "plan.parquet"
        pq.write_table(pa.table(columns), path)
        jobs: list[Job] = []
        planner = Planner(Fal(api_key=SecretStr("k")), PictureSettings())
        catalog = open_catalog(CatalogSettings(path=str(path), columns=dict(mapped)))
        write_plan(planner, catalog, plan, self._folder / "rejected.parquet", jobs.extend)
        self.used = catalog.columns
        return plan, jobs

    def run(
        self,
        columns: Columns,
        name: str = "catalog.parquet",
        mapped: Mapping[str, str] = EMPTY,
        publisher: Publisher = Publisher("run", ""),
        states: Mapping[str, tuple[JobStatus, str | None]] = MappingProxyType({}),
        **how: Any,
    ) -> Changes:
        plan, jobs = self.plan(columns, name, mapped)
        for job in jobs:
            if job.id in states:
                job.status, job.error_code = states[job.id]
                continue
            job.status, job.image = JobStatus.DONE, image_name(job.key, "png")
            self.bucket.write_version(job.image, b"image", "image/png", self.bucket.etag(job.image))
        outcomes = Outcomes()
        outcomes.add(pa.RecordBatch.from_pylist([asdict(job) for job in jobs]).select(OUTCOME_FIELDS))
        file = self._folder / "manifest.parquet"
        how_known = {"catalog": str(self._folder / name), "publisher": publisher, "columns": self.used}
        write_manifest(self.bucket, plan, outcomes, file, copies=False, **how_known)
        return replace_manifest(self.bucket, file, **how)

    def rewrite_as_0_1(self, renamed: Mapping[str, str] = EMPTY) -> None:
        """Make the manifest one of version 0.1, which noted neither catalog nor columns."""
        table = pq.read_table(pa.BufferReader(self.bucket.read("manifest.parquet"))).drop_columns("variant")
        table = table.rename_columns([renamed.get(name, name) for name in table.column_names])
        content = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(None), content)
        etag = self.bucket.etag("manifest.parquet")
        self.bucket.write_version("manifest.parquet", content.getvalue().to_pybytes(), "x/y", etag)

    def standing(self, columns: Columns, name: str = "catalog.parquet") -> tuple[Standing, str]:
        plan, _ = self.plan(columns, name)
        found = standing(self.bucket, plan, self.used)
        assert found is not None
        return found, str(self._folder / name)

    def loss(self, columns: Columns, *, prune: bool = False, **refresh: Any) -> str | None:
        found, path = self.standing(columns)
        return loss_of_refresh(found, path, RefreshSettings(**refresh), prune=prune)

    def rows(self, name: str = "manifest.parquet") -> list[dict[str, Any]]:
        content = self.bucket.read(name)
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(content)).to_pylist()
        return rows

    def images(self) -> set[str]:
        return {image.name for image in self.bucket.objects("images")}


def shop(rows: int, start: int = 0, **more: Any) -> Columns:
    ids = [f"sku-{n}" for n in range(start, rows)]
    return {"id": ids, "prompt": [f"a photo of {name}" for name in ids], **more}


@pytest.mark.slow
def test_a_part_of_a_catalog_is_merged_into_the_manifest(output: Output) -> None:
    output.run(shop(30, price=list(range(30))))
    kept = output.images()
    part = {"id": ["sku-1", "new"], "prompt": ["a drawing", "x"], "stock": [5, 6]}
    changes = output.run(part, missing=Missing.KEEP)
    assert (changes.added, changes.changed, changes.retired) == (1, 1, 0)
    rows = {row["id"]: row for row in output.rows()}
    assert len(rows) == 31
    assert {row["status"] for row in rows.values()} == {"done"}
    assert (rows["sku-7"]["price"], rows["sku-1"]["price"], rows["new"]["stock"]) == (7, None, 6)
    output.run({"id": ["new"], "prompt": ["x"], "price": pa.nulls(1)}, missing=Missing.KEEP)
    assert {row["id"]: row["price"] for row in output.rows()}["sku-7"] == 7, "a column without a value"
    # A later prune knows what the manifest no longer names, whichever run removed it.
    output.run({"id": ["new"], "prompt": ["x"]})
    assert {row["name"] for row in output.rows("superseded.parquet")} == kept | {
        row["uri"].removeprefix(f"{output.bucket.uri}/") for name, row in rows.items() if name == "sku-1"
    }


@pytest.mark.slow
def test_prune_waits_lists_and_deletes(output: Output) -> None:
    output.run(shop(5))
    everything = output.images()
    patient = {"missing": Missing.RETIRE, "prune": Prune(7, "runs/a/prune.parquet")}
    changes = output.run(shop(4), **patient)
    assert (changes.retired, changes.pruned, changes.prunable) == (1, 0, 1)
    assert output.images() == everything
    (listed,) = output.rows("runs/a/prune.parquet")
    assert listed["outcome"] == "waiting"
    assert listed["delete_after"] - listed["superseded_at"] == timedelta(days=7)
    assert abs(datetime.now(UTC) - listed["superseded_at"]) < timedelta(minutes=1)
    assert output.rows()[-1]["uri"] == listed["uri"]
    # The row returns before that: it is undone.
    changes = output.run(shop(5), **patient)
    assert (changes.added, changes.prunable, output.rows("superseded.parquet")) == (1, 0, [])

    at_once = {"missing": Missing.RETIRE, "prune": Prune(0, "runs/b/prune.parquet")}
    changes = output.run(shop(4), **at_once)
    assert (changes.pruned, changes.prunable, len(output.images())) == (1, 0, 4)
    assert [row["outcome"] for row in output.rows("runs/b/prune.parquet")] == ["deleted"]
    assert (output.rows()[-1]["status"], output.rows()[-1]["uri"]) == ("retired", None)


def test_the_grace_period_of_what_an_earlier_version_superseded_begins_once(output: Output) -> None:
    output.run(shop(5))
    patient = {"missing": Missing.RETIRE, "prune": Prune(7, "runs/a/prune.parquet")}
    output.run(shop(4), **patient)
    (name,) = [row["name"] for row in output.rows("superseded.parquet")]
    content = pa.BufferOutputStream()
    pq.write_table(pa.table({"name": [name]}), content)
    etag = output.bucket.etag("superseded.parquet")
    output.bucket.write_version("superseded.parquet", content.getvalue().to_pybytes(), "x/y", etag)
    output.run(shop(4), **patient)
    (since,) = output.rows("superseded.parquet")
    output.run(shop(4), **patient)
    assert "superseded_at" in since
    assert output.rows("superseded.parquet") == [since]


class PartlyRefused(Answer):
    """What DeleteObjects answers, with status 200, about a single key."""

    @property
    def body(self) -> bytes:
        error = f"<Error><Key>{self.code}</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
        return f"<?xml version='1.0'?><DeleteResult>{error}</DeleteResult>".encode()


@pytest.mark.slow
def test_an_object_that_cannot_be_deleted_is_reported_and_tried_again(output: Output, front: S3Front) -> None:
    output.run(shop(5))
    everything = output.images()
    at_once = {"missing": Missing.RETIRE, "prune": Prune(0, "runs/a/prune.parquet")}

    def refuse(asked: Asked) -> Answer | None:
        if asked.method != "POST" or "delete" not in asked.path:
            return None
        return PartlyRefused(200, asked.body.decode().partition("<Key>")[2].partition("</Key>")[0])

    front.before = refuse
    changes = output.run(shop(4), **at_once)
    assert (changes.pruned, changes.prune_failed) == (0, 1)
    (listed,) = output.rows("runs/a/prune.parquet")
    assert listed["outcome"] == "not deleted: AccessDenied"
    assert [row["name"] for row in output.rows("superseded.parquet")] == [
        *everything - used(output.rows(), output)
    ]
    front.before = lambda _: None
    assert output.run(shop(4), **at_once).pruned == 1
    assert output.images() == used(output.rows(), output)


def used(rows: list[dict[str, Any]], output: Output) -> set[str]:
    return {row["uri"].removeprefix(f"{output.bucket.uri}/") for row in rows if row["uri"]}


def test_what_a_refresh_may_take(output: Output) -> None:
    output.run(shop(40))
    assert output.loss(shop(40)) is None
    assert output.loss(shop(32)) is None  # 20 %
    assert "would take 9 of 40 rows" in str(output.loss(shop(31)))
    assert output.loss(shop(31), max_retired_share=0.25) is None
    assert "would take 39 of 40 rows" in str(output.loss(shop(1)))
    assert "has no row that can become an image" in str(output.loss({"prompt": pa.array([], pa.string())}))
    assert "has no row that can become an image" in str(output.loss({**shop(40), "prompt": [" "] * 40}))
    blank = {**shop(40), "prompt": [" "] * 9 + ["x"] * 31}
    assert "0 have left the catalog, 9 can no longer be used" in str(output.loss(blank))
    other = {"id": [f"lamp-{n}" for n in range(40)], "prompt": ["x"] * 40}
    assert "would take 40 of 40 rows" in str(output.loss(other, max_retired_share=1))
    added = {"id": [*shop(40)["id"], "one"], "prompt": [*shop(40)["prompt"], "x"]}
    assert output.loss(added, prune=True) is None
    reworded = {**shop(40), "prompt": [f"a drawing of {n}" for n in range(40)]}
    assert output.loss(reworded) is None
    assert "would delete 40 of 40 images" in str(output.loss(reworded, prune=True))


@pytest.mark.slow
def test_a_manifest_knows_its_catalog_by_its_rows(output: Output) -> None:
    output.run(shop(20), "shop.parquet")
    refuse_other_catalog(*output.standing(shop(20), "moved/elsewhere.parquet".replace("/", "-")))
    refuse_other_catalog(*output.standing(shop(400), "shop.parquet"))  # grown
    with pytest.raises(InputError, match=r"shop\.parquet', not of .*: 0 of its 20 ids are in this catalog"):
        refuse_other_catalog(*output.standing({"id": ["lamp"], "prompt": ["x"]}, "shop.parquet"))
    prompts = {"prompt": [f"p{n}" for n in range(20)]}  # rows without ids are known by their prompts
    output.run(prompts, "p-2026-11-25.parquet")
    refuse_other_catalog(*output.standing({"prompt": ["all", "new"]}, "p-2026-11-26.parquet"))
    refuse_other_catalog(*output.standing(prompts, "moved.parquet"))
    with pytest.raises(InputError, match="0 of its 20 prompts are in this catalog"):
        refuse_other_catalog(*output.standing({"prompt": ["all", "new"]}, "lamps.parquet"))


def test_a_run_older_than_the_manifest_does_not_put_its_catalog_back(output: Output) -> None:
    old, new = Publisher("old", "2026-11-25T01:00:00+00:00"), Publisher("new", "2026-11-26T01:00:00+00:00")
    output.run(shop(4), publisher=old)
    output.run(shop(5, 1), publisher=new, missing=Missing.RETIRE)
    plan, _ = output.plan(shop(4))
    for run in (new, Publisher("newest", "2026-11-26T01:00:00.001+00:00")):
        assert newer_run(output.bucket, run, plan, is_part=False) is None
    assert newer_run(output.bucket, old, plan, is_part=False) == ("new", False)
    part, _ = output.plan(shop(9, 2))
    assert newer_run(output.bucket, old, part, is_part=True) is None, "it asks for no other picture"
    part, _ = output.plan({"id": ["sku-2"], "prompt": ["a drawing"]})
    assert newer_run(output.bucket, old, part, is_part=True) == ("new", False)
    same, _ = output.plan(shop(4, 1))
    assert newer_run(output.bucket, old, same, is_part=False) == ("new", True)


@pytest.mark.slow
def test_repaired_rejected_rows_are_of_the_same_catalog(output: Output) -> None:
    output.run(shop(30) | {"prompt": [f"a photo of {n}" if n < 28 else " " for n in range(30)]})
    repaired = {"id": ["sku-28", "sku-29"], "prompt": ["a mug", "a lamp"]}
    refuse_other_catalog(*output.standing(repaired, "repaired.parquet"))
    output.run(repaired, "repaired.parquet", missing=Missing.KEEP)
    assert [row["status"] for row in output.rows()] == ["done"] * 30


def test_columns_that_0_1_only_carried_are_not_used_unasked(output: Output) -> None:
    seeds = shop(30, Seed=list(range(30)))
    output.run(seeds, mapped={"seed": ""})
    output.rewrite_as_0_1()
    found, _ = output.standing(seeds)
    assert (found.shared, found.changed, found.newly_used) == (30, 30, {"seed": "Seed"})
    words = rebought_columns(found, share=0.2)
    assert words is not None
    assert "The column 'Seed' would now be used as seed" in words
    assert "30 of 30 images would be made anew" in words
    assert "--column seed=Seed to use it, --column seed= to leave it alone" in words
    same = shop(30, Steps=[4] * 30)  # what was sent anyway
    output.run(same, mapped={"steps": ""})
    output.rewrite_as_0_1()
    assert rebought_columns(output.standing(same)[0], share=0.2) is None
    output.run(seeds, missing=Missing.RETIRE)  # as asked for: from now on it is known
    changed = {**seeds, "prompt": [f"a drawing of {n}" for n in range(30)]}
    assert rebought_columns(output.standing(changed)[0], share=0.2) is None


def test_a_carried_column_that_becomes_another_type_keeps_its_values(output: Output) -> None:
    output.run(shop(3, price=[1, 2, 3], size=[7, 8, 9], day=[date(2026, 1, 2)] * 3))
    part = shop(1, price=[1.5], size=["L"], day=pa.nulls(1))
    output.run(part, missing=Missing.KEEP)
    kept = {row["id"]: (row["price"], row["size"], row["day"]) for row in output.rows()}
    day = date(2026, 1, 2)
    assert kept == {"sku-0": (1.5, "L", None), "sku-1": (2.0, "8", day), "sku-2": (3.0, "9", day)}
    output.run(shop(1, price=["free"]), missing=Missing.RETIRE)
    assert [(row["price"], row["size"]) for row in output.rows()] == [
        ("free", None), ("2", "8"), ("3", "9"),
    ]  # fmt: skip


def test_a_column_variant_of_a_catalog_of_0_1_tells_no_rows_apart(output: Output) -> None:
    own = shop(4, mine=pa.array([2, 3, 1, 2], pa.int32()))
    output.run(own)
    output.rewrite_as_0_1({"mine": "variant"})
    again = {"variant" if name == "mine" else name: column for name, column in own.items()}
    assert output.loss(again) is None
    changes = output.run(again, missing=Missing.RETIRE)
    assert (changes.unchanged, changes.added, changes.retired) == (4, 0, 0)
    output.rewrite_as_0_1({"catalog_variant": "variant"})
    changes = output.run(shop(3), missing=Missing.RETIRE)
    assert (changes.unchanged, changes.retired) == (3, 1)
    (gone,) = [row for row in output.rows() if row["status"] == "retired"]
    assert (gone["id"], gone["variant"], gone["catalog_variant"]) == ("sku-3", None, 2)


@pytest.mark.parametrize("missing", Missing)
def test_a_lost_answer_to_the_manifest_changes_no_count(
    output: Output, front: S3Front, missing: Missing
) -> None:
    output.run(shop(4))
    lost: list[Asked] = []

    def lose(asked: Asked) -> Exception | None:
        if asked.is_object_write and asked.path.endswith("manifest.parquet") and not lost:
            lost.append(asked)
            return ConnectionError()
        return None

    front.after = lose
    changes = output.run({"id": ["sku-0", "new"], "prompt": ["a drawing", "x"]}, missing=missing)
    assert lost
    assert (changes.added, changes.changed) == (1, 1)
    assert len(output.rows()) == (2 if missing is Missing.DROP else 5)


def test_what_a_write_without_answer_has_changed_is_counted_by_the_resume(
    output: Output, front: S3Front
) -> None:
    output.run(shop(4))

    def lose(asked: Asked) -> Exception | None:
        is_manifest = asked.is_object_write and asked.path.endswith("manifest.parquet")
        return ConnectionError() if is_manifest else None

    front.after = lose
    catalog: Columns = {"id": ["sku-0", "new"], "prompt": ["a drawing", "x"]}
    with pytest.raises(StoreUnavailableError):
        output.run(catalog)
    front.after = lambda _: None
    for added in (1, 0):  # by the resume, and by a later one
        changes = output.run(catalog)
        assert (changes.added, changes.changed) == (added, added)


def test_an_older_run_worsens_no_row_that_a_newer_one_finished(output: Output) -> None:
    old, new = Publisher("trial", "2026-11-25"), Publisher("whole", "2026-11-26")

    def trial(prompts: list[str], **states: tuple[JobStatus, str | None]) -> dict[str, str]:
        ids = [f"sku-{n}" for n in range(len(prompts))]
        columns: Columns = {"id": ids, "prompt": prompts}
        output.run(columns, publisher=old, states=states, missing=Missing.KEEP)
        return {row["id"]: row["status"] for row in output.rows()}

    prompts = [f"a photo of sku-{n}" for n in range(4)]
    failed, pending = (JobStatus.FAILED, "HTTP 500"), (JobStatus.PENDING, None)
    assert list(trial(prompts, **{"sku-1": failed, "sku-2": pending}).values()).count("done") == 2
    output.run(shop(6), publisher=new)
    rejected = (JobStatus.FAILED, "rejected")
    for _ in range(2):  # the manifest stays the newer run's
        found = trial(prompts, **{"sku-1": failed, "sku-2": pending, "sku-3": rejected})
        assert found == {f"sku-{n}": "failed" if n == 3 else "done" for n in range(6)}
        plan, _ = output.plan(shop(6))
        assert newer_run(output.bucket, old, plan, is_part=False) == ("whole", True)


def test_a_picture_that_a_stopped_run_has_found_is_not_pruned(output: Output, tmp_path: Path) -> None:
    output.run(shop(5))
    output.run(shop(4), missing=Missing.RETIRE)
    (name,) = [row["name"] for row in output.rows("superseded.parquet")]
    keep(output.bucket, tmp_path, {name})  # as a run does with all that it finds
    changes = output.run(shop(4), missing=Missing.RETIRE, prune=Prune(0, "runs/a/prune.parquet"))
    assert (changes.pruned, name in output.images()) == (0, True)
    assert output.rows("runs/a/prune.parquet")[0]["delete_after"] > datetime.now(UTC) + timedelta(days=29)
    assert output.run(shop(5)).added == 1  # the run goes on and has its manifest: the picture is in use
    assert output.rows("superseded.parquet") == []


@pytest.mark.slow
def test_a_manifest_is_a_catalog_any_number_of_times(output: Output) -> None:
    output.run(shop(3, status=["mine"] * 3, uri=["u"] * 3, key=["k"] * 3, price=[1, 2, 3]))
    first = output.rows()
    assert {name for name in first[0] if name.startswith("catalog_")} == {
        "catalog_status", "catalog_uri", "catalog_key",
    }  # fmt: skip
    for _ in range(2):
        fed = pq.read_table(pa.BufferReader(output.bucket.read("manifest.parquet")))
        changes = output.run({name: fed[name] for name in fed.column_names})
        assert (changes.unchanged, changes.added, changes.changed) == (3, 0, 0)
        assert output.rows() == first


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q[1].parquet", "what?.parquet", "a//b.parquet", "sp ace.parquet"])
def test_a_key_that_exists_is_that_key(
    bucket_name: str, front: S3Front, client: Any, tmp_path: Path, name: str
) -> None:
    pq.write_table(pa.table({"prompt": [name]}), tmp_path / "c.parquet")
    for key in (f"in/{name}", "in/other.parquet", "in/deep/er/c.PARQUET", "in/_tmp/x.parquet"):
        client.upload_file(str(tmp_path / "c.parquet"), bucket_name, key)

    def found(path: str) -> list[str]:
        settings = CatalogSettings(path=f"s3a://{bucket_name}/{path}")
        return [place.path for place in open_catalog(settings, endpoint_url=front.url).places]

    assert found(f"in/{name}") == [f"in/{name}"]
    assert found("in/o*.parquet") == ["in/other.parquet"]
    assert found("in/**/c.PARQUET") == ["in/deep/er/c.PARQUET"]
    assert found("in/**/other.parquet") == ["in/other.parquet"]
    assert len(found("in")) == 3
    catalog = open_catalog(CatalogSettings(path=f"s3://{bucket_name}/in/{name}"), endpoint_url=front.url)
    assert [table["prompt"].to_pylist() for table in catalog.batches()] == [[name]]
