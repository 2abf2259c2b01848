"""Generates docs/reference.md from the code, so that the two cannot drift apart.

python docs/reference.py > docs/reference.md
"""

from __future__ import annotations

import pyarrow as pa
from pydantic import BaseModel

from imagemill.blocks.apis import PROVIDERS
from imagemill.catalog.plan import REJECTED_SCHEMA
from imagemill.cli.options import GROUPS, OPTIONS
from imagemill.errors import RETRY_RULES
from imagemill.models.listing import VENDORS, listed_models
from imagemill.reports.metrics import METRICS_SCHEMA
from imagemill.runs.reconciliation import RECONCILIATION_SCHEMA
from imagemill.runs.records import FAILED_SCHEMA, JOBS_SCHEMA, NEIGHBOUR_SCHEMA, QUALITY_SCHEMA
from imagemill.runs.summary import RunSummary

_FILES: tuple[tuple[str, str, pa.Schema], ...] = (
    (
        "jobs.parquet",
        "One row per job. `cost_usd` includes `judge_usd`. Measures and the judge's opinion come last.",
        pa.schema([*JOBS_SCHEMA, *QUALITY_SCHEMA, *NEIGHBOUR_SCHEMA]),
    ),
    ("failed.parquet", "One row per failed job, with its full input and the API's message.", FAILED_SCHEMA),
    (
        "rejected.parquet",
        "One row per catalog row that never became a job. The catalog's other columns follow.",
        REJECTED_SCHEMA,
    ),
    (
        "metrics.parquet",
        "One row per time bucket in which something happened; `bucket_s` is its width.",
        METRICS_SCHEMA,
    ),
    (
        "reconciliation.parquet",
        "Written by `imagemill reconcile`: one row per request that the run booked or the vendor charged.",
        RECONCILIATION_SCHEMA,
    ),
)

_CONFIRMED = (
    "Confirmed: the vendor's own document was seen; the others are from programs that call it. `imagemill"
    " models NAME` shows all about one model, with the sources of its facts and of its price."
)

_LISTING = """\
```
images/<key[:2]>/<key>.png            the images: one object per picture, written once
images/<key[:2]>/<key>.2.png          the same picture made anew; <key>.2.rejected if that was rejected
catalog/<id>.png                      with --copies: one copy per row; variants in catalog/variant-<n>/
manifest.parquet                      the current catalog: every row with its key, URI and status
superseded.parquet                    images that left the manifest, and since when; prune deletes them
runs/<run_id>/jobs.parquet            one row per job: status, attempts, latency, cost, times
runs/<run_id>/failed.parquet          failed jobs, with their full input and the API's message
runs/<run_id>/rejected.parquet        rows that never became jobs, with the reason
runs/<run_id>/prune.parquet           with prune: what it deleted or will delete, when, and how it went
runs/<run_id>/catalog.parquet         the DataFrame that the run was called with, where it was one
runs/<run_id>/metrics.parquet         throughput, error rate, latency and cost over time
runs/<run_id>/reconciliation.parquet  what was booked and what was charged, written by imagemill reconcile
runs/<run_id>/log.jsonl               one line per job event
runs/<run_id>/parts/<part>.jsonl      the log of a preview, or of an unfinished run, part by part
runs/<run_id>/report.html             the run's report, one self-contained file
runs/<run_id>/review.html             its suspect pictures, written by imagemill review
runs/<run_id>/preview.html            a preview: some of its pictures, and the cost of the whole
runs/<run_id>/summary.json            what the run printed at its end
runs/<run_id>/run.json, plan.parquet  what another machine needs to resume the run
runs/<run_id>/model.json              what the vendor published of the model before the run (fal, Replicate)
metrics/run_id=<run_id>/run.parquet   one row per run; the folder reads as one table
dashboard.html                        all runs, written by imagemill dashboard
dashboard.json                        its numbers, and which alerts were sent; only with PREFECT_API_URL
```"""

_KEY = """\
The key is a digest of everything that determines the picture: API and model, prompt, size, steps, seed,
format, further fields (`--param`), and the negative prompt where the model uses one. Rows with equal keys
share one job, one image and one payment."""

_MANIFEST = """\
One row per picture that the catalog asks for, and per rejected row: `id`, `prompt`, `negative_prompt`,
`width`, `height`, `seed`, `steps`, `key`, `status`, `uri`, `copy_uri`, `error_code` and `variant`, then the
catalog's [other columns](catalogs.md#all-other-columns) (as `catalog_NAME` where the name is taken).
`status` is `done`, `failed`, `pending`, `rejected` or `retired`."""

_RUN = """\
One row per run: the fields of [the summary](#the-summary) except `run_id`, which is in the path, with
`errors_CLASS` in place of `errors`, without `rejections`, `refreshed`, `columns`, `carried`, `notes`,
`s3_endpoint_url` and `s3_bucket_block`; `started_at`, `ended_at`, `catalog`, `provider`, `model` and
`output`; and
`p5_NAME`, `p50_NAME` and `p95_NAME` of the measures `sharpness`, `contrast`, `brightness`, `colourfulness`
and `flat`."""


def reference() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Generated from the code by `python docs/reference.py`; a test checks that it is up to date.",
        "## Settings",
        "Python and Prefect take settings as `group={name: value}`, the command as options.",
        *[_settings(group, model) for group, model in GROUPS.items()],
        "## Image APIs",
        _apis(),
        "Each vendor is a Prefect block type; `api.block` takes the slug and the name of a saved block.",
        "## Models",
        _CONFIRMED,
        _models(),
        "## What happens to an error",
        _errors(),
        "## The summary",
        _table(("field", "meaning"), [(f"`{n}`", d) for n, d in _described(RunSummary)]),
        "## Files",
        "Below the output prefix:",
        _LISTING,
        _KEY,
        *[_file(*file) for file in _FILES],
        "### manifest.parquet",
        _MANIFEST,
        "### run.parquet",
        _RUN,
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
        profile = listed_models(name)[api.default_model]
        rows.append(
            (
                f"`{name}`",
                f"`{api.default_model}`",
                f"`{api.key_variable}`",
                f"`{api.get_block_type_slug()}`",
                profile.sizes,
                profile.steps.highest if profile.steps.sent else "not sent",
            )
        )
    return _table(
        ("provider", "default model", "key variable", "block", "sizes in pixels", "most steps"), rows
    )


def _models() -> str:
    rows = [
        (
            f"`{vendor}`",
            f"`{profile.name}`",
            profile.title,
            profile.sizes,
            profile.price or "unknown",
            profile.confirmed_in_words,
            profile.noted,
        )
        for vendor in VENDORS
        for profile in listed_models(vendor).values()
    ]
    return _table(("provider", "model", "name", "sizes in pixels", "price", "confirmed", "noted"), rows)


def _errors() -> str:
    rows = []
    for error_class, rule in RETRY_RULES.items():
        wait = f"{rule.base_s:g} s, doubling, with jitter" if rule.jitter else f"{rule.base_s:g} s"
        rows.append((f"`{error_class}`", rule.retries, wait if rule.retries else "", rule.outcome.value))
    return _table(("class", "retries", "wait", "outcome"), rows)


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
