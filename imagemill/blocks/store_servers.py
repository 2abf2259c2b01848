"""Block types for the servers of job stores."""

from __future__ import annotations

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, field_validator

from imagemill.store_address import split_password


class StoreServer(Block):
    """A server that stores the jobs of runs."""

    # A password in the address must not appear in an error message.
    model_config = ConfigDict(hide_input_in_errors=True)

    schemes: ClassVar[tuple[str, ...]]

    url: str = Field(description="The server's address, without its password.")
    password: SecretStr | None = Field(default=None, description="The password of the user in the address.")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if url.partition("://")[0] not in cls.schemes:
            raise ValueError(f"the address must begin with {' or '.join(f'{s}://' for s in cls.schemes)}")
        if split_password(url)[1] is not None:
            raise ValueError("enter the password in its own field, not in the address")
        return url


class PostgresServer(StoreServer):
    """A Postgres database that stores the jobs of runs.

    Example:
        ```python
        from imagemill.blocks import PostgresServer

        server = PostgresServer.load("BLOCK_NAME")
        generate_catalog(..., execution={"store": "block:imagemill-postgres-store/BLOCK_NAME"})
        ```
    """

    _documentation_url = HttpUrl("https://www.postgresql.org/docs/current/libpq-connect.html")
    _block_type_name = "Job store: Postgres"
    _block_type_slug = "imagemill-postgres-store"
    _description = "A Postgres database that stores the jobs of runs, in one table for all runs."
    _logo_url = HttpUrl("https://github.com/postgres.png")

    schemes = ("postgresql", "postgres")
    url: str = Field(
        description="postgresql://USER@HOST:PORT/DATABASE without the password; ?sslmode=... is optional.",
        examples=["postgresql://mill@db.example.com/jobs?sslmode=require"],
    )


class RedisServer(StoreServer):
    """A Redis or Valkey server that stores the jobs of runs. It should have persistence enabled.

    Example:
        ```python
        from imagemill.blocks import RedisServer

        server = RedisServer.load("BLOCK_NAME")
        generate_catalog(..., execution={"store": "block:imagemill-redis-store/BLOCK_NAME"})
        ```
    """

    _documentation_url = HttpUrl("https://redis.io/docs/latest/develop/clients/")
    _block_type_name = "Job store: Redis"
    _block_type_slug = "imagemill-redis-store"
    _description = "A Redis or Valkey server that stores the jobs of runs, under keys imagemill:{RUN_ID}:*."
    _logo_url = HttpUrl("https://github.com/redis.png")

    schemes = ("redis", "rediss")
    url: str = Field(
        description="redis://USER@HOST:PORT/NUMBER without the password; rediss:// for TLS.",
        examples=["rediss://cache.example.com/0"],
    )
