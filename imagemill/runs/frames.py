"""What runs have left in a bucket, as pandas DataFrames."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from imagemill.bucket.access import open_bucket
from imagemill.errors import InputError
from imagemill.runs.history import RunRow, history_of
from imagemill.settings import Output, OutputSettings, input_error

_NULLABLE = {
    pa.int8(): pd.Int8Dtype(),
    pa.int16(): pd.Int16Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.uint8(): pd.UInt8Dtype(),
    pa.uint16(): pd.UInt16Dtype(),
    pa.uint32(): pd.UInt32Dtype(),
    pa.uint64(): pd.UInt64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}
"""Without these, a null would turn a column of ids or seeds into floats."""


def runs(output: OutputSettings | Mapping[str, object] | str) -> pd.DataFrame:
    """All runs of an output, from its folder ``metrics/``: one row per run in order of time.

    Costs are in USD, latencies in seconds, times in UTC. Files in the folder that are not runs are skipped.

    Args:
        output: s3://BUCKET/PREFIX, or output settings.

    Raises:
        InputError: the bucket cannot be reached.
    """
    with closing(open_bucket(_settings(output))) as bucket:
        found = history_of(bucket, every_column=True).runs
    rows = [run.model_dump() for run in found]
    return pd.DataFrame(rows, columns=None if rows else [*RunRow.model_fields])


def frame_of(output: OutputSettings | Mapping[str, object] | str, name: str) -> pd.DataFrame:
    """A Parquet file below an output prefix.

    Raises:
        InputError: the bucket cannot be reached, or has no such file.
    """
    with closing(open_bucket(_settings(output))) as bucket, bucket.open(name) as file:
        if file is None:
            raise InputError(f"There is no {bucket.uri_of(name)}.")
        return pq.ParquetFile(file).read().to_pandas(types_mapper=_NULLABLE.get)


def _settings(output: object) -> OutputSettings:
    try:
        return TypeAdapter[OutputSettings](Output).validate_python(output)
    except ValidationError as error:
        raise input_error(error) from error
