"""The engine: pacing, retries, checks, cost. Knows nothing of Prefect."""
