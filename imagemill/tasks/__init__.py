"""The Prefect tasks of a run, one per file."""
