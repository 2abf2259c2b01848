"""The media types of the files that a run writes to the bucket."""

PARQUET = "application/vnd.apache.parquet"
JSON = "application/json"
JSON_LINES = "application/x-ndjson"
HTML = "text/html; charset=utf-8"
