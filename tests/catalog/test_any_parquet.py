"""Parquet from everywhere: each kind ends in the right rows, or in a sentence that says what to do."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from imagemill.blocks.apis import Fal, OpenAICompatible
from imagemill.catalog.estimate import estimate
from imagemill.catalog.files import CatalogFiles, open_catalog
from imagemill.catalog.keys import normalized, prompt_seed
from imagemill.catalog.plan import Planner, write_plan
from imagemill.errors import InputError
from imagemill.jobs import Job
from imagemill.settings import CatalogSettings, PictureSettings

Read = Callable[..., "Found"]


class Found:
    """What a catalog came to: its jobs, the carried columns and the rejected rows."""

    def __init__(self, catalog: CatalogFiles, folder: Path) -> None:
        self.catalog = catalog
        self.jobs: list[Job] = []
        planner = Planner(Fal(api_key=SecretStr("k")), PictureSettings())
        plan, rejected = folder / "plan", folder / "rejected"
        self.counts = write_plan(planner, catalog, plan, rejected, self.jobs.extend)
        self.plan: list[dict[str, Any]] = pq.read_table(plan).to_pylist()
        self.rejected: list[dict[str, Any]] = pq.read_table(rejected).to_pylist()
        self.notes = " ".join(catalog.usage.notes)

    def carried(self, name: str) -> list[Any]:
        return [row[f"carried:{name}"] for row in self.plan]

    @property
    def prompts(self) -> list[str]:
        return [job.prompt for job in self.jobs]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def of(path: Path | str, **settings: Any) -> Found:
        return Found(open_catalog(CatalogSettings(path=str(path), **settings)), tmp_path)

    return of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "parts"
    made.mkdir()
    return made


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


D = Decimal
DAY = dt.datetime.fromisoformat("2026-01-02T03:00:00")
DRIFTS: dict[str, tuple[pa.Array, pa.Array, list[Any]]] = {
    "int to decimal": (pa.array([7]), pa.array([D("1.50")], pa.decimal128(5, 2)), [D("7.00"), D("1.50")]),
    "null to text": (pa.nulls(1), pa.array(["x"]), [None, "x"]),
    "us to ns": (
        pa.array([DAY], pa.timestamp("us")),
        pa.array([1_000_000_001], pa.timestamp("ns")).cast(pa.timestamp("ns")),
        [1_767_322_800_000_000_000, 1_000_000_001],
    ),
    "int32 to int64": (pa.array([1], pa.int32()), pa.array([2**40]), [1, 2**40]),
    "wider decimals": (
        pa.array([D("1.5")], pa.decimal128(3, 1)),
        pa.array([D("12345.678")], pa.decimal128(10, 3)),
        [D("1.500"), D("12345.678")],
    ),
    "list of null": (pa.array([[None]], pa.list_(pa.null())), pa.array([["a"]]), [[None], ["a"]]),
    "struct of null": (
        pa.array([{"a": None}], pa.struct([("a", pa.null())])),
        pa.array([{"a": 1}]),
        [{"a": None}, {"a": 1}],
    ),
    "int to text": (pa.array([1]), pa.array(["x"]), ["1", "x"]),
    "list to text": (pa.array([[1, 2]]), pa.array(["x"]), ["[1, 2]", "x"]),
    "int to float": (pa.array([1]), pa.array([1.5]), [1.0, 1.5]),
    "bool to int": (pa.array([True]), pa.array([3]), ["true", "3"]),
    "categories": (pa.array(["a"]).dictionary_encode(), pa.array(["b"]), ["a", "b"]),
}


@pytest.mark.parametrize("kind", DRIFTS)
def test_a_carried_column_that_drifts_has_a_common_type(folder: Path, read: Read, kind: str) -> None:
    first, second, expected = DRIFTS[kind]
    write(folder / "a.parquet", prompt=["p"], x=first)
    write(folder / "b.parquet", prompt=["q"], x=second)
    found = read(folder)
    values = found.carried("x")
    if kind == "us to ns":
        values = [pa.scalar(value, pa.timestamp("ns")).value for value in values]
    assert (found.prompts, values, found.rejected) == (["p", "q"], expected, [])
    assert ("'x'" in found.notes) is (kind not in {"null to text", "categories"})


def test_a_column_that_one_file_lacks_is_empty_there(folder: Path, read: Read) -> None:
    write(folder / "a.parquet", prompt=["p"], price=[3], width=[512])
    write(folder / "b.parquet", prompt=["q"])
    found = read(folder)
    assert (found.carried("price"), [job.width for job in found.jobs]) == ([3, None], [512, 1024])
    assert "1 files lack the column 'width', the first is" in found.notes


@pytest.mark.parametrize("value", [[1], [1.5], [["p"]], [{"a": 1}]])
def test_a_prompt_that_drifts_from_text_names_file_and_column(
    folder: Path, read: Read, value: list[Any]
) -> None:
    write(folder / "a.parquet", text=["p"])
    write(folder / "b.parquet", text=value)
    with pytest.raises(
        InputError, match=r"b\.parquet' holds .*, not text, in the column 'text'.*Write it as"
    ):
        read(folder, columns={"prompt": "text"})


def test_a_prompt_of_bytes_is_text_where_it_is_utf8(folder: Path, read: Read) -> None:
    write(folder / "a.parquet", prompt=["p"])
    write(folder / "b.parquet", prompt=pa.array(["ü".encode(), b"\xff"], pa.binary()))
    found = read(folder)
    assert found.prompts == ["p", "ü"]
    assert [row["reason"] for row in found.rejected] == [
        "the column 'prompt' holds bytes that are not valid UTF-8"
    ]


@pytest.mark.parametrize("name", ["prompt", "id", "title", "tags"])
def test_one_broken_byte_rejects_one_row(tmp_path: Path, read: Read, name: str) -> None:
    columns: dict[str, Any] = {n: ["a", "b", "c"] for n in ("id", "prompt", "title")}
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xffb", b"c"], pa.binary()).buffers())
    columns["tags"] = pa.array([["x"], ["y"], ["z"]])
    columns[name] = pa.ListArray.from_arrays([0, 1, 2, 3], broken) if name == "tags" else broken
    found = read(write(tmp_path / "c.parquet", **columns))
    assert found.prompts == ["a", "c"]
    (rejected,) = found.rejected
    assert (rejected["row"], rejected["reason"]) == (
        1,
        f"the column {name!r} holds text that is not valid UTF-8",
    )


def test_two_columns_of_one_name_are_named(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(
        pa.Table.from_arrays([pa.array(["p"]), pa.array([1]), pa.array([2])], ["prompt", "x", "x"]), path
    )
    with pytest.raises(InputError, match=r"c\.parquet' has 2 columns of the name 'x': rename all but one"):
        read(path)


NUMBERS: dict[str, pa.Array] = {
    "decimals of Snowflake": pa.array([D(512), None], pa.decimal128(38, 0)),
    "decimals with places": pa.array([D("512.00"), None], pa.decimal128(10, 2)),
    "text": pa.array([" 512", ""]),
    "text with a point": pa.array(["512.0", None]),
    "floats": pa.array([512.0, float("nan")]),
    "halves": pa.array([512.0, None], pa.float32()),
    "small ints": pa.array([512, None], pa.uint16()),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_in_any_guise(tmp_path: Path, read: Read, kind: str) -> None:
    found = read(write(tmp_path / "c.parquet", prompt=["p", "q"], width=NUMBERS[kind], seed=NUMBERS[kind]))
    assert [job.width for job in found.jobs] == [512, 1024]
    assert found.jobs[0].seed == 512


@pytest.mark.parametrize("value", ["wide", "5 12", "1e3", "512.5", "\u0665\u0661\u0662", "9" * 50])
def test_text_that_is_no_number_rejects_its_row(tmp_path: Path, read: Read, value: str) -> None:
    found = read(write(tmp_path / "c.parquet", prompt=["p"], width=[value]))
    assert "is not a whole number" in found.rejected[0]["reason"]


_UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")
IDS: dict[str, tuple[pa.Array, str]] = {
    "binary": (pa.array([b"sku-1"]), "sku-1"),
    "bytes of no text": (pa.array([b"\xff\x00"]), "ff00"),
    "decimal": (pa.array([D(42)], pa.decimal128(38, 0)), "42"),
    "decimal with places": (pa.array([D("42.50")], pa.decimal128(9, 2)), "42.50"),
    "UUID": (pa.array([_UUID.bytes], pa.uuid()), str(_UUID)),
    "UUID of 16 bytes": (pa.array([_UUID.bytes], pa.binary(16)), str(_UUID)),
    "timestamp": (pa.array([DAY], pa.timestamp("us")), "2026-01-02 03:00:00"),
    "timestamp in ns": (pa.array([DAY], pa.timestamp("ns")), "2026-01-02 03:00:00"),
    "nanoseconds": (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    "date": (pa.array([dt.date(2026, 1, 2)]), "2026-01-02"),
    "duration": (pa.array([dt.timedelta(hours=30)], pa.duration("us")), "1 day, 6:00:00"),
    "time": (pa.array([dt.time(3, 4, 5)], pa.time64("us")), "03:04:05"),
    "float": (pa.array([7.0]), "7"),
    "category": (pa.array(["a"]).dictionary_encode(), "a"),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_any_type(tmp_path: Path, read: Read, kind: str) -> None:
    values, expected = IDS[kind]
    assert [job.id for job in read(write(tmp_path / "c.parquet", id=values, prompt=["p"])).jobs] == [expected]


def test_capitals_are_matched_where_that_is_plain_and_said(tmp_path: Path, read: Read) -> None:
    found = read(write(tmp_path / "c.parquet", ID=["a"], PROMPT=["p"], WIDTH=[512], SEED=[7], Price=[1]))
    (job,) = found.jobs
    assert (job.id, job.prompt, job.width, job.seed, found.carried("Price")) == ("a", "p", 512, 7, [1])
    assert "The column 'PROMPT' is used as prompt. " in found.notes
    assert "The column 'SEED' is used as seed; --column seed= leaves it alone." in found.notes
    left = read(tmp_path / "c.parquet", columns={"seed": "", "width": ""})
    assert (left.jobs[0].width, left.carried("SEED"), left.carried("WIDTH")) == (1024, [7], [512])
    assert left.jobs[0].seed == prompt_seed("p")
    assert read(write(tmp_path / "t.parquet", TEXT=["p"]), columns={"prompt": "text"}).prompts == ["p"]
    with pytest.raises(InputError, match=r"'Width' and 'WIDTH' could both be 'width'.* --column width=Width"):
        read(write(tmp_path / "two.parquet", prompt=["p"], Width=[1], WIDTH=[2]))
    assert read(write(tmp_path / "one.parquet", prompt=["p"], width=[512], WIDTH=[2])).jobs[0].width == 512


def test_a_catalog_without_rows_is_a_run_of_nothing(tmp_path: Path, folder: Path, read: Read) -> None:
    for kind in (pa.null(), pa.float64(), pa.string()):
        found = read(write(tmp_path / "c.parquet", prompt=pa.array([], kind), width=pa.array([], kind)))
        assert (found.jobs, found.rejected) == ([], [])
    write(folder / "a.parquet", prompt=pa.nulls(0), price=pa.nulls(0))
    write(folder / "b.parquet", prompt=["p"], price=[1])
    assert read(folder).carried("price") == [1]
    write(folder / "c.parquet", prompt=pa.nulls(2), price=pa.nulls(2))
    assert [row["reason"] for row in read(folder).rejected] == ["blank prompt"] * 2


def test_hidden_files_are_skipped(folder: Path, read: Read) -> None:
    write(folder / "a.parquet", prompt=["a"])
    for name in ("_temporary/0/x.parquet", ".ipynb_checkpoints/x.parquet", "._x.parquet", "_x.parquet"):
        write(folder / name, prompt=["hidden"])
    (folder / "_SUCCESS").touch()
    (folder / "readme.txt").write_text("no Parquet")
    for path in (folder, f"{folder}/*", f"{folder}/**", f"{folder}/**/*.parquet"):
        assert read(path).prompts == ["a"]
    assert read(f"{folder}/_temporary/*/x.parquet").prompts == ["hidden"]
    assert read(folder / "_x.parquet").prompts == ["hidden"]


def test_a_table_format_is_named(folder: Path, read: Read) -> None:
    write(folder / "part-0.parquet", prompt=["a"])
    (folder / "_delta_log").mkdir()
    (folder / "_delta_log" / "0.json").write_text("{}")
    with pytest.raises(InputError, match=r"is a Delta Lake table, .* delta_scan\('.*parts'\)"):
        read(folder)
    (folder / "_delta_log" / "0.json").unlink()
    (folder / "metadata").mkdir()
    (folder / "metadata" / "v1.metadata.json").write_text("{}")
    with pytest.raises(InputError, match="is an Iceberg table"):
        read(folder)


def test_partitions_are_columns(folder: Path, read: Read) -> None:
    write(folder / "lang=de/width=512/a.parquet", prompt=["a"])
    write(folder / "lang=a%2Fb/width=__HIVE_DEFAULT_PARTITION__/b.parquet", prompt=["b"])
    for path in (folder, f"{folder}/lang=*/*/*.parquet"):
        found = read(path)
        assert {job.prompt: job.width for job in found.jobs} == {"a": 512, "b": 1024}
        assert sorted(found.carried("lang")) == ["a/b", "de"]
    assert read(folder, columns={"prompt": "lang"}).prompts == ["a/b", "de"]


def test_globs_stay_in_their_folders(folder: Path, read: Read) -> None:
    for name in ("a.parquet", "x/b.parquet", "x/y/c.parquet", "q[1].parquet", "D.PARQUET", "e.parq", "f.pq"):
        write(folder / name, prompt=[name])
    assert read(f"{folder}/*.parquet").prompts == ["a.parquet", "q[1].parquet"]
    assert read(f"{folder}/*/*.parquet").prompts == ["x/b.parquet"]
    assert read(f"{folder}/**/[a-c].parquet").prompts == ["a.parquet", "x/b.parquet", "x/y/c.parquet"]
    assert read(f"{folder}/q[1].parquet").prompts == ["q[1].parquet"]
    assert len(read(folder).prompts) == 7
    assert read(f"file://{folder}/x/b.parquet").prompts == ["x/b.parquet"]


def test_bytes_are_not_carried_unless_named(tmp_path: Path, read: Read) -> None:
    pictures = pa.array([{"bytes": b"\x89PNG", "path": "a.png"}])
    path = write(tmp_path / "c.parquet", prompt=["p"], image=pictures, thumb=[b"\xff"], title=["t"])
    found = read(path)
    assert found.catalog.carried.names == ["title"]
    assert "The column 'image' holds bytes and is not carried; --carry image would." in found.notes
    assert read(path, carry=["thumb"]).carried("thumb") == [b"\xff"]
    with pytest.raises(InputError, match="no column 'imag' to carry; the closest is 'image'"):
        read(path, carry=["imag"])


@pytest.mark.slow
def test_a_large_catalog_of_pictures_takes_little_memory(tmp_path: Path) -> None:
    rows, path = 1_500, tmp_path / "pictures.parquet"
    picture = pa.array([bytes(100_000)] * 100, pa.binary())
    schema = pa.schema([("prompt", pa.string()), ("image", pa.binary())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        whole = pa.table(
            {"prompt": [f"p{n}" for n in range(rows)], "image": pa.concat_arrays([picture] * 15)}
        )
        writer.write_table(whole, row_group_size=rows)  # one group of 150 MB
    program = (
        "import sys, resource\n"
        "from imagemill.catalog.files import open_catalog\n"
        "from imagemill.settings import CatalogSettings\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "catalog = open_catalog(CatalogSettings(path=sys.argv[1], carry=sys.argv[2:]))\n"
        "rows = sum(table.num_rows for table in catalog.batches())\n"
        "print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    for carry, most_mb in ((), 60), (("image",), 130):
        answer = subprocess.run(
            [sys.executable, "-c", program, path, *carry], capture_output=True, text=True, check=True
        ).stdout.split()
        assert int(answer[0]) == rows
        assert int(answer[1]) / 1024 < most_mb, carry


@pytest.mark.slow
def test_repaired_rejected_rows_are_a_catalog(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "c.parquet", id=["a", "b"], prompt=["p", " "], width=[D("512"), D("512")])
    read(path)
    for _ in range(2):
        repaired = pq.read_table(tmp_path / "rejected").to_pandas()
        repaired["prompt"] = "mended"
        repaired.to_parquet(tmp_path / "repaired.parquet")
        found = read(tmp_path / "repaired.parquet")
        assert [(job.id, job.prompt, job.width) for job in found.jobs] == [("b", "mended", 512)]
        assert found.catalog.carried.names == []
        read(path)


def test_rejected_rows_keep_all_that_decides_their_picture(tmp_path: Path, read: Read) -> None:
    path = write(
        tmp_path / "c.parquet", sku=["a", "b"], text=["p", " "], Seed=[7, 8], cfg=[D("2.50"), D("3.00")],
        tags=[["x"], ["y"]],
    )  # fmt: skip
    how = {"columns": {"id": "sku", "prompt": "text", "seed": "", "param_guidance_scale": "cfg"}}
    read(path, **how)
    rejected = pq.read_table(tmp_path / "rejected")
    place = rejected.column_names.index("prompt")
    pq.write_table(rejected.set_column(place, "prompt", [["mended"]]), tmp_path / "repaired.parquet")
    found = read(tmp_path / "repaired.parquet", **how)  # the same command with another path
    wanted = read(write(tmp_path / "whole.parquet", sku=["b"], text=["mended"], cfg=[3]), **how)
    assert [(job.id, job.key) for job in found.jobs] == [("b", wanted.jobs[0].key)]
    assert (found.carried("Seed"), found.carried("tags")) == ([8], [["y"]])
    assert "its rows are merged into the manifest" in found.notes


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (pa.array([[dt.date(2026, 1, 2)]]), '["2026-01-02"]'),
        (pa.array([{"a": DAY, "b": D("1.50")}]), '{"a":"2026-01-02 03:00:00","b":1.5}'),
        (pa.array([[b"ab"]]), '["ab"]'),
        (pa.array([b"ab"]), '"ab"'),
        (pa.array([True]), "true"),
        (pa.array([[float("nan")]]), None),
        (pa.array([b"\xff"]), None),
    ],
)
def test_a_parameter_of_any_type_is_json_or_rejects_its_row(
    tmp_path: Path, value: pa.Array, sent: str | None
) -> None:
    path = write(tmp_path / "c.parquet", prompt=["p"], x=value)
    catalog = open_catalog(CatalogSettings(path=str(path), columns={"param_extra": "x"}))
    planner = Planner(
        OpenAICompatible(api_key=SecretStr("k"), base_url="http://127.0.0.1:1"), PictureSettings()
    )
    ((_, rejected, jobs),) = planner.plan(catalog)
    assert [job.params for job in jobs] == ([f'{{"extra":{sent}}}'] if sent else [])
    reasons = [] if sent else ["the column 'x' holds a value that JSON has no form for"]
    assert rejected["reason"].to_pylist() == reasons


def test_an_estimate_rejects_what_the_run_would(folder: Path, read: Read) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"], pa.binary()).buffers())
    write(folder / "a.parquet", prompt=["p", "q"], title=broken, shelf=[1, 2])
    write(folder / "b.parquet", prompt=["r"], title=["c"], Seed=[4])
    found, run = estimate(str(folder), "fal"), read(folder)
    assert (found.rows, found.rejected, found.unique) == (3, 1, 2)
    assert found.reasons == {row["reason"]: 1 for row in run.rejected}
    assert found.columns == {"prompt": "prompt", "seed": "Seed"}
    assert found.notes == run.catalog.usage.notes != []
    counted = open_catalog(CatalogSettings(path=str(folder))).for_counting()
    assert counted.carried.names == ["title"]  # the others reject no row, and are not read


def _by_pyarrow(columns: dict[str, list[Any]], path: Path) -> None:
    pq.write_table(pa.table(columns), path)


def _by_pandas(columns: dict[str, list[Any]], path: Path) -> None:
    pd.DataFrame(columns).to_parquet(path)


def _by_duckdb(columns: dict[str, list[Any]], path: Path) -> None:
    rows = pa.table(columns)
    with duckdb.connect() as database:
        database.register("rows", rows)
        database.sql(f"COPY rows TO '{path}' (FORMAT parquet)")


def _by_polars(columns: dict[str, list[Any]], path: Path) -> None:
    pytest.importorskip("polars").DataFrame(columns).write_parquet(path)


def _by_fastparquet(columns: dict[str, list[Any]], path: Path) -> None:
    pytest.importorskip("fastparquet").write(str(path), pd.DataFrame(columns).astype({"prompt": object}))


WRITERS = [_by_pyarrow, _by_pandas, _by_duckdb, _by_polars, _by_fastparquet]
ROWS = st.lists(
    st.tuples(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
        st.one_of(st.none(), st.sampled_from([256, 512, 768])),
        st.one_of(st.none(), st.integers(0, 2**31 - 1)),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_every_writer_gives_the_same_rows(
    tmp_path: Path, read: Read, writer: Any, rows: list[tuple[str, int | None, int | None]]
) -> None:
    prompts, widths, seeds = (list(column) for column in zip(*rows, strict=True))
    ids = [f"row {n}" for n in range(len(rows))]
    path = tmp_path / "written.parquet"
    writer({"id": ids, "prompt": prompts, "width": widths, "seed": seeds}, path)
    found = read(path)
    planned = {row["id"]: row for row in found.plan}
    for row_id, prompt, width, seed in zip(ids, prompts, widths, seeds, strict=True):
        row, expected = planned[row_id], normalized(prompt)
        if not expected:
            assert row["reason"] == "blank prompt"
            continue
        assert (row["prompt"], row["width"]) == (expected, width or 1024)
        assert row["seed"] == (prompt_seed(expected) if seed is None else seed)
