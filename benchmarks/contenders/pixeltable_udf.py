"""Pixeltable: the catalog is a table, the image a computed column by an async UDF."""

from __future__ import annotations

import os

from benchmarks.contenders import work

os.environ["PIXELTABLE_HOME"] = str(work.HOME / "pixeltable")  # it is read at the import
import pixeltable as pxt

from benchmarks.contenders import pixeltable_column


def main() -> None:
    """Work off the catalog once."""
    schema = {"id": pxt.Required[pxt.String], "prompt": pxt.String, "seed": pxt.Int}
    table = pxt.create_table("catalog", schema, primary_key="id", if_exists="ignore")
    column = pixeltable_column.image(table.id, table.prompt, table.seed)
    table.add_computed_column(image=column, if_exists="ignore")
    there = {row["id"] for row in table.select(table.id).collect()}
    table.insert([row for row in work.rows() if row["id"] not in there], on_error="ignore")


if __name__ == "__main__":
    main()
