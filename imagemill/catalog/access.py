"""Opens a catalog, locally or on S3 with the credentials of the output."""

from __future__ import annotations

import boto3

from imagemill.blocks.loading import aws_session
from imagemill.catalog.files import CatalogFiles, open_catalog
from imagemill.settings import CatalogSettings, OutputSettings


def catalog_of(catalog: CatalogSettings, output: OutputSettings | None) -> CatalogFiles:
    """The catalog, with its files found and their columns checked.

    Raises:
        InputError: it cannot be used.
    """
    if not catalog.path.startswith("s3://"):
        return open_catalog(catalog)
    session, endpoint_url = aws_session(output) if output else (boto3.Session(), None)
    return open_catalog(catalog, session=session, endpoint_url=endpoint_url)
