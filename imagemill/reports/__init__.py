"""What a person reads about runs: metrics, the run report, the dashboard, regressions, Prefect artifacts."""
