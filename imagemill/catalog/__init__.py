"""From Parquet rows to planned jobs: read, check, key, deduplicate, estimate."""
