"""What several routes make together: the models of a family, as one for the plan of a run."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cached_property
from typing import NamedTuple, TypeAlias

from imagemill.blocks.apis import ImageApi
from imagemill.errors import InputError
from imagemill.models.profile import Profile
from imagemill.settings import RouteSettings

_NOT_OF_A_NAME = re.compile(r"[^a-z0-9.]+")


class Maker(NamedTuple):
    """A route's model: the route's name, its API, and the family that the model is of."""

    name: str
    api: ImageApi
    family: str


class Makers:
    """The models of several routes, which the plan of a run sees as one.

    A picture's key has their family in place of vendor and model, so that it is the same picture whichever
    route makes it. The price of a picture is that of the dearest route that makes it.

    Raises:
        InputError: they are of different families, and ``mix`` does not allow that; or their further fields
            differ, which decide the picture.
    """

    def __init__(self, makers: Sequence[Maker], *, mix: bool = False) -> None:
        self.makers = tuple(makers)
        families = sorted({maker.family for maker in makers})
        if len(families) > 1 and not mix:
            listed = ", ".join(f"{maker.name} makes {maker.family}" for maker in makers)
            raise InputError(
                f"The routes have models of different families: {listed}. Choose models of one family, say"
                " which it is (--route …,family=NAME) if imagemill does not know one of them, or allow it"
                " with --mix-models."
            )
        fields = {maker.api.picture_model.removeprefix(_name_of(maker.api)) for maker in makers}
        if len(fields) > 1:
            raise InputError(
                "The routes send different further fields (extra_fields of a block), so their pictures"
                " differ: set the same for all."
            )
        self.model = "+".join(families)
        self.picture_model = self.model + fields.pop()

    @property
    def provider(self) -> str:
        """The vendors, joined by a plus."""
        return "+".join(dict.fromkeys(maker.api.provider for maker in self.makers))

    @property
    def image_formats(self) -> frozenset[str]:
        """The formats that any of the models makes."""
        return frozenset[str]().union(*(maker.api.image_formats for maker in self.makers))

    @cached_property
    def profile(self) -> Profile:
        """The first model's, with a negative prompt if any of them takes one."""
        first, profiles = self.makers[0].api.profile, [maker.api.profile for maker in self.makers]
        negative = {"negative_prompt": "negative_prompt"} if any(map(_is_negative, profiles)) else {}
        by_params = next((p.price for p in profiles if p.price is not None and p.price.tokens), first.price)
        return replace(first, names={**negative, **first.names}, price=by_params)

    @property
    def usd_per_image(self) -> float | None:
        """The first route's own price."""
        return self.makers[0].api.usd_per_image

    @property
    def usd_per_megapixel(self) -> float | None:
        """The same per megapixel."""
        return self.makers[0].api.usd_per_megapixel

    def price(self, width: int, height: int, steps: int | None = None, params: str = "") -> Decimal | None:
        """What one image costs at most, in USD; None where a price is unknown."""
        makers = [m.api for m in self.makers if steps is None or m.api.refusal(width, height, steps) is None]
        prices = [api.price(width, height, steps, params) for api in makers]
        known = [price for price in prices if price is not None]
        return max(known) if known and len(known) == len(prices) else None

    def price_usd(self, width: int, height: int, steps: int | None = None, params: str = "") -> float:
        """As :meth:`price`, as a float, and 0 where the price is unknown."""
        return float(self.price(width, height, steps, params) or 0)

    @property
    def price_in_words(self) -> str:
        """Each route's price rule; a plan counts with the dearest."""
        words = (f"{maker.name}: {maker.api.price_in_words}" for maker in self.makers)
        return f"at most, of {'; '.join(' '.join(each.split()) for each in words)}"

    def refusal(self, width: int, height: int, steps: int) -> str | None:
        """Why none of them makes this; None where one does."""
        refusals = [maker.api.refusal(width, height, steps) for maker in self.makers]
        return None if None in refusals else refusals[0]


PictureMaker: TypeAlias = ImageApi | Makers
"""What a run's pictures are made by: one API, or several."""


def route_names(routes: Sequence[RouteSettings]) -> list[str]:
    """The routes' names: as given, or their vendors, with a number from the second on.

    Raises:
        InputError: two have the same name.
    """
    given = {route.name for route in routes if route.name}
    names: list[str] = []
    for route in routes:
        name, number = route.name or route.provider, 2
        while route.name is None and (name in names or name in given):
            name, number = f"{route.provider}-{number}", number + 1
        names.append(name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"Two routes are called {twice[0]!r}: give each a name of its own.")
    return names


def makers_of(routes: Sequence[RouteSettings], apis: Sequence[ImageApi], *, mix: bool) -> Makers:
    """What makes the pictures of a run over these routes; each API has the settings of its route.

    Raises:
        InputError: they make different models, and ``mix`` does not allow that.
    """
    named = zip(route_names(routes), routes, apis, strict=True)
    return Makers([Maker(name, api, route.family or family_of(api)) for name, route, api in named], mix=mix)


def makes(
    api: ImageApi,
    *,
    width: int,
    height: int,
    steps: int,
    image_format: str,
    params: str,
    large_seed: bool,
    negative: bool,
) -> bool:
    """Whether an API makes a picture that was planned for several.

    ``large_seed``: its seed is larger than the API takes; ``negative``: a negative prompt is part of its key.
    """
    profile = api.profile
    if image_format not in api.image_formats or large_seed or (negative and not _is_negative(profile)):
        return False
    if api.refusal(width, height, steps) is not None:
        return False
    try:
        return profile.checked(json.loads(params or "{}")) == params
    except ValueError:
        return False


def family_of(api: ImageApi) -> str:
    """The family of an API's model, such as ``flux.1-schnell``: the same at all vendors."""
    profile = api.profile
    known = profile.title.partition(",")[0] if profile.origin == "listed" else api.model.rpartition("/")[2]
    return _NOT_OF_A_NAME.sub("-", known.lower()).strip("-")


def _name_of(api: ImageApi) -> str:
    return f"{api.provider}/{api.model}"


def _is_negative(profile: Profile) -> bool:
    return profile.uses_negative_prompt
