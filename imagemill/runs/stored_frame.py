"""Lets a flow be called with a frame in place of a path: the frame is stored in the output first.

Prefect would serialise the rows into the flow run's parameters; it only sees the address.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import Flow
from pydantic import BaseModel, ValidationError

from imagemill.bucket.access import open_bucket
from imagemill.bucket.image_bucket import ImageBucket
from imagemill.catalog.files import open_catalog
from imagemill.catalog.frames import Frame, write_frame
from imagemill.errors import InputError
from imagemill.media_types import PARQUET
from imagemill.runs.folder import RunFolder
from imagemill.runs.user_errors import plain_advice, without_secrets_in_errors
from imagemill.settings import STORED_FRAME, CatalogSettings, ExecutionSettings, Output, input_error

P = ParamSpec("P")
R = TypeVar("R")


def takes_frames(flow: Flow[P, R]) -> Flow[P, R]:
    """Let a flow whose first parameter is ``catalog`` be called with a frame, alone or as its ``path``."""
    flow.__class__ = _FrameFlow
    return flow


class _FrameFlow(Flow[P, R]):
    if not TYPE_CHECKING:  # calls have the types of any flow's

        def __call__(
            self, *args: object, return_state: bool = False, wait_for: object = None, **named: object
        ) -> object:
            catalog = named.get("catalog", args[0] if args else None)
            catalog = catalog if isinstance(catalog, Mapping) else {"path": catalog}
            if isinstance(catalog.get("path"), Frame):
                parameters = signature(self.fn).bind_partial(*args, **named).arguments
                args, named = (), _with_stored_frame(catalog, parameters)
            return super().__call__(*args, return_state=return_state, wait_for=wait_for, **named)

        def with_options(self, *args: object, **named: object) -> Flow[P, R]:
            return takes_frames(super().with_options(*args, **named))


class _Given(BaseModel):
    catalog: CatalogSettings
    output: Output
    execution: ExecutionSettings = ExecutionSettings()


@without_secrets_in_errors
@plain_advice
def _with_stored_frame(catalog: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a flow with the address of the stored frame, and the id of the run it is stored with.

    Raises:
        InputError: a setting or the frame cannot be used, or the run exists with another catalog.
        StoreUnavailableError: the bucket is unavailable.
    """
    with tempfile.TemporaryDirectory(prefix="imagemill-") as folder:
        file = Path(folder) / "catalog.parquet"
        try:
            given = _Given.model_validate({**parameters, "catalog": {**catalog, "path": str(file)}})
        except ValidationError as error:
            raise input_error(error) from error
        write_frame(catalog["path"], file)
        run_id = given.execution.run_id or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{token_hex(3)}"
        execution = given.execution.model_copy(update={"run_id": run_id})
        with closing(open_bucket(given.output)) as bucket:
            path = _store(bucket, given.catalog, execution)
    return {
        **parameters,
        "catalog": given.catalog.model_copy(update={"path": path}),
        "execution": execution,
    }


def _store(bucket: ImageBucket, catalog: CatalogSettings, execution: ExecutionSettings) -> str:
    """Store the file of a frame with a run, unless the run has been planned from the same; its address."""
    folder = RunFolder(str(execution.run_id))
    name = STORED_FRAME.format(run_id=folder.run_id)
    with folder.writable():
        folder.fetch(bucket)
    if folder.read_record() is None:
        return bucket.upload(Path(catalog.path), name, PARQUET)
    if not execution.keep_plan and open_catalog(catalog).digest != folder.read_catalog_digest():
        raise InputError(
            f"Run {folder.run_id!r} exists, and was planned from another catalog than this frame. Choose"
            " another run id, for which the images that exist cost nothing, or finish the run as it was"
            f" planned: imagemill resume {folder.run_id}."
        )
    return bucket.uri_of(name)
