"""Peak memory of planning large catalogs; prints a table and writes it into catalog_memory.md.

    python -m benchmarks.catalog_memory

Each catalog is planned into the files of a run, in a process of its own; its jobs go to no store.
"""

# ruff: noqa: PLC0415 - a process measures what it imports itself

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.growth import peak_mb, timed, write_catalog
from benchmarks.workshop import machine

FILE = Path(__file__).with_suffix(".md")
PICTURES = 6_000
PICTURE_BYTES = 100_000
ROWS = 1_000_000
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "600 MB, 6,000 rows with 100 KB of bytes": ("pictures", {}),
    "the same, the bytes carried": ("pictures", {"carry": ["image"]}),
    "a million rows": ("shop", {}),
    "a million rows, four seeds each": ("shop", {"variations": 4}),
}


def write_pictures(path: Path) -> None:
    """A data set of pictures in one row group, as some libraries write it."""
    schema = pa.schema([("prompt", pa.string()), ("image", pa.binary())])
    picture = pa.array([os.urandom(PICTURE_BYTES)] * 1_000, pa.binary())
    pictures = pa.chunked_array([picture] * (PICTURES // 1_000))
    rows = pa.table([[f"picture no. {number}" for number in range(PICTURES)], pictures], schema=schema)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        writer.write_table(rows, row_group_size=PICTURES)


def plan(catalog: str, settings: dict[str, Any]) -> dict[str, float]:
    """Plan a catalog; what it came to, and the memory before and at its peak."""
    from pydantic import SecretStr

    from imagemill.blocks.apis import Fal
    from imagemill.catalog.files import open_catalog
    from imagemill.catalog.plan import Planner, write_plan
    from imagemill.settings import CatalogSettings, PictureSettings

    folder = Path(catalog).parent
    planner = Planner(Fal(api_key=SecretStr("benchmark")), PictureSettings())
    found = open_catalog(CatalogSettings(path=catalog, **settings))
    before = peak_mb()
    _, wall, cpu = timed(
        lambda: write_plan(planner, found, folder / "plan", folder / "rejected", lambda _: None)
    )
    return {"pictures": planner.counts.unique, "wall": wall, "cpu": cpu, "before": before, "peak": peak_mb()}


def child(case: str, catalog: Path) -> dict[str, float]:
    """One case, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.catalog_memory", case, str(catalog)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found: dict[str, float] = json.loads(output)
    return found


def main() -> None:
    """Measure every case; print the table, and write it into the file."""
    lines = [
        f"{machine()}.",
        "",
        "| catalog | pictures | peak MB (before) | CPU s | rows/s |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        catalogs = {name: Path(folder) / f"{name}.parquet" for name in ("pictures", "shop")}
        write_pictures(catalogs["pictures"])
        write_catalog(catalogs["shop"], ROWS)
        for case, (name, _) in CASES.items():
            found = child(case, catalogs[name])
            rows = PICTURES if name == "pictures" else ROWS
            lines.append(
                f"| {case} | {found['pictures']:,.0f} | {found['peak']:.0f} ({found['before']:.0f})"
                f" | {found['cpu']:.1f} | {rows / found['wall']:,.0f} |"
            )
            print(lines[-1], flush=True)
    head, _, rest = FILE.read_text().partition("<!-- measured -->")
    table = "\n".join(lines)
    FILE.write_text(f"{head}<!-- measured -->\n\n{table}\n\n<!-- end -->{rest.partition('<!-- end -->')[2]}")


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(plan(sys.argv[2], CASES[sys.argv[1]][1])))
    else:
        main()
