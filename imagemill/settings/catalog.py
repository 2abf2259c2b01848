"""Where the prompts come from."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from imagemill.settings.execution import RUN_ID
from imagemill.settings.group import SettingsGroup, wrapped
from imagemill.settings.picture import PARAM

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


class CatalogSettings(SettingsGroup):
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


Catalog = Annotated[CatalogSettings, wrapped("path")]
