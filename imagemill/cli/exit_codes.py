"""The command's exit codes."""

DONE = 0
"""Every job is done."""
FAILURES = 1
"""The run finished, and some jobs failed or every row was rejected; or the output could not be written."""
UNUSABLE = 2
"""Input or settings cannot be used."""
STOPPED = 3
"""The run stopped early and can be resumed."""
