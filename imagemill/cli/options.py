"""The command's options. Their help texts are the descriptions of the settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from pydantic import ValidationError

from imagemill.errors import InputError
from imagemill.settings import GROUPS, OutputSettings, input_error, read_template
from imagemill.store_address import split_password

OPTIONS: tuple[tuple[str, str, str, str], ...] = (
    # option, metavar, group of settings, field
    ("--provider", "NAME", "api", "provider"),
    ("--base-url", "URL", "api", "base_url"),
    ("--model", "NAME", "api", "model"),
    ("--account", "ID", "api", "account"),
    ("--usd-per-image", "USD", "api", "usd_per_image"),
    ("--usd-per-megapixel", "USD", "api", "usd_per_megapixel"),
    ("--api-block", "NAME", "api", "block"),
    ("--request-timeout", "S", "api", "request_timeout_s"),
    ("--queue-timeout", "S", "api", "queue_timeout_s"),
    ("--image-host", "HOST", "api", "image_hosts"),
    ("--output", "s3://BUCKET/PREFIX", "output", "uri"),
    ("--s3-endpoint-url", "URL", "output", "s3_endpoint_url"),
    ("--s3-bucket-block", "NAME", "output", "s3_bucket_block"),
    ("--copies", "", "output", "copies"),
    ("--replace-manifest", "", "output", "replace_manifest"),
    ("--merge-manifest", "", "output", "merge_manifest"),
    ("--store", "STORE", "execution", "store"),
    ("--run-id", "ID", "execution", "run_id"),
    ("--keep-plan", "", "execution", "keep_plan"),
    ("--shard-size", "N", "execution", "shard_size"),
    ("--workers", "N", "execution", "workers"),
    ("--task-runner", "threads|dask", "execution", "task_runner"),
    ("--scheduler", "ADDRESS", "execution", "scheduler"),
    ("--grace", "S", "execution", "grace_s"),
    ("--give-up", "ROUTE", "execution", "give_up"),
    ("--column", "NAME=COLUMN", "catalog", "columns"),
    ("--prompt-template", "TEXT", "catalog", "prompt_template"),
    ("--negative-prompt-template", "TEXT", "catalog", "negative_prompt_template"),
    ("--variations", "N", "catalog", "variations"),
    ("--vary", "NAME=A,B", "catalog", "vary"),
    ("--limit", "ROWS", "catalog", "limit"),
    ("--carry", "COLUMN", "catalog", "carry"),
    ("--width", "N", "picture", "width"),
    ("--height", "N", "picture", "height"),
    ("--steps", "N", "picture", "steps"),
    ("--param", "NAME=VALUE", "picture", "params"),
    ("--mix-models", "", "picture", "mix_models"),
    ("--seed-policy", "POLICY", "picture", "seed_policy"),
    ("--format", "FORMAT", "picture", "format"),
    ("--quality", "auto|all|off", "quality", "measure"),
    ("--on-suspect", "keep|fail|retry", "quality", "on_suspect"),
    ("--judge", "MODULE:FUNCTION|URL", "quality", "judge"),
    ("--judge-model", "NAME", "quality", "judge_model"),
    ("--judge-question", "TEXT", "quality", "judge_question"),
    ("--judge-threshold", "SCORE", "quality", "judge_threshold"),
    ("--judge-timeout", "S", "quality", "judge_timeout_s"),
    ("--judge-batch", "N", "quality", "judge_batch"),
    ("--judge-concurrency", "N", "quality", "judge_concurrency"),
    ("--judge-usd-per-million-input-tokens", "USD", "quality", "judge_usd_per_million_input_tokens"),
    ("--judge-usd-per-million-output-tokens", "USD", "quality", "judge_usd_per_million_output_tokens"),
    ("--concurrency", "auto|N", "limits", "concurrency"),
    ("--max-images-per-minute", "N", "limits", "max_images_per_minute"),
    ("--max-cost", "USD", "limits", "max_cost_usd"),
    ("--route-policy", "fastest|cheapest|failover", "limits", "route_policy"),
    ("--finish-by", "TIME", "limits", "finish_by"),
    ("--max-hours", "HOURS", "limits", "max_hours"),
    ("--outage-share", "SHARE", "limits", "outage_share"),
    ("--outage-timeout", "S", "limits", "outage_timeout_s"),
    ("--setup-fault-share", "SHARE", "limits", "setup_fault_share"),
    ("--max-retired-share", "SHARE", "refresh", "max_retired_share"),
    ("--allow-loss", "", "refresh", "allow_loss"),
    ("--prune-after", "DAYS", "refresh", "prune_after_days"),
    ("--only-path", "PATTERN", "refresh", "only_paths"),
    ("--regression-share", "SHARE", "regressions", "share"),
    ("--images", "N", "budget", "images"),
    ("--seconds", "S", "budget", "seconds"),
    ("--width", "N", "budget", "width"),
    ("--height", "N", "budget", "height"),
)

ROUTE = "--route"
"""The option that names one of several accounts."""

RUN_GROUPS = ("catalog", "api", "output", "picture", "quality", "limits", "execution")
"""The groups of settings of a run."""

CALIBRATE_GROUPS = ("api", "budget")
"""The groups of settings of a calibration."""

BUCKET_OPTIONS = ("--output", "--s3-endpoint-url", "--s3-bucket-block")
"""The options that locate a bucket."""

CHECK_OPTIONS = (
    *("--provider", "--base-url", "--model", "--account", "--api-block", "--image-host", "--request-timeout"),
    *("--usd-per-image", "--usd-per-megapixel"),
    *BUCKET_OPTIONS,
    *("--store", "--width", "--height", "--steps", "--format", "--judge", "--judge-model"),
)
"""What a check needs to know of a run."""

RESUME_OPTIONS = (
    "--concurrency",
    "--max-images-per-minute",
    "--max-cost",
    "--route-policy",
    "--finish-by",
    "--max-hours",
    "--outage-share",
    "--outage-timeout",
    "--setup-fault-share",
    "--store",
    "--task-runner",
    "--scheduler",
    "--grace",
    "--give-up",
    "--request-timeout",
    "--queue-timeout",
)
"""The options that a resume can override."""


_REPEATED = ("--image-host", "--only-path", "--carry", "--give-up")
"""Options that may be given several times."""

_PAIRS = {
    "--column": "prompt=text",
    "--param": "guidance_scale=3.5",
    "--vary": "size=1024x1024,768x1344",
}
"""Options that may be given several times, each with a name and a value; an example of each."""

_TEMPLATES = ("--prompt-template", "--negative-prompt-template")


def add_options(
    parser: argparse.ArgumentParser,
    only: Sequence[str] | None = None,
    groups: Sequence[str] = RUN_GROUPS,
    *,
    routes: bool = False,
) -> None:
    """Add the options of these groups of settings to a parser, or only some of them, and perhaps --route."""
    for option, metavar, group, name in OPTIONS:
        if group not in groups or (only is not None and option not in only):
            continue
        field = GROUPS[group].model_fields[name]
        help_text = (field.description or "").replace("%", "%%")
        kind: dict[str, Any] = {"metavar": metavar}
        if not metavar:
            kind = {"action": "store_true", "default": None}
        elif option in _PAIRS:
            kind |= {"action": "append"}
            help_text = f"{help_text} Can be repeated, as in {option} {_PAIRS[option]}."
        elif option in _REPEATED:
            kind |= {"action": "append"}
            help_text = f"{help_text} Can be repeated."
        elif field.default is not None and not field.is_required():
            help_text = f"{help_text} Default: {field.default}."
        parser.add_argument(option, dest=f"{group}.{name}", help=help_text, **kind)
    if routes or (only is None and "limits" in groups):
        parser.add_argument(
            ROUTE,
            dest="routes",
            action="append",
            metavar="VENDOR[,NAME=VALUE]",
            help="Buy from several accounts in one run: repeat it, once per account, with the vendor and what"
            " differs from its defaults, as in fal,block=imagemill-fal/second. The names are the settings of"
            " api, and name, family, concurrency, max_images_per_minute and max_cost_usd.",
        )


def output_of(arguments: argparse.Namespace) -> OutputSettings | None:
    """The output that ``--output`` names; None where it was not given.

    Raises:
        InputError: a value is invalid.
    """
    if getattr(arguments, "output.uri") is None:
        return None
    output: OutputSettings = settings_of(arguments, "output")
    return output


def given_options(arguments: argparse.Namespace, only: Sequence[str] | None = None) -> list[str]:
    """The options of settings as they were given, or only some of them, to repeat in another command."""
    given: list[str] = []
    for option, _, group, name in OPTIONS:
        value = getattr(arguments, f"{group}.{name}", None)
        if value is None or (only is not None and option not in only):
            continue
        values = value if isinstance(value, list) else [value]
        # The address of a store may hold a password, which is shown nowhere.
        given += [f"{option} {quote(split_password(each)[0])}" for each in values]
    return given


def settings_of(arguments: argparse.Namespace, group: str, **given: object) -> Any:  # noqa: ANN401
    """One group of settings, from the command line.

    Raises:
        InputError: a value is invalid; the message says which, and why.
    """
    values = dict(given)
    for option, metavar, owner, name in OPTIONS:
        value = getattr(arguments, f"{group}.{name}", None) if owner == group else None
        if value is None:
            continue
        if option in _PAIRS:
            given, value = value, pairs_of(option, metavar, value)
            if option == "--vary" and len(value) < len(given):
                raise InputError(
                    "--vary is given twice for one name: give all its values at once, as in A,B."
                )
        elif option == "--concurrency" and value != "auto":
            value = _whole(option, value)
        elif option in _TEMPLATES and value.startswith("@"):
            value = _template(option, value)
        values[name] = value
    try:
        return GROUPS[group](**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        for option, _, owner, name in OPTIONS:
            if owner == group and first["loc"] and first["loc"][0] == name:
                message = str(first["msg"]).removeprefix("Value error, ")
                raise InputError(f"{option} {first['input']!r}: {message}.") from error
        raise input_error(error) from error


def pairs_of(option: str, metavar: str, given: Sequence[str]) -> dict[str, str]:
    """Names and values that an option was given, each as NAME=VALUE.

    Raises:
        InputError: one is of another form.
    """
    return dict(_pair(option, metavar, text) for text in given)


def _pair(option: str, metavar: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not (value or option == "--column"):
        raise InputError(f"{option} {text!r} is not of the form {metavar}, as in {_PAIRS[option]}.")
    return name, value


def _template(option: str, given: str) -> str:
    try:
        return read_template(Path(given[1:]).expanduser())
    except ValueError as error:
        raise InputError(f"{option} {given!r}: {error}.") from error


def _whole(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option} {text!r} is neither auto nor a whole number.") from None
