"""The Prefect tasks of a run, one per file."""

from imagemill.runs.user_errors import log_one_sentence

log_one_sentence()
