"""Runs on several machines: the Dask cluster, the processes that share a run, and their shared rate."""
