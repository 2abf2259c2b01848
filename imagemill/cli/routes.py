"""The option ``--route``: one of several accounts that a run buys from."""

from __future__ import annotations

import argparse

from pydantic import ValidationError

from imagemill.cli.options import OPTIONS, ROUTE, settings_of
from imagemill.errors import InputError
from imagemill.settings import ApiSettings, LimitSettings, RouteSettings, input_error

_SHORT = {
    "max_cost": "max_cost_usd",
    "request_timeout": "request_timeout_s",
    "queue_timeout": "queue_timeout_s",
}
"""Names that the other options have, and those of the settings."""


def apis_of(arguments: argparse.Namespace) -> ApiSettings | list[RouteSettings]:
    """The API or the routes that the command line names.

    Raises:
        InputError: a route is of another form, or the options of a single API are given as well.
    """
    routes: list[str] | None = arguments.routes
    if not routes:
        api: ApiSettings = settings_of(arguments, "api")
        return api
    for option, _, group, name in OPTIONS:
        if group == "api" and getattr(arguments, f"api.{name}", None) is not None:
            raise InputError(
                f"{option} is of a run over one API: with {ROUTE}, write it into the route, as in"
                f" {ROUTE} together,{name}=…"
            )
    return [_route(text) for text in routes]


def changed_apis(
    arguments: argparse.Namespace, known: ApiSettings | list[RouteSettings]
) -> ApiSettings | list[RouteSettings]:
    """The API or the routes of a run, with what a resume changes.

    Raises:
        InputError: the routes of a run cannot be changed so.
    """
    if isinstance(known, list):
        changes = settings_of(arguments, "api").model_dump(exclude_unset=True)
        if "base_url" in changes:
            raise InputError("--base-url cannot be changed in a run over several routes.")
        more = changes.pop("image_hosts", [])
        return [
            route.model_copy(update={**changes, "image_hosts": [*route.image_hosts, *more]})
            for route in known
        ]
    api: ApiSettings = settings_of(arguments, "api", **known.model_dump())
    return api


def limits_to_change(arguments: argparse.Namespace, known: LimitSettings) -> dict[str, object]:
    """The limits of a run, without the deadline that a resume replaces or whose policy it leaves."""
    limits = known.model_dump()
    deadlines = ("finish_by", "max_hours")
    others = getattr(arguments, "limits.route_policy", None) not in {None, "cheapest"}
    if others or any(getattr(arguments, f"limits.{name}", None) is not None for name in deadlines):
        limits |= dict.fromkeys(deadlines)
    return limits


def _route(text: str) -> RouteSettings:
    vendor, *pairs = (part.strip() for part in text.split(","))
    hosts: list[str] = []
    given: dict[str, object] = {"provider": vendor, "image_hosts": hosts}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        name = _SHORT.get(name, name)
        if not separator or name == "provider" or name not in RouteSettings.model_fields:
            known = ", ".join(field for field in RouteSettings.model_fields if field != "provider")
            shown = f"{name}=…" if separator else "…"  # the rest may be a key
            raise InputError(
                f"{ROUTE} {vendor}: {shown!r} is not NAME=VALUE with one of the names {known}. A key belongs"
                " into the vendor's environment variable, or into a block."
            )
        if name == "image_hosts":
            hosts.append(value)
        else:
            given[name] = value
    try:
        return RouteSettings.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{ROUTE} {text!r}: {input_error(error)}") from error
