"""Reads the metrics of all runs as one table: what did images cost each week?

    pip install duckdb
    python examples/metrics_with_duckdb.py FOLDER

FOLDER is the output's metrics/ folder, synced from the bucket (aws s3 sync s3://BUCKET/PREFIX/metrics
FOLDER). DuckDB's httpfs extension can also read it in place.
"""

import sys

import duckdb

QUERY = """
    select date_trunc('week', ended_at) as week,
           provider,
           count(*) as runs,
           sum(generated) as images,
           round(sum(cost_usd), 4) as cost_usd,
           round(sum(saved_usd), 4) as saved_usd,
           round(median(images_per_minute)) as images_per_minute,
           round(max(p95_latency_s), 2) as worst_p95_s
    from read_parquet($files, hive_partitioning = true, union_by_name = true)
    group by all
    order by all
"""


def main(folder: str) -> None:
    """Print one row per week and vendor."""
    duckdb.sql(QUERY, params={"files": f"{folder}/**/*.parquet"}).show(max_width=200)


if __name__ == "__main__":
    main(*sys.argv[1:])
