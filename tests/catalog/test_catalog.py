"""Catalogs as users have them: many files, odd columns, odd types, bad rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from pydantic import SecretStr, ValidationError

from imagemill.blocks.apis import Fal, OpenAICompatible, Together
from imagemill.catalog.cost import refuse_guesses
from imagemill.catalog.estimate import estimate
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner, planned_jobs, write_plan
from imagemill.errors import InputError
from imagemill.jobs import Job
from imagemill.settings import (
    ApiSettings,
    CatalogSettings,
    LimitSettings,
    OutputSettings,
    PictureSettings,
)
from tests.conftest import BUCKET, Place


def plan(path: str, api: Any = Together, **settings: Any) -> tuple[list[Job], list[dict[str, Any]], Planner]:
    planner = Planner(api(api_key=SecretStr("k")), PictureSettings(**settings.pop("picture", {})))
    jobs: list[Job] = []
    rejected: list[dict[str, Any]] = []
    for _, refused, new in planner.plan(open_catalog(CatalogSettings(path=path, **settings))):
        jobs += new
        rejected += refused.to_pylist()
    return jobs, rejected, planner


def test_a_folder_and_a_glob_are_read_in_order(catalog: Callable[..., str], tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        catalog(f"parts/{name}.parquet", prompt=[f"{name}1", f"{name}2"])
    jobs, _, _ = plan(str(tmp_path / "parts"))
    assert [(job.id, job.prompt) for job in jobs] == [
        ("0", "a1"), ("1", "a2"), ("2", "b1"), ("3", "b2"), ("4", "c1"), ("5", "c2"),
    ]  # fmt: skip
    jobs, _, _ = plan(str(tmp_path / "parts" / "[ab].parquet"), limit=3)
    assert [job.prompt for job in jobs] == ["a1", "a2", "b1"]


@pytest.mark.slow
def test_a_catalog_on_s3(place: Place, catalog: Callable[..., str]) -> None:
    client = place.s3.client()
    for name in ("one", "two"):
        client.upload_file(catalog(prompt=[name]), BUCKET, f"{place.prefix}in/{name}.parquet")
    client.close()
    output = OutputSettings(uri=place.uri, s3_endpoint_url=place.s3.endpoint_url)
    for path in (f"{place.uri}/in", f"{place.uri}/in/*.parquet"):
        found = estimate(
            CatalogSettings(path=path), ApiSettings(), PictureSettings(), LimitSettings(), output
        )
        assert found.unique == 2
    with pytest.raises(InputError, match="does not exist"):
        estimate(
            CatalogSettings(path=f"{place.uri}/none.parquet"),
            ApiSettings(), PictureSettings(), LimitSettings(), output,
        )  # fmt: skip


def test_a_folder_with_a_damaged_or_missing_file_names_it(
    catalog: Callable[..., str], tmp_path: Path
) -> None:
    whole = Path(catalog(prompt=["p"])).read_bytes()
    (other := tmp_path / "other.parquet").write_bytes(whole[:-8])
    with pytest.raises(InputError, match=r"other\.parquet' is not a Parquet file \(.*[^.]\): write it again"):
        open_catalog(CatalogSettings(path=str(tmp_path)))
    other.unlink()
    other.symlink_to("nowhere")
    with pytest.raises(InputError, match=r"other\.parquet' was removed, or is a link to a file that"):
        open_catalog(CatalogSettings(path=str(tmp_path)))


def test_a_file_whose_name_is_not_utf_8_is_to_be_renamed(catalog: Callable[..., str], tmp_path: Path) -> None:
    Path(catalog(prompt=["p"])).rename(tmp_path / "caf\udce9.parquet")
    with pytest.raises(InputError, match=r"caf\\udce9\.parquet' is not UTF-8: rename it"):
        open_catalog(CatalogSettings(path=str(tmp_path)))


def test_bad_rows_are_rejected_with_a_reason_and_the_rest_goes_on(catalog: Callable[..., str]) -> None:
    path = catalog(
        id=["a", "b", "c", "d", "e", "a", "a", None, "x" * 3000, "n"],
        prompt=["p", None, " \n", "p", "p", "p", "q", "p", "p", "p" * 20_001],
        width=pa.array([None, 512, 512, 100, 5000, None, None, 512, 512, 512], pa.float64()),
        seed=[None, 1, 1, 1, 1, None, None, 1, 1, 2],
    )
    jobs, rejected, planner = plan(path)
    assert [job.id for job in jobs] == ["a"]
    assert {row["row"]: row["reason"] for row in rejected} == {
        1: "blank prompt",
        2: "blank prompt",
        3: "width 100 is not a multiple of 16",
        4: "width 5000 is not between 64 and 1792",
        6: "an earlier row has the same id and other content",
        7: "blank id",
        8: "the id has 3,000 characters; at most 2,000 are allowed",
        9: "the prompt has 20,001 characters; at most 20,000 are allowed",
    }
    counts = planner.counts
    assert (counts.rows, counts.rejected, counts.unique, counts.duplicates) == (10, 8, 1, 1)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("seed", -1, "seed -1 is not between 0 and 4294967295"),
        ("seed", 2**33, "seed 8589934592 is not between 0 and 4294967295"),
        ("seed", "seven", "seed 'seven' is not a whole number"),
        ("seed", 1.5, "seed '1.5' is not a whole number"),
        ("seed", True, "seed 'True' is not a whole number"),
        ("steps", 0, "steps 0 is not between 1 and 12"),
        ("height", 63, "height 63 is not between 64 and 1792"),
    ],
)
def test_numbers_that_the_api_would_refuse(
    catalog: Callable[..., str], column: str, value: Any, reason: str
) -> None:
    jobs, rejected, _ = plan(catalog(prompt=["p"], **{column: [value]}))
    assert jobs == []
    assert rejected[0]["reason"] == reason


def test_pandas_floats_and_categories_are_what_they_mean(tmp_path: Path) -> None:
    path = tmp_path / "pandas.parquet"
    pd.DataFrame(
        {
            "id": [1.0, 2.0, 3.0],
            "prompt": pd.Categorical(["x", "y", "x"]),
            "width": [512.0, None, 512.0],
            "seed": [None, 4.0, None],
        }
    ).to_parquet(path)
    jobs, rejected, _ = plan(str(path))
    assert rejected == []
    assert [(job.id, job.prompt, job.width) for job in jobs] == [("1", "x", 512), ("2", "y", 1024)]
    assert jobs[1].seed == 4


def test_a_negative_prompt_that_the_model_ignores_makes_no_other_picture(catalog: Callable[..., str]) -> None:
    jobs, _, planner = plan(catalog(prompt=["p", "p"], negative_prompt=["blur", None]))
    assert len(jobs) == 1
    assert planner.counts.negative_prompts == 1


def test_the_price_follows_the_vendors_rounding(catalog: Callable[..., str]) -> None:
    path = catalog(prompt=["a", "b", "b"], width=[512, 1024, 1024], height=[512, 1024, 1024])
    _, _, together = plan(path)
    assert together.counts.cost_usd == 0.003538944
    _, _, fal = plan(path, Fal)
    assert fal.counts.cost_usd == 0.006
    assert fal.counts.duplicates_usd == 0.003


def test_params_come_from_the_settings_and_a_row_has_its_own(catalog: Callable[..., str]) -> None:
    path = catalog(
        prompt=["a", "a", "a", "b", "c"],
        cfg=[2.0, None, 2.0, 99.0, 3.5],
        fast=pa.array(["high", None, "high", None, "warp"]),
    )
    columns = {"param_guidance_scale": "cfg", "param_acceleration": "fast"}
    jobs, rejected, planner = plan(path, Fal, columns=columns, picture={"params": {"guidance_scale": "5"}})
    assert [(job.prompt, job.params) for job in jobs] == [
        ("a", '{"acceleration":"high","guidance_scale":2}'),
        ("a", '{"guidance_scale":5}'),
    ]
    assert {row["row"]: row["reason"] for row in rejected} == {
        3: "param guidance_scale '99.0' is above 20",
        4: "param acceleration 'warp' is not one of none, regular, high",
    }
    assert planner.counts.duplicates == 1
    assert jobs[0].key != jobs[1].key
    plain, _, _ = plan(catalog("plain.parquet", prompt=["a"]), Fal)
    assert plain[0].key not in {job.key for job in jobs}


def test_a_plan_gives_back_the_jobs_with_their_params(catalog: Callable[..., str], tmp_path: Path) -> None:
    path = catalog(prompt=["a", "b"], cfg=[2, None])
    settings = CatalogSettings(path=path, columns={"param_guidance_scale": "cfg"})
    planner = Planner(Fal(api_key=SecretStr("k")), PictureSettings())
    taken: list[Job] = []
    write_plan(planner, open_catalog(settings), tmp_path / "plan", tmp_path / "rejected", taken.extend)
    again = [job for jobs in planned_jobs(tmp_path / "plan", taken[0].model, "png") for job in jobs]
    assert again == taken
    assert [job.params for job in again] == ['{"guidance_scale":2}', ""]


def test_a_param_that_the_model_does_not_have_is_unusable_input(catalog: Callable[..., str]) -> None:
    with pytest.raises(
        InputError, match=r"^Param guidance is not a field of fal-ai/flux/schnell; its further"
    ):
        plan(catalog(prompt=["a"]), Fal, picture={"params": {"guidance": 3}})
    with pytest.raises(ValidationError, match=r"not one of prompt, .* and param_NAME"):
        CatalogSettings(path="x", columns={"guidance": "cfg"})


def test_money_is_exact_and_a_total_is_the_sum_of_its_rows(catalog: Callable[..., str]) -> None:
    _, _, planner = plan(catalog(prompt=[str(n) for n in range(9_000)]), Fal)
    assert planner.counts.cost_usd == 27.0
    sides = [64 + 16 * (number % 60) for number in range(3_000)]
    jobs, _, planner = plan(catalog("sizes.parquet", prompt=[str(n) for n in range(3_000)], width=sides))
    api = Together(api_key=SecretStr("k"))
    rows = [api.price(job.width, job.height, job.steps, job.params) for job in jobs]
    assert planner.counts.cost_usd == float(sum(price for price in rows if price is not None))


def test_the_levers_follow_the_models_price_rule(catalog: Callable[..., str]) -> None:
    path = catalog(prompt=["a", "b", "b"])
    found = {lever["name"]: lever for lever in plan(path, picture={"steps": 8})[2].counts.levers}
    price = 0.0027 * 1.048576 * 2
    assert found["deduplication"]["saves_usd"] == pytest.approx(price)
    assert found["smaller pictures"]["change"] == "512 x 512 instead of 1024 x 1024"
    assert found["smaller pictures"]["saves_usd"] == pytest.approx(2 * price * 3 / 4)
    assert found["fewer steps"]["change"] == "4 instead of 8"
    assert found["fewer steps"]["saves_usd"] == pytest.approx(price)
    found = {lever["name"]: lever for lever in plan(path)[2].counts.levers}
    assert found["fewer steps"]["change"] == "2 instead of 4; the price does not fall below 4 steps"
    assert found["fewer steps"]["saves_usd"] == 0
    found = {lever["name"]: lever for lever in plan(path, Fal)[2].counts.levers}
    assert found["smaller pictures"]["saves_usd"] == 0
    assert "does not change" in found["fewer steps"]["change"]


def test_an_unknown_price_is_said_and_a_limit_refused(catalog: Callable[..., str]) -> None:
    api = ApiSettings(provider="openai", base_url="http://127.0.0.1:1")
    found = estimate(CatalogSettings(path=catalog(prompt=["a"])), api, PictureSettings(), LimitSettings())
    assert (found.cost_usd, found.saved_usd, found.price, found.unpriced) == (None, None, "unknown", 1)
    counts = plan(catalog(prompt=["a"]), OpenAICompatible)[2].counts
    refuse_guesses(counts, LimitSettings())
    with pytest.raises(InputError, match=r"^--max-cost needs a price, .* Set your own with --usd-per-image"):
        refuse_guesses(counts, LimitSettings(max_cost_usd=1))
    own = api.model_copy(update={"usd_per_image": 0.002})
    found = estimate(CatalogSettings(path=catalog(prompt=["a"])), own, PictureSettings(), LimitSettings())
    assert (found.cost_usd, found.price) == (0.002, "0.002 USD per image, as you set it")


def test_an_empty_catalog_is_an_empty_plan(catalog: Callable[..., str]) -> None:
    jobs, rejected, planner = plan(catalog(prompt=pa.array([], pa.string())))
    assert (jobs, rejected, planner.counts.rows) == ([], [], 0)


def test_numbers_are_no_prompts(catalog: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="holds int64, not text"):
        plan(catalog(prompt=[1, 2]))


def test_a_file_without_a_column_that_the_first_has(catalog: Callable[..., str], tmp_path: Path) -> None:
    catalog("parts/a.parquet", prompt=["x"], shelf=["s"])
    catalog("parts/b.parquet", prompt=["y"])
    assert [job.prompt for job in plan(str(tmp_path / "parts"))[0]] == ["x", "y"]
    catalog("parts/c.parquet", shelf=["t"])
    with pytest.raises(InputError, match=r"c\.parquet' has no column 'prompt', which other files"):
        plan(str(tmp_path / "parts"))


def test_a_file_that_is_damaged_inside(catalog: Callable[..., str]) -> None:
    path = Path(catalog(prompt=[f"prompt number {n}" for n in range(20_000)]))
    content = bytearray(path.read_bytes())
    content[2000:12000] = bytes(10_000)
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read to its end"):
        plan(str(path))


def test_an_empty_folder_and_a_glob_without_files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no \.parquet files"):
        plan(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="No file matches"):
        plan(str(tmp_path / "*.none"))
