"""A simulator: whole runs, with their API and their bucket, in one process on virtual time.

One seed decides latencies, faults, and where each process dies. ``python -m tests.simulation SEED`` replays
one.
"""
