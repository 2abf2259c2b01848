"""The command ``imagemill models``: the known models, what they take and cost, and the sources."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import orjson
from rich.table import Table
from rich.text import Text

from imagemill.blocks.apis import PROVIDERS, ImageApi
from imagemill.blocks.apis.learning import learn_published
from imagemill.cli.exit_codes import DONE
from imagemill.cli.terminal import say, stdout
from imagemill.errors import InputError
from imagemill.models.listing import VENDORS, listed_models
from imagemill.models.price_rules import Price
from imagemill.models.profile import Profile
from imagemill.models.published import PUBLISHING
from imagemill.usd import in_words


def show_models(arguments: argparse.Namespace) -> int:
    """Print the listed models, or everything about one; the exit code.

    Raises:
        InputError: the model is unknown, and no vendor was given that publishes schemas.
    """
    vendor, name = arguments.provider, arguments.name
    if vendor is None and name in VENDORS:
        vendor, name = name, None
    if vendor is not None and vendor not in VENDORS:
        raise InputError(f"There is no provider {vendor!r}. Choose one of {', '.join(VENDORS)}.")
    profiles = [
        profile
        for each in ([vendor] if vendor else VENDORS)
        for profile in listed_models(each).values()
        if name is None or _is_meant(profile, name)
    ]
    exact = [profile for profile in profiles if profile.name == name]
    found = exact or profiles
    price: Price | None = None
    if not found:
        api = _asked(vendor, name, arguments.base_url)
        found, price = [api.profile], api.published_price
    if arguments.json:
        documents = [_document(profile, price) for profile in found]
        print(orjson.dumps(documents[0] if name and len(documents) == 1 else documents).decode())
    elif name and len(found) == 1:
        _show_one(found[0], price)
    else:
        _show_many(found)
    return DONE


def _is_meant(profile: Profile, name: str) -> bool:
    return name.lower() in profile.name.lower() or _bare(name) in _bare(profile.title)


def _bare(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _asked(vendor: str | None, name: str, base_url: str | None) -> ImageApi:
    """An API for a model that is not listed, with what its vendor publishes about it."""
    if vendor is None or vendor not in PUBLISHING:
        where = f" at {vendor}" if vendor else ""
        raise InputError(
            f"No model {name!r} is listed{where}. For models of fal and Replicate, add --provider: they"
            " publish what their models take."
        )
    kind = PROVIDERS[vendor]
    key = os.environ.get(kind.key_variable, "").strip()
    api = kind(api_key=key or "none", model=name, base_url=base_url or "")
    learn_published(api, keyed=bool(key))
    if api.profile.origin != "published":
        raise InputError(
            f"No model {name!r} is listed. To ask {vendor} about it, set {kind.key_variable} to your"
            " account's key."
        )
    return api


def _show_many(profiles: Iterable[Profile]) -> None:
    table = Table(pad_edge=False, box=None)
    table.add_column("provider", style="dim", no_wrap=True)
    table.add_column("model", overflow="fold")
    table.add_column("USD at 1024²", justify="right", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("confirmed", no_wrap=True)
    for profile in profiles:
        usd = profile.price_of(1024, 1024, profile.steps.default)
        table.add_row(
            profile.vendor,
            Text.assemble(profile.title, "\n", (profile.name, "dim")),
            _short(usd) if usd is not None else "by tokens" if profile.price else "unknown",
            str(profile.steps.default) if profile.steps.sent else "-",
            profile.confirmed_in_words,
        )
    stdout.print(table)
    say("Prices are list prices for one image at the model's usual steps.")
    say("confirmed: taken from the vendor's own documents; otherwise from programs that call it.")
    say("Details: imagemill models NAME. Any other model of fal or Replicate: add --provider fal.")


def _short(usd: Decimal) -> str:
    return in_words(usd.quantize(Decimal("1e-6"))) if usd else "0"


def _show_one(profile: Profile, price: Price | None) -> None:
    table = Table(
        title=Text(f"{profile.title} at {profile.vendor}"),
        title_justify="left",
        show_header=False,
        pad_edge=False,
        box=None,
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(profile, price):
        table.add_row(name, Text(value))
    stdout.print(table)


def _facts(profile: Profile, price: Price | None) -> list[tuple[str, str]]:
    steps, names = profile.steps, profile.names
    charged = price or profile.price
    facts = [
        ("model", profile.name),
        ("sizes", str(profile.sizes)),
        (
            "steps",
            f"{steps.lowest} to {steps.highest}, usually {steps.default}" if steps.sent else "not sent",
        ),
        ("seed", "sent" if "seed" in names else "not sent"),
        ("negative prompt", "sent" if profile.uses_negative_prompt else "not sent, not part of the key"),
        ("formats", ", ".join(sorted(profile.formats))),
        ("price", str(charged) if charged else "unknown: set your own with --usd-per-image"),
    ]
    if charged:
        facts.append(("price from", f"{charged.source}, {charged.noted}, {_seen(charged.confirmed)}"))
    for name, param in sorted(profile.params.items()):
        default = "" if param.default is None else f", default {str(param.default).lower()}"
        facts.append((f"--param {name}", f"{param}{default}"))
    if profile.open:
        facts.append(("--param …", "any other field is passed through unchecked"))
    facts.append(("source", profile.source))
    facts.append(("noted", f"{profile.noted}, {_seen(profile.confirmed)}"))
    if profile.note:
        facts.append(("note", profile.note))
    return facts


def _seen(confirmed: bool) -> str:  # noqa: FBT001
    return "confirmed by the vendor's own document" if confirmed else "not confirmed"


def _document(profile: Profile, price: Price | None) -> dict[str, Any]:
    """A profile as JSON; money as text, which has all its digits."""
    steps, sizes = profile.steps, profile.sizes
    charged = price or profile.price
    return {
        "provider": profile.vendor,
        "model": profile.name,
        "title": profile.title,
        "sizes": {
            "smallest": sizes.smallest,
            "largest": sizes.largest,
            "multiple": sizes.multiple,
            "most_pixels": sizes.most_pixels,
            "listed": [list(size) for size in sizes.listed] or None,
            "exact": sizes.exact,
        },
        "steps": {"lowest": steps.lowest, "highest": steps.highest, "default": steps.default}
        if steps.sent
        else None,
        "seed": "seed" in profile.names,
        "negative_prompt": profile.uses_negative_prompt,
        "formats": sorted(profile.formats),
        "fields": dict(profile.names),
        "params": {
            name: {
                "type": param.kind,
                "minimum": param.lowest,
                "maximum": param.highest,
                "choices": list(param.choices) or None,
                "default": param.default,
            }
            for name, param in sorted(profile.params.items())
        },
        "other_params": profile.open,
        "price": charged
        and {
            "rule": str(charged),
            "usd": in_words(charged.usd),
            "unit": charged.unit,
            "source": charged.source,
            "noted": charged.noted.isoformat(),
            "confirmed": charged.confirmed,
        },
        "source": profile.source,
        "noted": profile.noted and profile.noted.isoformat(),
        "confirmed": profile.confirmed,
        "origin": profile.origin,
        "note": profile.note,
    }
