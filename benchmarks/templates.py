"""Rows per second of prompt templates on one core: the rendering alone, and the planning around it.

``python -m benchmarks.templates`` prints a table and writes it into templates.md.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.workshop import machine
from imagemill.blocks.apis import Together
from imagemill.catalog.files import open_catalog
from imagemill.catalog.plan import Planner
from imagemill.settings import CatalogSettings, PictureSettings

ROWS = 200_000
ROUNDS = 3
TEMPLATES = {
    "two columns": "Studio photo of {{ title }}, {{ colour | lower }}, white background",
    "a condition and a default": "Photo of {{ title }}{% if price %}, {{ price }} EUR{% endif %},"
    " {{ material | default('any material') }}",
    "a loop over a list": "{{ title }}{% for tag in tags %}, {{ tag | upper }}{% endfor %}, {{ colour }}",
    "eight filters": "{{ title | trim | title | replace('-', ' ') | truncate(60) }}, {{ colour | lower | trim"
    " | capitalize | default('plain') }}",
}
FILE = Path(__file__).with_suffix(".md")


def write_catalog(path: Path) -> None:
    """A product table, with a prompt for the comparison."""
    numbers = range(ROWS)
    pq.write_table(
        pa.table(
            {
                "title": [f"ceramic-mug no. {number}" for number in numbers],
                "prompt": [f"Studio photo of ceramic-mug no. {number}, red, white" for number in numbers],
                "colour": [("RED", "Blue", "GREEN")[number % 3] for number in numbers],
                "price": [None if number % 7 == 0 else number % 90 + 0.5 for number in numbers],
                "material": [None if number % 3 else "stoneware" for number in numbers],
                "tags": [["round", "glazed", "small"][: number % 4] for number in numbers],
            }
        ),
        path,
    )


def measured(path: Path, template: str | None) -> tuple[float, float]:
    """CPU seconds to render the catalog, and to plan it; the best of three."""
    settings = CatalogSettings(path=str(path), prompt_template=template)
    rendering, planning = [], []
    for _ in range(ROUNDS):
        catalog = open_catalog(settings)
        tables = list(catalog.batches())
        begun = time.process_time()
        for table in tables:
            reasons: dict[int, str] = {}
            catalog.templates.applied(table, reasons)
            assert not reasons
        rendering.append(time.process_time() - begun)
        begun = time.process_time()
        planner = Planner(Together(api_key="benchmark"), PictureSettings())
        for _ in planner.plan(catalog):
            pass
        planning.append(time.process_time() - begun)
        assert planner.counts.unique == ROWS
    return min(rendering), min(planning)


def main() -> None:
    """Measure, print, and write the table into templates.md, between its marks."""
    lines = [
        f"{machine()}; {ROWS:,} rows.\n",
        "| template | rendered rows/s | planned rows/s |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.parquet"
        write_catalog(path)
        for name, template in {"none, a prompt column": None, **TEMPLATES}.items():
            rendering, planning = measured(path, template)
            rendered = f"{ROWS / rendering:,.0f}" if template else ""
            lines.append(f"| {name} | {rendered} | {ROWS / planning:,.0f} |")
    text = "\n".join(lines)
    print(text)
    before, _, rest = FILE.read_text().partition("<!-- measured -->")
    after = rest.partition("<!-- end -->")[2]
    FILE.write_text(f"{before}<!-- measured -->\n\n{text}\n\n<!-- end -->{after}")


if __name__ == "__main__":
    main()
