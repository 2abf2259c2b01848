"""Where the images and records go."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from imagemill.s3.uri import split_s3_uri
from imagemill.settings.group import SettingsGroup, wrapped


class OutputSettings(SettingsGroup):
    """Where the images and records go."""

    uri: str = Field(
        description="The bucket and a prefix within it: s3://BUCKET/PREFIX.",
        examples=["s3://images/products"],
        json_schema_extra={"pattern": "^s3://[^/]+"},
    )
    s3_endpoint_url: str | None = Field(
        default=None, description="The address of the S3 server, if it is not AWS."
    )
    s3_bucket_block: str | None = Field(
        default=None,
        description="The name of a saved prefect-aws S3Bucket block whose credentials and endpoint to use;"
        " bucket and folder are those of the URI. Without one, boto3 looks for credentials in its usual"
        " places.",
    )
    copies: bool = Field(
        default=False,
        description="Also write one copy per catalog row, catalog/ID.png. The S3 server makes the copies.",
    )
    replace_manifest: bool = Field(
        default=False,
        description="Replace the manifest of another catalog that is at this output.",
    )
    merge_manifest: bool = Field(
        default=False,
        description="Merge the catalog's rows into the manifest, which keeps its others: for a part of the"
        " catalog. A rejected.parquet is merged anyway.",
    )

    @model_validator(mode="after")
    def _one_or_the_other(self) -> OutputSettings:
        if self.replace_manifest and self.merge_manifest:
            raise ValueError("the manifest is either replaced or merged")
        return self

    @field_validator("uri")
    @classmethod
    def _s3(cls, uri: str) -> str:
        split_s3_uri(uri)
        return uri.rstrip("/")


Output = Annotated[OutputSettings, wrapped("uri")]
