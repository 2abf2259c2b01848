"""What a run can be told: the models behind the UI's form, the command's options and Python's arguments.

Each option is described once, here. The models hold no secrets: keys and passwords come from blocks or
from the environment, so settings may be stored beside a run.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from imagemill.errors import InputError
from imagemill.store_address import split_password

SEED_POLICY = re.compile(r"prompt|random|fixed:(0|[1-9][0-9]{0,9})")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")

CATALOG_COLUMNS = ("prompt", "id", "negative_prompt", "width", "height", "seed", "steps")
"""The catalog's columns that imagemill reads; ``prompt`` is required."""


_SPELLED = {"api": "API", "id": "ID", "s": "(s)", "s3": "S3", "uri": "URI", "url": "URL", "usd": "(USD)"}


def _title(name: str, _field: object) -> str:
    """A field's title in the UI's form: ``max_cost_usd`` becomes "Max cost (USD)"."""
    words = " ".join(_SPELLED.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, field_title_generator=_title)


class CatalogSettings(_Settings):
    """Where the prompts are."""

    path: str = Field(
        description="A Parquet file, a folder of them or a glob; local or s3://.",
        examples=["products.parquet", "s3://catalogs/products/*.parquet"],
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="What the catalog calls its columns, where not as imagemill does:"
        ' {"prompt": "text", "id": "sku"}.',
        examples=[{"prompt": "text", "id": "sku"}],
    )
    limit: int | None = Field(default=None, ge=1, description="Read only so many rows.")

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in CATALOG_COLUMNS:
                raise ValueError(f"{name!r} is none of {', '.join(CATALOG_COLUMNS)}")
        return columns


class ApiSettings(_Settings):
    """Which image API, and which model there."""

    provider: str = Field(
        default="together",
        description="The vendor: together, fal, replicate, bfl, or openai, for any server that speaks it.",
        json_schema_extra={"enum": ["together", "fal", "replicate", "bfl", "openai"]},
    )
    block: str | None = Field(
        default=None,
        description="A saved image API block, as TYPE/NAME (imagemill-together/main): it holds key, address"
        " and model; an address or a model given here wins. Without a block the key comes from the vendor's"
        " usual environment variable.",
    )
    base_url: str | None = Field(
        default=None,
        description="Scheme, host and any prefix, where not the vendor's; the vendor's own path follows.",
    )
    model: str | None = Field(default=None, description="The model; FLUX.1 [schnell] by default.")
    request_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="How long one attempt at an image may take, in seconds.",
    )


class OutputSettings(_Settings):
    """Where images and records go."""

    uri: str = Field(
        description="The bucket and a prefix in it: s3://BUCKET/PREFIX.",
        examples=["s3://images/products"],
        json_schema_extra={"pattern": "^s3://[^/]+"},
    )
    s3_endpoint_url: str | None = Field(
        default=None, description="The address of the S3 server, where it is not AWS."
    )
    s3_bucket_block: str | None = Field(
        default=None,
        description="The name of a saved prefect-aws S3Bucket block whose credentials are used."
        " Without one, boto3 looks for credentials as it always does.",
    )
    copies: bool = Field(
        default=False,
        description="Also give each catalog row its own copy, catalog/ID.png, made by the server.",
    )

    @field_validator("uri")
    @classmethod
    def _s3(cls, uri: str) -> str:
        if not re.match(r"s3://[^/]+", uri):
            raise ValueError(f"{uri!r} is not of the form s3://BUCKET/PREFIX")
        return uri.rstrip("/")


class PictureSettings(_Settings):
    """What a row says nothing about."""

    width: int = Field(default=1024, ge=1, le=4096, description="Pixels, for rows without a width.")
    height: int = Field(default=1024, ge=1, le=4096, description="Pixels, for rows without a height.")
    steps: int = Field(default=4, ge=1, le=50, description="Steps, for rows without their own.")
    seed_policy: str = Field(
        default="prompt",
        description="The seed of rows without one: prompt (derived from the prompt), fixed:N or random.",
        json_schema_extra={"pattern": f"^({SEED_POLICY.pattern})$"},
    )
    format: Literal["png", "jpeg", "webp"] = Field(
        default="png", description="The format asked for: png, jpeg or, where the API makes it, webp."
    )

    @field_validator("seed_policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if not SEED_POLICY.fullmatch(policy):
            raise ValueError(f"{policy!r} is none of prompt, random and fixed:N")
        return policy


class LimitSettings(_Settings):
    """How fast, and how much money."""

    concurrency: (
        Annotated[int, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})] | Literal["auto"]
    ) = Field(
        default="auto",
        description="Requests at once: auto starts at 10 and finds the account's limit, a number holds.",
    )
    max_images_per_minute: float | None = Field(
        default=None, gt=0, description="Never ask for more images a minute than this."
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, description="Stop, resumably, before the run costs more than this."
    )

    approve_above_usd: float | None = Field(
        default=None,
        ge=0,
        description="Pause before a run that would cost more than this, until somebody resumes it in the UI.",
    )
    outage_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Pause, and only probe, once more than this share of the last 200 attempts failed as an"
        " API that is down fails.",
    )
    outage_timeout_s: float = Field(
        default=300.0,
        ge=0,
        description="Stop, resumably, once the API has been down this long, in seconds.",
    )

    @field_validator("concurrency")
    @classmethod
    def _bounded(cls, concurrency: int | str) -> int | str:
        if isinstance(concurrency, int) and not 1 <= concurrency <= 1000:
            raise ValueError(f"{concurrency} is not between 1 and 1000")
        return concurrency


class ExecutionSettings(_Settings):
    """How the work is divided and where it is kept."""

    run_id: str | None = Field(
        default=None,
        description="A name for the run; one that exists is resumed. Made up by default.",
    )
    store: str | None = Field(
        default=None,
        description="The job store: memory, sqlite, sqlite:PATH, postgresql://USER@HOST/DATABASE or"
        " redis://HOST, its password in IMAGEMILL_STORE_PASSWORD, or block:TYPE/NAME; by default"
        " memory up to 1,000 rows, sqlite beyond.",
    )
    shard_size: int = Field(
        default=250,
        ge=1,
        le=100_000,
        description="Jobs in one task run; 1 shows each image in the UI.",
    )
    workers: int = Field(default=4, ge=1, le=64, description="Shards that are worked on at once.")
    task_runner: Literal["threads", "dask"] = Field(
        default="threads",
        description="Where shards are worked on: threads of this process, or the workers of a Dask cluster,"
        " which needs a job store in Postgres or Redis.",
    )
    scheduler: str | None = Field(
        default=None,
        description="The address of the Dask cluster's scheduler.",
        examples=["tcp://scheduler.example.com:8786"],
    )

    # Not a field: Prefect stores a flow run's parameters, and the run's record holds its settings.
    _store_password: SecretStr | None = PrivateAttr(default=None)

    @property
    def store_password(self) -> SecretStr | None:
        """The password that the store's address was given with; it leaves this process with nothing."""
        return self._store_password

    @model_validator(mode="wrap")
    @classmethod
    def _take_password_out(cls, given: Any, make: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        store = given.get("store") if isinstance(given, dict) else None
        if not isinstance(store, str):
            return make(given)
        address, password = split_password(store)
        made = make({**given, "store": address})
        made._store_password = password  # noqa: SLF001 - its own
        return made

    def __getstate__(self) -> dict[Any, Any]:
        """What a process on another machine is sent: it has its own way to the password."""
        return {**super().__getstate__(), "__pydantic_private__": {"_store_password": None}}

    @model_validator(mode="after")
    def _fit_for_dask(self) -> ExecutionSettings:
        if self.task_runner != "dask":
            return self
        if not self.scheduler:
            raise ValueError("a run on Dask needs its scheduler's address, such as tcp://HOST:8786")
        if (self.store or "memory").partition(":")[0] in {"memory", "sqlite"}:
            raise ValueError(
                "a run on Dask needs a job store that all machines reach: postgresql://…, redis://… or a"
                " block of one"
            )
        return self

    @field_validator("run_id")
    @classmethod
    def _safe_run_id(cls, run_id: str | None) -> str | None:
        if run_id is not None and not RUN_ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} must be letters, digits, '.', '_' and '-', at most 120")
        return run_id


class RegressionSettings(_Settings):
    """When a run counts as a regression, on the dashboard and in its events."""

    share: float = Field(
        default=0.2,
        gt=0,
        le=10,
        description="How much worse than the median of the runs before is a regression, as a share:"
        " 0.2 is 20 % less throughput, or 20 % more latency, errors or cost per image.",
    )
    runs_before: int = Field(
        default=3,
        ge=1,
        description="Runs of the same catalog and API there must have been before.",
    )


class Budget(_Settings):
    """What a calibration may spend. It makes real images, which the vendor bills."""

    images: int = Field(
        default=300,
        ge=20,
        le=10_000,
        description="Images that may be paid for, at most. They are real, and thrown away.",
    )
    seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Nothing more is sent after so many seconds."
    )
    width: int = Field(default=512, ge=64, le=4096, description="Pixels: how wide the images are.")
    height: int = Field(default=512, ge=64, le=4096, description="Pixels: how high the images are.")


def _wrapped(name: str) -> BeforeValidator:
    """Lets a plain string stand for a model whose first field it is."""
    return BeforeValidator(lambda value: {name: value} if isinstance(value, str) else value)


Catalog = Annotated[CatalogSettings, _wrapped("path")]
Api = Annotated[ApiSettings, _wrapped("provider")]
Output = Annotated[OutputSettings, _wrapped("uri")]


class RunSettings(_Settings):
    """Everything a run was told, with its id: what a shard needs to know, and what a resume reads."""

    run_id: str
    catalog: Catalog
    api: Api
    output: Output
    picture: PictureSettings = PictureSettings()
    limits: LimitSettings = LimitSettings()
    execution: ExecutionSettings = ExecutionSettings()

    @model_validator(mode="after")
    def _safe(self) -> RunSettings:
        if not RUN_ID.fullmatch(self.run_id):
            raise ValueError(f"run id {self.run_id!r} must be letters, digits, '.', '_' and '-'")
        return self

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed: all that decides which pictures it makes."""
        return {
            "catalog": self.catalog.path,
            "provider": self.api.provider,
            "output": self.output.uri,
        }


def input_error(error: ValidationError) -> InputError:
    """A validation error as one sentence."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return InputError(f"{where}: {message}." if where else f"{message}.")
