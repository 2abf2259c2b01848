"""Writes docs/reference.md from the code, so that it cannot drift.

python docs/reference.py > docs/reference.md
"""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel

from imagemill.blocks.apis import PROVIDERS, ImageApi
from imagemill.catalog.plan import REJECTED_SCHEMA
from imagemill.cli.options import GROUPS, OPTIONS
from imagemill.errors import RETRY_RULES
from imagemill.reports.metrics import METRICS_SCHEMA
from imagemill.runs.records import FAILED_SCHEMA, JOBS_SCHEMA
from imagemill.runs.summary import RunSummary

_FILES: tuple[tuple[str, str, pa.Schema], ...] = (
    ("jobs.parquet", "A row a job.", JOBS_SCHEMA),
    ("failed.parquet", "The dead letters: a row a failed job.", FAILED_SCHEMA),
    ("rejected.parquet", "A row a catalog row that never became a job.", REJECTED_SCHEMA),
    (
        "runs/&lt;run_id&gt;/metrics.parquet",
        "A row a time bucket in which something happened.",
        METRICS_SCHEMA,
    ),
)


def reference() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made from the code by `python docs/reference.py`; a test keeps it true.",
        "## Settings",
        "Python and Prefect take them as `group: {name: value}`; the command as options.",
        *[_settings(group, model) for group, model in GROUPS.items()],
        "## Image APIs",
        _apis(),
        "## What happens to an error",
        _errors(),
        "## The summary",
        _table(("field", "meaning"), [(f"`{n}`", d) for n, d in _described(RunSummary)]),
        "## Files",
        "Below `runs/<run_id>/` in the output.",
        *[_file(*file) for file in _FILES],
    ]
    return "\n\n".join(parts) + "\n"


def _settings(group: str, model: type[BaseModel]) -> str:
    options = {name: option for option, _, owner, name in OPTIONS if owner == group}
    rows = []
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        rows.append(
            (f"`{name}`", f"`{options[name]}`" if name in options else "", default, field.description)
        )
    return f"### {group}\n\n" + _table(("name", "option", "default", "meaning"), rows)


def _apis() -> str:
    rows = []
    for name, api in PROVIDERS.items():
        sizes = api.sizes
        rows.append(
            (f"`{name}`", f"`{api.default_model}`", f"`{api.key_variable}`", _limits(api), sizes.most_steps)
        )
    return _table(("provider", "model", "key", "sizes", "steps up to"), rows)


def _limits(api: type[ImageApi]) -> str:
    sizes = api.sizes
    return f"{sizes.smallest} to {sizes.largest}, multiples of {sizes.multiple}"


def _errors() -> str:
    rows = []
    for error_class, rule in RETRY_RULES.items():
        wait = f"{rule.base_s:g} s, doubling, with jitter" if rule.jitter else f"{rule.base_s:g} s"
        rows.append((f"`{error_class}`", rule.retries, wait if rule.retries else "", rule.outcome.value))
    return _table(("class", "retries", "wait", "in the end"), rows)


def _described(model: type[BaseModel]) -> list[tuple[str, str]]:
    return [(name, field.description or "") for name, field in model.model_fields.items()]


def _file(name: str, what: str, schema: pa.Schema) -> str:
    rows = [(f"`{field.name}`", f"`{field.type}`") for field in schema]
    return f"### {name}\n\n{what}\n\n" + _table(("column", "type"), rows)


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]] | list[tuple[str, str]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


if __name__ == "__main__":
    print(reference(), end="")
