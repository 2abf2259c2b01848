"""A run of nothing, and ``imagemill refresh``: new rows, a refused loss, an interruption, a repair."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.emulator import Emulator
from tests.cli.test_command import arguments, wait_for
from tests.conftest import Command, Place
from tests.patience import PATIENCE_S


@pytest.mark.slow
def test_a_refresh_from_the_command_line(
    place: Place,
    emulator: Callable[..., Emulator],
    catalog: Callable[..., str],
    start_command: Callable[..., subprocess.Popen[str]],
    command: Callable[..., Command],
    tmp_path: Path,
) -> None:
    emulated = emulator()
    given = arguments(place, emulated)
    nothing = command("run", catalog("none.parquet", prompt=pa.nulls(0)), *given)
    assert nothing.code == 0
    assert "The catalog has no rows." in nothing.out
    blank = command("run", catalog("blank.parquet", prompt=["", " "]), *given, "--json")
    assert (blank.code, blank.json["rejected"], blank.json["rejections"]) == (1, 2, {"blank prompt": 2})

    ids = [f"sku-{n}" for n in range(10)]
    first = catalog(id=ids, prompt=[f"p{n}" for n in range(10)], Shelf=ids)
    assert command("refresh", first, *given).code == 0

    cut = command("refresh", catalog("cut.parquet", id=ids[:1], prompt=["p0"]), *given)
    assert cut.code == 2
    assert "would take 9 of 10 rows" in cut.err
    assert "say so with --allow-loss" in cut.err
    assert emulated.bill()["images"] == 10

    emulated = emulator(latency_s=0.3, max_concurrent=4)
    new = [f"new-{n}" for n in range(60)]
    texts = ["other", *[f"p{n}" for n in range(1, 9)], *new[:-1], " "]
    next_day = catalog("next.parquet", id=[*ids[:9], *new], prompt=texts, SEED=pa.nulls(69, pa.int64()))
    given = [*arguments(place, emulated, "--run-id", "nightly"), "--prune", "--prune-after", "0"]
    process = start_command("refresh", next_day, *given)
    wait_for(lambda: emulated.bill()["images"] >= 5, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 3, err
    assert "The column 'SEED' is used as seed; --column seed= leaves it alone." in err
    assert len(place.table("manifest.parquet")) == 10  # as it was

    done = command("resume", "nightly")
    assert done.code == 0, done.err
    assert "Rows: 59 added, 1 changed, 8 unchanged, 1 retired, 2 pruned, 1 rejected." in done.out
    assert emulated.bill()["images"] == 60
    statuses = {row["id"]: row["status"] for row in place.table("manifest.parquet")}
    assert (statuses["sku-9"], statuses["new-59"], len(statuses)) == ("retired", "rejected", 70)

    rejected = tmp_path / "rejected.parquet"
    rejected.write_bytes(place.read("runs/nightly/rejected.parquet"))
    table = pq.read_table(rejected)
    place_of = table.column_names.index("prompt")
    pq.write_table(table.set_column(place_of, "prompt", pa.array(["mended"])), rejected)
    merged = command("run", str(rejected), *arguments(place, emulated, "--json"))
    assert merged.code == 0, merged.err
    statuses = {row["id"]: row["status"] for row in place.table("manifest.parquet")}
    assert (statuses["new-59"], statuses["sku-9"], len(statuses)) == ("done", "retired", 70)
