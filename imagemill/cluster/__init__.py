"""One run on several machines: a Dask cluster, the processes that share a run, and their shared rate."""
