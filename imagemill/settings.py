"""The settings of a run: the models behind the UI's form, the command's options and Python's arguments.

Each setting is described once, here. The models hold no secrets: keys and passwords come from blocks or
from the environment, so settings can be stored with a run.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    field_validator,
    model_validator,
)

from imagemill.errors import InputError
from imagemill.s3.uri import split_s3_uri
from imagemill.secrets import refuse_password
from imagemill.store_address import split_password

SEED_POLICY = re.compile(r"prompt|random|fixed:(0|[1-9][0-9]{0,9})")
_LARGEST_SEED = 2**32 - 1
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
ROUTE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")

STORED_FRAME = "runs/{run_id}/catalog.parquet"
"""Where a frame that a run was called with is stored, below the output prefix."""

_OF_ANY_RUN = re.compile(rf"(?<=/){STORED_FRAME.format(run_id=RUN_ID.pattern)}$")

CATALOG_COLUMNS = ("prompt", "id", "negative_prompt", "width", "height", "seed", "steps")
"""The catalog columns that imagemill reads; ``prompt`` is required."""

VARIED_COLUMNS = ("size", "width", "height", "steps", "seed", "negative_prompt")
"""What variations set of their own accord; a template reads any other name. ``size`` is width and height."""

PARAM_PREFIX = "param_"
"""A column map's name for a further field of the model begins so: ``{"param_guidance": "cfg"}``."""

_LONGEST_TEMPLATE = 20_000
_TEMPLATES = "templates"
"""The folder of a project whose files a flow's parameters may name as templates."""
_MOST_PER_ROW = 1_000
_VARIED_FORMS = {
    "size": re.compile(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}"),
    **dict.fromkeys(("width", "height", "steps"), re.compile(r"[1-9][0-9]{0,4}")),
    "seed": re.compile(r"[0-9]{1,10}"),
}

JUDGE_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
"""How a Python function is named: ``module:function``."""

PARAM = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}")

_SPELLED = {"api": "API", "id": "ID", "s3": "S3", "uri": "URI", "url": "URL", "usd": "USD"}
_UNITS = {"s": "(s)", "usd": "(USD)"}


def form_title(name: str, _field: object = None) -> str:
    """A field's title in the UI's form: ``max_cost_usd`` becomes "Max cost (USD)"."""
    *words, last = name.split("_")
    spelled = [*(_SPELLED.get(word, word) for word in words), _UNITS.get(last) or _SPELLED.get(last, last)]
    title = " ".join(spelled)
    return title[0].upper() + title[1:]


def _listed(values: object) -> object:
    """Values given as text, "A,B", or as numbers."""
    given = values.split(",") if isinstance(values, str) else values
    return [str(value).strip() for value in given] if isinstance(given, (list, tuple)) else given


def _template_of_project(name: str) -> str:
    """A template that was deployed with a flow.

    A flow's parameters come from anyone who may start it: they must not name any file of its worker.
    """
    folder, file = Path(_TEMPLATES).resolve(), Path(name).resolve()
    if file.suffix != ".j2" or not file.is_relative_to(folder):
        raise ValueError(
            f"a template's file is @{_TEMPLATES}/NAME.j2, in the folder where the flow runs; only the command"
            " line reads any other. A prompt that begins with @ is {{ '@' }}…"
        )
    return read_template(file)


def read_template(file: Path) -> str:
    """A template from a file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"the template file {str(file)!r} cannot be read: {reason}") from error
    return "{{ '@' }}" + text[1:] if text.startswith("@") else text  # or it would name another file


def _param_of(column: str) -> str | None:
    """The field of the model that a column map's name stands for; None where it stands for none."""
    return column.removeprefix(PARAM_PREFIX) if column.startswith(PARAM_PREFIX) else None


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, field_title_generator=form_title)


class CatalogSettings(_Settings):
    """Where the prompts come from."""

    path: str = Field(
        description="A Parquet file, a folder of Parquet files or a glob, local or s3://.",
        examples=["products.parquet", "s3://catalogs/products/*.parquet"],
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="The catalog's names for imagemill's columns, where they differ:"
        ' {"prompt": "text", "id": "sku"}. A name that begins with param_ passes the column through to the'
        ' model: {"param_guidance": "cfg"}. An empty one, {"seed": ""}, leaves a column called seed alone.',
        examples=[{"prompt": "text", "id": "sku"}],
    )
    prompt_template: str | None = Field(
        default=None,
        description="A Jinja2 template that makes each row's prompt from its columns. @FILE reads it from a"
        " file: any on the command line, in a flow only @templates/NAME.j2 of its project.",
        examples=["Studio photo of {{ title }}, {{ colour | lower }}, white background"],
    )
    negative_prompt_template: str | None = Field(
        default=None, description="The same for the negative prompt."
    )
    variations: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Pictures per row, each with a seed of its own. The first is the picture of a run without"
        " variations, so more of them later pay only for the new ones.",
    )
    vary: dict[str, Annotated[list[str], BeforeValidator(_listed)]] = Field(
        default_factory=dict,
        description="Make each row in every combination of these values: size (as WxH), width, height, steps,"
        " seed, negative_prompt, param_NAME, or any name that a template reads.",
        examples=[{"style": ["studio photo", "watercolour"], "size": ["1024x1024", "768x1344"]}],
    )
    limit: int | None = Field(
        default=None,
        ge=1,
        description="Read at most this many rows. They are merged into the manifest, which keeps its others.",
    )
    carry: list[str] = Field(
        default_factory=list,
        description="Columns of bytes, such as pictures, to keep in the manifest; it keeps all others.",
    )

    @property
    def series(self) -> str:
        """What runs are compared by over time: the path, or one for all frames of an output."""
        return _OF_ANY_RUN.sub(STORED_FRAME.format(run_id="*"), self.path)

    @property
    def templates(self) -> dict[str, str]:
        """The templates, by the column that each makes."""
        given = {"prompt": self.prompt_template, "negative_prompt": self.negative_prompt_template}
        return {name: template for name, template in given.items() if template is not None}

    @field_validator("prompt_template", "negative_prompt_template")
    @classmethod
    def _bounded_template(cls, template: str | None) -> str | None:
        if template is not None and template.startswith("@"):
            template = _template_of_project(template[1:])
        if template is not None and not template.strip():
            raise ValueError("the template is blank")
        if template is not None and len(template) > _LONGEST_TEMPLATE:
            raise ValueError(f"the template has more than {_LONGEST_TEMPLATE:,} characters")
        return template

    @field_validator("vary")
    @classmethod
    def _variable(cls, vary: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, values in vary.items():
            if name in {"prompt", "id"} or not PARAM.fullmatch(name):
                raise ValueError(f"{name[:60]!r} cannot be varied")
            if len(set(values)) < max(1, len(values)) or not all(value.strip() for value in values):
                raise ValueError(f"{name} needs values that differ and are not blank")
            form = _VARIED_FORMS.get(name)
            for value in values:
                if form and not form.fullmatch(value):
                    example = "a size such as 1024x768" if name == "size" else "a whole number"
                    raise ValueError(f"{name} {value[:40]!r} is not {example}")
        if "size" in vary and {"width", "height"} & vary.keys():
            raise ValueError("vary either size, or width and height")
        return vary

    @model_validator(mode="after")
    def _bounded(self) -> CatalogSettings:
        per_row = self.variations * prod(map(len, self.vary.values()))
        if per_row > _MOST_PER_ROW:
            raise ValueError(
                f"the variations make {per_row:,} pictures per row; at most {_MOST_PER_ROW:,} are allowed"
            )
        if "negative_prompt" in self.vary and self.negative_prompt_template is not None:
            raise ValueError("negative_prompt comes from a template, or is varied: not both")
        return self

    @field_validator("columns")
    @classmethod
    def _known_columns(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in CATALOG_COLUMNS and not PARAM.fullmatch(_param_of(name) or ""):
                raise ValueError(f"{name!r} is not one of {', '.join(CATALOG_COLUMNS)} and param_NAME")
        return columns


class ApiSettings(_Settings):
    """Which image API and model to use."""

    provider: str = Field(
        default="together",
        description="The vendor: together, fal, replicate, bfl, runware, cloudflare, or openai, for OpenAI"
        " and any server that speaks its API. With a block, the block's own vendor counts.",
        json_schema_extra={
            "enum": ["together", "fal", "replicate", "bfl", "openai", "runware", "cloudflare"]
        },
    )
    block: str | None = Field(
        default=None,
        description="A saved image API block, by name or as TYPE/NAME (imagemill-together/main), with key,"
        " address and model. An address or model given here overrides the block's. Without a block, the key"
        " comes from the vendor's usual environment variable.",
    )
    base_url: str | None = Field(
        default=None,
        description="The API's address, if not the vendor's own. The vendor's path is appended: below its"
        " version if the address names a version or, for openai, has any path.",
    )
    model: str | None = Field(
        default=None,
        description="The model, by its name at the vendor; imagemill models lists them. The default is the"
        " vendor's FLUX.1 [schnell] where it has one.",
    )
    account: str | None = Field(
        default=None,
        description="The account's id, where the vendor's address has one: Cloudflare's, by default from"
        " CLOUDFLARE_ACCOUNT_ID.",
    )
    usd_per_image: float | None = Field(
        default=None,
        ge=0,
        description="Your price in USD per image, if it differs from the list price or that is unknown.",
    )
    usd_per_megapixel: float | None = Field(
        default=None,
        ge=0,
        description="Your price in USD per megapixel, if it differs from the list price or that is unknown.",
    )
    request_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Time limit for one attempt at an image, in seconds, without time in the vendor's queue;"
        " by default 60, or the block's own.",
    )
    queue_timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=172_800,
        description="Time limit for a request's wait in the vendor's queue, in seconds; by default 3600, or"
        " the block's own.",
    )
    image_hosts: list[str] = Field(
        default_factory=list,
        description="Further hosts that image links may point to, beside the vendor's own.",
        examples=[["cdn.example.com"]],
    )

    @field_validator("base_url")
    @classmethod
    def _without_password(cls, base_url: str | None) -> str | None:
        if base_url is not None:
            refuse_password(base_url)
        return base_url


class RouteSettings(ApiSettings):
    """One of several accounts that a run buys from."""

    name: str | None = Field(
        default=None,
        description="What the run's records call the route; by default its vendor, with a number from the"
        " second on.",
        json_schema_extra={"pattern": f"^({ROUTE_NAME.pattern})$"},
    )
    family: str | None = Field(
        default=None,
        description="The model family, such as flux.1-schnell, if imagemill does not know it from the model.",
    )
    concurrency: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Concurrent requests here; by default as the run's limits say."
    )
    max_images_per_minute: float | None = Field(
        default=None, gt=0, description="Never request more images per minute than this here."
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, description="Take no more jobs here before they cost more than this."
    )

    @field_validator("name", "family")
    @classmethod
    def _safe_name(cls, name: str | None) -> str | None:
        if name is not None and not ROUTE_NAME.fullmatch(name):
            raise ValueError(f"{name[:60]!r} is not a name: use letters, digits, '.', '_' and '-'")
        return name


class OutputSettings(_Settings):
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


class PictureSettings(_Settings):
    """Defaults for rows that do not set their own."""

    width: int = Field(default=1024, ge=1, le=4096, description="Width in pixels, for rows without one.")
    height: int = Field(default=1024, ge=1, le=4096, description="Height in pixels, for rows without one.")
    steps: int | None = Field(
        default=None,
        ge=1,
        le=500,
        description="Inference steps, for rows without their own. The default is the model's usual number.",
    )
    params: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of the model, named as in its own documents. A param_ column of the"
        " catalog overrides them. They are checked before the run, and are part of each picture's key.",
        examples=[{"guidance_scale": 3.5}],
    )
    seed_policy: str = Field(
        default="prompt",
        description="The seed for rows without one: prompt (derived from the prompt), fixed:N or random.",
        json_schema_extra={"pattern": f"^({SEED_POLICY.pattern})$"},
    )
    format: Literal["png", "jpeg", "webp"] = Field(
        default="png", description="The image format: png, jpeg or, if the API supports it, webp."
    )

    mix_models: bool = Field(
        default=False,
        description="Let several routes have models of different families. Which of them makes a picture is"
        " then chance.",
    )

    @field_validator("params")
    @classmethod
    def _named_params(cls, params: dict[str, Any]) -> dict[str, Any]:
        for name in params:
            if not PARAM.fullmatch(name):
                raise ValueError(f"{name[:60]!r} is not the name of a field")
        return params

    @field_validator("seed_policy")
    @classmethod
    def _known_policy(cls, policy: str) -> str:
        if not SEED_POLICY.fullmatch(policy):
            raise ValueError(f"{policy!r} is not prompt, random or fixed:N")
        if int(policy.partition(":")[2] or 0) > _LARGEST_SEED:
            raise ValueError(f"{policy!r} is too large: a seed is at most {_LARGEST_SEED:,}")
        return policy


class QualitySettings(_Settings):
    """Whether pictures are measured, and what happens to those that look wrong."""

    measure: Literal["auto", "all", "off"] = Field(
        default="auto",
        description="Which pictures to measure: auto (as many as fit into a tenth of the CPU time), all, or"
        " off (none). Measures and flags are in jobs.parquet.",
    )
    on_suspect: Literal["keep", "fail", "retry"] = Field(
        default="keep",
        description="What to do with a blurred, flat, letterboxed or half decoded picture: keep it and show"
        " it first in the report, fail the job, or retry once with another seed and keep the better one.",
    )
    judge: str | None = Field(
        default=None,
        description="A judge of your own: a Python function as module:function, or the address of an"
        " OpenAI-compatible API with a vision model (key in IMAGEMILL_JUDGE_KEY). A picture that scores below"
        " the threshold is suspect, with the flag judged. A function runs where the run does.",
        examples=["my_judges:is_sharp", "https://api.openai.com/v1"],
    )
    judge_model: str | None = Field(default=None, description="The vision model that judges.")
    judge_question: str = Field(
        default="Does the picture show what the prompt asks for, without visible faults?",
        max_length=4000,
        description="What the vision model is asked about each picture; 1 is yes, 0 is no.",
    )
    judge_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Pictures that score below this, from 0 to 1, are suspect."
    )
    judge_timeout_s: float = Field(
        default=60.0,
        gt=0,
        le=600,
        description="Time limit for one answer of the judge, in seconds. A picture without an answer is kept"
        " unjudged.",
    )
    judge_batch: int = Field(
        default=8, ge=1, le=256, description="The most pictures that a function judges in one call."
    )
    judge_concurrency: int = Field(
        default=8, ge=1, le=256, description="Concurrent requests to the vision model."
    )
    judge_usd_per_million_input_tokens: float | None = Field(
        default=None, ge=0, description="The vision model's price in USD per million input tokens."
    )
    judge_usd_per_million_output_tokens: float | None = Field(
        default=None, ge=0, description="The same for output tokens."
    )

    @property
    def judge_is_model(self) -> bool:
        """Whether a vision model judges, and no function."""
        return self.judge is not None and self.judge.startswith(("http://", "https://"))

    @property
    def judge_is_priced(self) -> bool:
        """Whether the judge's price is known; a function has none."""
        prices = (self.judge_usd_per_million_input_tokens, self.judge_usd_per_million_output_tokens)
        return not self.judge_is_model or None not in prices

    @model_validator(mode="after")
    def _known_judge(self) -> QualitySettings:
        if self.judge is None:
            return self
        if self.judge_is_model:
            if not urlsplit(self.judge).hostname:
                raise ValueError(f"the judge {self.judge!r} is not an http or https address")
            refuse_password(self.judge)
            if not (self.judge_model or "").strip():
                raise ValueError("a judge behind an API needs judge_model (--judge-model), its vision model")
        elif not JUDGE_FUNCTION.fullmatch(self.judge):
            raise ValueError(f"the judge {self.judge!r} is neither module:function nor an http(s) address")
        return self


class LimitSettings(_Settings):
    """Limits on speed and cost."""

    concurrency: (
        Annotated[int, WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1000})] | Literal["auto"]
    ) = Field(
        default="auto",
        description="Concurrent requests: auto starts at 10 and finds the account's limit; a number holds.",
    )
    max_images_per_minute: float | None = Field(
        default=None, gt=0, description="Never request more images per minute than this."
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, description="Stop before the run costs more than this. It can be resumed."
    )
    approve_above_usd: float | None = Field(
        default=None,
        ge=0,
        description="Suspend runs that would cost more than this until someone approves them in the UI,"
        " beside a preview of up to 12 pictures, which costs no more than this.",
    )
    route_policy: Literal["fastest", "cheapest", "failover"] = Field(
        default="fastest",
        description="Which of several routes takes a job: fastest keeps each at its limit; cheapest takes a"
        " dearer one only where the cheaper ones are closed, down or too slow for the deadline; failover"
        " takes the first that works.",
    )
    finish_by: AwareDatetime | None = Field(
        default=None,
        description="When a run with the policy cheapest should be finished, with a time zone.",
        examples=["2026-12-01T06:00:00+01:00"],
    )
    max_hours: float | None = Field(
        default=None,
        gt=0,
        le=1000,
        description="The same as hours from the start, or from a resume.",
    )
    outage_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Treat the API as down, and only probe it, once more than this share of the last 200"
        " attempts failed with server errors or timeouts.",
    )
    outage_timeout_s: float = Field(
        default=300.0,
        ge=0,
        description="Stop once the API has been down for this many seconds. The run can be resumed.",
    )
    setup_fault_share: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Stop once the first 10 rows, or later more than this share of the last 50 requests, have"
        " failed in the same way for a reason that lies in the setup. The run can be resumed; 1 never stops.",
    )

    @model_validator(mode="after")
    def _one_deadline(self) -> LimitSettings:
        deadlines = [at for at in (self.finish_by, self.max_hours) if at is not None]
        if deadlines and self.route_policy != "cheapest":
            raise ValueError("only the route policy cheapest has a deadline; the others take no longer")
        if len(deadlines) > 1:
            raise ValueError("give either finish_by or max_hours")
        return self

    @field_validator("concurrency")
    @classmethod
    def _bounded(cls, concurrency: int | str) -> int | str:
        if isinstance(concurrency, int) and not 1 <= concurrency <= 1000:
            raise ValueError(f"{concurrency} is not between 1 and 1000")
        return concurrency


class ExecutionSettings(_Settings):
    """How the run is executed and where its state is stored."""

    run_id: str | None = Field(
        default=None,
        description="The run's id; an existing run is resumed. Generated by default.",
    )
    keep_plan: bool = Field(
        default=False,
        description="Resume the run as it was planned, even if its catalog has changed since.",
    )
    store: str | None = Field(
        default=None,
        description="The job store: memory, sqlite, sqlite:PATH, postgresql://USER@HOST/DATABASE,"
        " redis://HOST or block:TYPE/NAME, with the password in IMAGEMILL_STORE_PASSWORD."
        " By default memory for up to 1,000 images, sqlite for more.",
    )
    shard_size: int = Field(
        default=250,
        ge=1,
        le=100_000,
        description="Jobs per Prefect task run; 1 shows each image in the UI.",
    )
    workers: int = Field(default=4, ge=1, le=64, description="Number of shards processed at the same time.")
    task_runner: Literal["threads", "dask"] = Field(
        default="threads",
        description="Where shards run: in threads of this process, or on a Dask cluster, which needs a job"
        " store in Postgres or Redis.",
    )
    scheduler: str | None = Field(
        default=None,
        description="The address of the Dask scheduler.",
        examples=["tcp://scheduler.example.com:8786"],
    )

    grace_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="Seconds that requests in flight get to finish after Ctrl-C; a second Ctrl-C does not"
        " wait. When a run is cancelled in Prefect, they get at least 20.",
    )

    give_up: list[str] = Field(
        default_factory=list,
        description="A route to give up, by its name: nothing more is bought there, and what is in its queue"
        " is no longer waited for but made elsewhere, though its vendor may charge for it yet.",
        examples=[["fal"]],
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
            raise ValueError("a run on Dask needs the scheduler's address, such as tcp://HOST:8786")
        if (self.store or "memory").partition(":")[0] in {"memory", "sqlite"}:
            raise ValueError(
                "a run on Dask needs a job store that all machines can reach: postgresql://…, redis://… or a"
                " saved block"
            )
        return self

    @field_validator("run_id")
    @classmethod
    def _safe_run_id(cls, run_id: str | None) -> str | None:
        run_id = run_id and run_id.strip()
        if run_id is not None and not RUN_ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is not a run id: use up to 120 letters, digits, '.', '_' and '-'")
        return run_id


class RegressionSettings(_Settings):
    """When a run counts as a regression, on the dashboard and in its events."""

    share: float = Field(
        default=0.2,
        gt=0,
        le=10,
        description="How much worse than the median of earlier runs counts as a regression: 0.2 is 20 % less"
        " throughput, or 20 % more latency, errors, suspect pictures or cost per image.",
    )
    runs_before: int = Field(
        default=3,
        ge=1,
        description="How many earlier runs of the same catalog and API are needed to compare with.",
    )


class RefreshSettings(_Settings):
    """What a refresh may take away, and what happens if it would take more."""

    max_retired_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Refuse a refresh that would take more than this share of the manifest's rows or, with"
        " prune, delete more than this share of its images. One that would take everything, or whose catalog"
        " has no usable row or hardly any row of the manifest, is refused whatever the share.",
    )
    allow_loss: bool = Field(
        default=False, description="Go on although the refresh takes away more than that."
    )
    approve_loss: bool = Field(
        default=False,
        description="Suspend such a refresh until someone approves it in the UI, instead of refusing it.",
    )
    prune_after_days: float = Field(
        default=7.0,
        ge=0,
        description="With prune, delete an image once no row has used it for this many days; 0 deletes at"
        " once. Until then, a row that returns finds its image.",
    )
    only_paths: list[str] = Field(
        default_factory=list,
        description="Refresh only from catalogs whose path matches one of these patterns, where * stands for"
        " any characters: an event could name any path. A path with .. matches none.",
        examples=[["s3://catalogs/products/*"]],
    )


class Budget(_Settings):
    """What a calibration may spend. It makes real images, which the vendor charges for."""

    images: int = Field(
        default=300,
        ge=20,
        le=10_000,
        description="The most images to pay for. They are real, and are discarded.",
    )
    seconds: float = Field(
        default=120.0, gt=0, le=3600, description="Stop sending requests after this many seconds."
    )
    width: int = Field(default=512, ge=64, le=4096, description="Width of the images in pixels.")
    height: int = Field(default=512, ge=64, le=4096, description="Height of the images in pixels.")


def _wrapped(name: str) -> BeforeValidator:
    """Accept a plain string in place of a model, as the value of its first field."""
    return BeforeValidator(lambda value: {name: value} if isinstance(value, str) else value)


def _as_route(value: object) -> object:
    """A vendor's name, or the settings of an API, as those of a route."""
    if isinstance(value, ApiSettings) and not isinstance(value, RouteSettings):
        return value.model_dump()
    return {"provider": value} if isinstance(value, str) else value


OneApi = Annotated[ApiSettings, _wrapped("provider")]
_ONE_API: TypeAdapter[ApiSettings] = TypeAdapter(OneApi)
_ROUTES: TypeAdapter[list[RouteSettings]] = TypeAdapter(
    Annotated[list[Annotated[RouteSettings, BeforeValidator(_as_route)]], Field(min_length=1, max_length=20)]
)


def only_route(route: RouteSettings, limits: LimitSettings) -> tuple[ApiSettings, LimitSettings]:
    """A run over one route as a run without routes: its API, and the limits with the route's own.

    Of money and pace, both the route's limit and the run's hold.
    """
    api = ApiSettings(**route.model_dump(include=set(ApiSettings.model_fields)))
    changed: dict[str, float] = {} if route.concurrency is None else {"concurrency": route.concurrency}
    for name in ("max_images_per_minute", "max_cost_usd"):
        both = [most for most in (getattr(route, name), getattr(limits, name)) if most is not None]
        if both:
            changed[name] = min(both)
    return api, limits.model_copy(update=changed)


def _one_or_several(value: Any, _: ValidatorFunctionWrapHandler) -> ApiSettings | list[RouteSettings]:  # noqa: ANN401
    """Errors name the field at fault, which those of a union would not."""
    return (
        _ROUTES.validate_python(value)
        if isinstance(value, (list, tuple))
        else _ONE_API.validate_python(value)
    )


Catalog = Annotated[CatalogSettings, _wrapped("path")]
Api = Annotated[ApiSettings | list[RouteSettings], WrapValidator(_one_or_several)]
Output = Annotated[OutputSettings, _wrapped("uri")]


class RunSettings(_Settings):
    """All settings of a run, with its id: what a shard needs, and what a resume reads."""

    run_id: str
    catalog: Catalog
    api: OneApi
    """Of a run over several routes, the first's."""
    output: Output
    picture: PictureSettings = PictureSettings()
    quality: QualitySettings = QualitySettings()
    limits: LimitSettings = LimitSettings()
    execution: ExecutionSettings = ExecutionSettings()
    refresh: RefreshSettings | None = None
    """Of a refresh; None where the run is none."""
    prune: bool = False
    routes: list[RouteSettings] = []
    """Those of a run over several; none of a run over one."""

    @property
    def apis(self) -> ApiSettings | list[RouteSettings]:
        """The one API, or all routes: what a flow is called with."""
        return self.routes or self.api

    @property
    def providers(self) -> str:
        """The vendors, joined by a plus where there are several."""
        return "+".join(dict.fromkeys(route.provider for route in self.routes)) or self.api.provider

    @model_validator(mode="after")
    def _safe(self) -> RunSettings:
        if not RUN_ID.fullmatch(self.run_id):
            raise ValueError(f"{self.run_id!r} is not a run id: use letters, digits, '.', '_' and '-'")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that must not change when a run is resumed."""
        return {
            "catalog": self.catalog.path,
            "columns": self.catalog.columns,
            "limit": self.catalog.limit,
            "prompt template": self.catalog.prompt_template,
            "negative prompt template": self.catalog.negative_prompt_template,
            "variations": self.catalog.variations,
            "varied values": self.catalog.vary,
            "provider": self.api.provider,
            "model": self.api.model,
            "routes": [f"{route.name}={route.provider}/{route.model}" for route in self.routes],
            "output": self.output.uri,
            **{name.replace("_", " "): value for name, value in self.picture},
        }


GROUPS: dict[str, type[BaseModel]] = {
    "catalog": CatalogSettings,
    "api": ApiSettings,
    "output": OutputSettings,
    "picture": PictureSettings,
    "quality": QualitySettings,
    "limits": LimitSettings,
    "execution": ExecutionSettings,
    "refresh": RefreshSettings,
    "regressions": RegressionSettings,
    "budget": Budget,
}
"""The groups of settings, by the name that a flow's parameter has."""


def input_error(error: ValidationError) -> InputError:
    """A validation error as one sentence."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return InputError(f"{where}: {message}." if where else f"{message}.")
