"""The choices of a review: pictures are kept, made anew or rejected, once, and later runs find it so."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.bucket.image_bucket import ImageBucket
from imagemill.cli.command import main
from imagemill.emulator import Emulator
from imagemill.errors import InputError
from imagemill.flows.generate_catalog import generate_catalog
from imagemill.flows.retry_failed import retry_failed
from imagemill.reports.review import publish_review
from imagemill.runs.folder import RunFolder
from imagemill.runs.review_choices import MOST, ReviewChoices, read_choices
from imagemill.runs.summary import RunStoppedError
from imagemill.settings import LimitSettings
from tests.conftest import Place

PROMPTS = [
    "fine", "better #fault:blurred*1", "no better #fault:flat", "kept #fault:letterboxed",
    "rejected #fault:half_decoded", "alike #fault:near_duplicate", "the same #fault:near_duplicate",
    "refused #fault:flat*1 #fault:400",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_each_is_applied_once_and_found_by_later_runs(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    emulated = emulator(pictures="full")
    path = catalog(id=[str(number) for number in range(len(PROMPTS))], prompt=PROMPTS)

    def generate(run_id: str) -> Any:
        return generate_catalog(
            catalog=path,
            output=place.settings(copies=True),
            api={"provider": "together", "base_url": emulated.base_url},
            picture={"width": 256, "height": 256},
            quality={"measure": "all"},
            execution={"run_id": run_id},
        )

    def jobs() -> dict[str, dict[str, Any]]:
        return {job["id"]: job for job in place.table("runs/looked-at/jobs.parquet")}

    def manifest() -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in place.table("manifest.parquet")}

    first = generate("looked-at")
    before, rows_before = jobs(), manifest()
    assert (first.done, first.suspect) == (8, 7)
    name = {row: job["key"] for row, job in before.items()}
    choices = ReviewChoices(
        run_id="looked-at",
        redo=[name["1"], name["2"], name["7"]],
        keep=[name["3"], name["5"]],
        reject=[name["4"]],
    )
    with pytest.raises(RunStoppedError, match="resume"):
        retry_failed("looked-at", choices=choices, limits=LimitSettings(max_cost_usd=first.cost_usd))
    assert emulated.bill()["images"] == 8, "the limit holds"
    assert manifest()["1"]["uri"] == rows_before["1"]["uri"], "the picture stays until there is another"

    second = retry_failed("looked-at", choices=choices)
    third = retry_failed("looked-at", choices=choices)
    for summary in (second, third):
        assert (summary.done, summary.failed, summary.suspect, summary.error_rate) == (7, 0, 3, 0.0)
        assert "7 of 8 images are done (7 generated), 1 rejected in review" in str(summary)
    assert emulated.bill()["images"] == 10
    assert third.cost_usd == pytest.approx(emulated.bill()["usd"])

    after, rows = jobs(), manifest()
    assert [after[row]["suspect"] for row in "0123456"] == ["", "", "flat", "", "", "", "near_duplicate"]
    assert after["1"]["image"] == f"images/{name['1'][:2]}/{name['1']}.2.png"
    assert rows["1"]["uri"] == f"{place.uri}/{after['1']['image']}"
    assert rows["1"]["seed"] == after["1"]["seed"] != before["1"]["seed"]
    assert place.head(after["1"]["image"])["Metadata"]["seed"] == str(after["1"]["seed"])
    assert place.read(before["1"]["image"]) != place.read(after["1"]["image"]), "nothing is overwritten"
    assert place.read("catalog/1.png") == place.read(after["1"]["image"])
    assert place.head("catalog/1.png")["CacheControl"] == "no-cache"
    assert (rows["4"]["status"], rows["4"]["error_code"], rows["4"]["uri"]) == ("failed", "rejected", None)
    assert rows["3"] == rows_before["3"]
    assert "catalog/4.png" not in place.objects(), "nor is its copy delivered"
    events = [json.loads(line) for line in place.read("runs/looked-at/log.jsonl").splitlines()]
    redone = {event["id"]: event for event in events if event["event"] == "redone"}
    assert (redone["2"]["kept"], redone["1"]["kept_seed"]) == ("flat", rows["1"]["seed"])
    assert "400" in redone["7"]["why"]
    assert (rows["7"], after["7"]["suspect"]) == (rows_before["7"], "flat"), "no other came: it stays"

    other = str(written(tmp_path / "other.json", ReviewChoices(run_id="later").model_dump_json()))
    assert main(["retry-failed", "looked-at", "--from", other]) == 2
    assert "for run 'later', not for 'looked-at'" in capsys.readouterr().err

    with closing(ImageBucket(place.uri, endpoint_url=place.s3.endpoint_url)) as bucket:
        review = publish_review(bucket, RunFolder("looked-at"))
    assert (review.suspect, review.shown) == (3, 3)

    monkeypatch.setenv("IMAGEMILL_HOME", str(tmp_path / "another machine"))
    later = generate("later")
    assert (later.done, later.reused, later.failed, later.rejected_in_review) == (7, 7, 0, 1)
    assert emulated.bill()["images"] == 10
    assert (later.unchanged, manifest()) == (8, rows)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_an_older_run_changes_pictures_but_not_the_manifest(
    place: Place, emulator: Callable[..., Emulator], catalog: Callable[..., str]
) -> None:
    emulated = emulator()

    def generate(run_id: str, prompts: list[str]) -> dict[str, str]:
        ids = [prompt[0] for prompt in prompts]
        generate_catalog(
            catalog=catalog(id=ids, prompt=prompts, price=[run_id] * len(ids)),
            output=place.settings(),
            api={"provider": "together", "base_url": emulated.base_url},
            picture={"width": 256, "height": 256},
            execution={"run_id": run_id},
        )
        return {row["id"]: row["uri"] for row in place.table("manifest.parquet")}

    uris = generate("old", ["redone", "gone", "failed #fault:500*2", "thrown away"])
    new = generate("new", ["redone", "failed", "thrown away", "more"])
    name = {row: uri and uri.rpartition("/")[2].partition(".")[0] for row, uri in uris.items()}
    manifest = place.read("manifest.parquet")
    with pytest.raises(InputError, match="Run 'new', which was planned after 'old', has published"):
        retry_failed("old")
    choices = ReviewChoices(run_id="old", redo=[name["r"], name["g"]], reject=[name["t"]])
    bought = emulated.bill()["images"]
    for _ in range(2):
        assert retry_failed("old", choices=choices).generated == 2
    assert (emulated.bill()["images"], place.read("manifest.parquet")) == (bought + 1, manifest)
    redone = uris["r"].replace(".png", ".2.png")
    assert generate("newest", ["redone", "failed", "thrown away", "more"]) == new | {"r": redone, "t": None}
    assert emulated.bill()["images"] == bought + 1


def written(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "did not|saved"),
        ('{"run_id": "r", "redo": ["../../x"]}', "redo.0"),
        ('{"run_id": "r", "redo": ["' + "a" * 40 + '"], "keep": ["' + "a" * 40 + '"]}', "named twice"),
        ('{"run_id": "r", "\\u001b[31m": 1}', r"x1b"),
        ('{"run_id": "r", "imagemill_review": 2}', "imagemill_review"),
        (json.dumps({"run_id": "r", "redo": [f"{n:040x}" for n in range(MOST + 1)]}), "redo"),
        ("x" * 2_000_000, "too large"),
    ],
)
def test_a_file_that_the_page_did_not_save_is_rejected_in_one_line(
    content: str | bytes, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence) as error:
        read_choices(written(tmp_path / "choices.json", content))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_choices_of_another_run_and_of_unknown_pictures_are_rejected(tmp_path: Path) -> None:
    plan = tmp_path / "plan.parquet"
    pq.write_table(pa.table({"key": ["a" * 40]}), plan)
    known = ReviewChoices(run_id="mine", redo=["a" * 40 + ".2"])
    known.check("mine", plan)
    with pytest.raises(InputError, match="for run 'mine', not for 'other'"):
        known.check("other", plan)
    with pytest.raises(InputError, match="1 picture that run 'mine' does not have, such as bbbb"):
        ReviewChoices(run_id="mine", keep=["a" * 40], reject=["b" * 40]).check("mine", plan)
