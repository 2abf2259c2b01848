"""Opens a catalog, locally or on S3 with the credentials of the output."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import unquote

from imagemill.blocks.loading import aws_session
from imagemill.catalog.files import CatalogFiles, open_catalog
from imagemill.catalog.places import is_on_s3
from imagemill.errors import InputError
from imagemill.s3.connection import own_session
from imagemill.settings import CatalogSettings, OutputSettings


def catalog_of(catalog: CatalogSettings, output: OutputSettings | None) -> CatalogFiles:
    """The catalog, with its files found and their columns checked.

    Raises:
        InputError: it cannot be used.
    """
    if not is_on_s3(catalog.path):
        return open_catalog(catalog)
    session, endpoint_url = aws_session(output) if output else (own_session(), None)
    return open_catalog(catalog, session=session, endpoint_url=endpoint_url)


def refuse_other_paths(path: str, patterns: Sequence[str]) -> None:
    """Check that a refresh may read a catalog from this path; without patterns, any is allowed.

    Raises:
        InputError: it is not.
    """
    leads_out = ".." in unquote(path).split("/")  # a pattern's * stands for that, too
    if patterns and (leads_out or not any(fnmatchcase(path, pattern) for pattern in patterns)):
        raise InputError(
            f"The catalog {path!r} is not one of those that this refresh is for: {', '.join(patterns)}."
            " Nothing was generated or changed. If it should be, add it to refresh.only_paths."
        )
