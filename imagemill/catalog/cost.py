"""What a catalog costs by its model's price rule, and what would make it cheaper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from imagemill.catalog.counts import PlanCounts
from imagemill.catalog.makers import PictureMaker
from imagemill.errors import InputError
from imagemill.formatting import counted, money
from imagemill.settings import LimitSettings

SAY_YOUR_PRICE = "Set your own with --usd-per-image or --usd-per-megapixel, or in a route as usd_per_image"
"""What to do if a price is unknown."""


DEDUPLICATION = "deduplication"
"""The lever that is pulled already."""


class Picture(NamedTuple):
    """What determines the price of a picture; ``params`` only if the price depends on them."""

    width: int
    height: int
    steps: int
    params: str = ""


@dataclass(frozen=True, slots=True)
class Lever:
    """A way to spend less: the change, and the catalog's cost and savings with it, in USD.

    ``cost_usd`` and ``saves_usd`` are None if the price is unknown.
    """

    name: str
    change: str
    cost_usd: float | None
    saves_usd: float | None

    def __str__(self) -> str:
        name = self.name.capitalize()
        verb = "saves" if self.name == DEDUPLICATION else "would save"
        if self.saves_usd is None:
            return f"{name}: {self.change}."
        saves = "nothing" if not self.saves_usd else money(self.saves_usd)
        return f"{name} {verb} {saves}: {self.change}."


def refuse_guesses(counts: PlanCounts, limits: LimitSettings) -> None:
    """Reject a cost limit if the price of some images is unknown.

    Raises:
        InputError: there is a limit, and the price of some images is unknown.
    """
    if not counts.unpriced:
        return
    given = {"--max-cost": limits.max_cost_usd, "approve_above_usd": limits.approve_above_usd}
    for name, usd in given.items():
        if usd is not None:
            raise InputError(
                f"{name} needs a price, but that of {counts.unpriced:,} images is unknown. {SAY_YOUR_PRICE}."
            )


def total_of(api: PictureMaker, pictures: Mapping[Picture, int]) -> tuple[Decimal, int]:
    """What these pictures cost, in USD, and how many of them have no known price."""
    total, unpriced = Decimal(0), 0
    for picture, count in pictures.items():
        price = api.price(*picture)
        if price is None:
            unpriced += count
        else:
            total += price * count
    return total, unpriced


def levers(api: PictureMaker, made: Mapping[Picture, int], repeated: Mapping[Picture, int]) -> list[Lever]:
    """Deduplication, which is done already; smaller pictures; fewer steps."""
    if not made:
        return []
    cost, unpriced = total_of(api, made)
    saved, unknown = total_of(api, repeated)
    rows = sum(repeated.values())
    known = not unpriced and not unknown
    found = [
        Lever(
            DEDUPLICATION,
            f"already done: {counted(rows, 'row shares', 'rows share')} a picture with another row"
            if rows
            else "no two rows share a picture",
            float(cost) if known else None,
            float(saved) if known else None,
        )
    ]
    for name, change, instead in (_smaller(api, made), _fewer_steps(api, made)):
        if instead is None or unpriced:
            found.append(Lever(name, change, None, None))
            continue
        then, unknown = total_of(api, instead)
        priced = not unknown
        found.append(
            Lever(name, change, float(then) if priced else None, float(cost - then) if priced else None)
        )
    return found


def _smaller(api: PictureMaker, made: Mapping[Picture, int]) -> tuple[str, str, dict[Picture, int] | None]:
    """Each picture at half its sides, or as near to that as the model goes."""
    instead: dict[Picture, int] = {}
    changed: dict[tuple[int, int], tuple[int, int]] = {}
    for picture, count in made.items():
        width, height = _half(api, picture)
        if (width, height) != (picture.width, picture.height):
            changed[picture.width, picture.height] = (width, height)
        smaller = picture._replace(width=width, height=height)
        instead[smaller] = instead.get(smaller, 0) + count
    if not changed:
        return "smaller pictures", "the model does not make smaller ones", None
    (width, height), (less_wide, less_high) = max(changed.items())
    change = f"{less_wide} x {less_high} instead of {width} x {height}"
    return (
        "smaller pictures",
        change + (", and similarly for other sizes" if len(changed) > 1 else ""),
        instead,
    )


def _half(api: PictureMaker, picture: Picture) -> tuple[int, int]:
    """The size at half the sides, or the nearest above it of the same shape, that the model takes."""
    sizes = api.profile.sizes
    width, height, steps, _ = picture
    if sizes.listed:
        smaller = [size for size in sizes.listed if size[0] * height == size[1] * width and size[0] < width]
        return max(smaller, default=(width, height))
    for part in (0.5, 0.625, 0.75, 0.875):
        step = sizes.multiple
        less = (round(width * part / step) * step, round(height * part / step) * step)
        if api.refusal(*less, steps) is None:
            return less
    return width, height


def _fewer_steps(
    api: PictureMaker, made: Mapping[Picture, int]
) -> tuple[str, str, dict[Picture, int] | None]:
    """Each picture with half its steps; None where steps cost nothing."""
    name, own = "fewer steps", api.usd_per_image is not None or api.usd_per_megapixel is not None
    steps, price = api.profile.steps, api.profile.price
    if not steps.sent:
        return name, "the model chooses its steps", None
    most = max(picture.steps for picture in made)
    fewer = max(steps.lowest, most // 2)
    if fewer == most:
        return name, "the model needs at least these", None
    if own or price is None or not price.depends_on_steps:
        return name, f"{fewer} instead of {most}, which does not change the price", dict(made)
    instead: dict[Picture, int] = {}
    for picture, count in made.items():
        less = picture._replace(steps=max(steps.lowest, picture.steps // 2))
        instead[less] = instead.get(less, 0) + count
    change = f"{fewer} instead of {most}"
    if price.default_steps and most <= price.default_steps:
        change += f"; the price does not fall below {price.default_steps} steps"
    return name, change, instead
