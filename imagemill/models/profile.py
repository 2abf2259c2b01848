"""A model's profile: the fields it takes, their ranges, its sizes and formats, and what it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from imagemill.models.parameter import PLACEHOLDERS, Param
from imagemill.models.price_rules import Price

Origin: TypeAlias = Literal["listed", "published", "assumed"]
"""Where a profile is from: imagemill's own list, the vendor's published schema, or nowhere: it is guessed."""

SizeForm: TypeAlias = Literal["width and height", "image_size", "custom ratio", "size", "listed", "none"]
"""How a size is sent: two fields; fal's ``image_size``; ``aspect_ratio: custom`` with two fields; OpenAI's
``WIDTHxHEIGHT``; the fields that the list of sizes names; not at all."""

OURS = frozenset(
    {
        "prompt", "positivePrompt", "n", "num_images", "num_outputs", "numberResults", "number_of_images",
        "response_format", "output_format", "outputFormat", "outputType", "sync_mode", "stream",
        "partial_images", "model", "taskUUID", "taskType", "deliveryMethod", "includeCost", "webhook_url",
    }
)  # fmt: skip
"""Fields that imagemill decides itself, whatever the model: how many images, in which form they arrive."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths and heights, in pixels, that a model takes.

    ``most_pixels`` bounds width times height, ``widest`` the ratio of the longer side to the shorter.
    ``listed`` are the only sizes there are, each with the fields that ask for it. ``exact`` is False where
    the model decides the size itself.
    """

    smallest: int = 64
    largest: int = 4096
    multiple: int = 1
    least_pixels: int = 0
    most_pixels: int | None = None
    widest: int | None = None
    listed: Mapping[tuple[int, int], Mapping[str, Any]] = field(default_factory=dict)
    exact: bool = True

    def refusal(self, width: int, height: int, who: str) -> str | None:
        """Why the model would refuse this size; None where it would not. ``who`` names the vendor."""
        if (width, height) in self.listed:
            return None
        if self.listed:
            near = min(self.listed, key=lambda size: (size[0] - width) ** 2 + (size[1] - height) ** 2)
            return f"{who} has no size {width} x {height}; the nearest is {near[0]} x {near[1]}"
        for name, value in (("width", width), ("height", height)):
            if not self.smallest <= value <= self.largest:
                return f"{name} {value} is not between {self.smallest} and {self.largest}"
            if value % self.multiple:
                return f"{name} {value} is not a multiple of {self.multiple}"
        return self._refusal_of_pixels(width, height)

    def _refusal_of_pixels(self, width: int, height: int) -> str | None:
        pixels = width * height
        if self.widest and max(width, height) > self.widest * min(width, height):
            return f"{width} x {height} is longer than {self.widest}:1"
        if pixels < self.least_pixels:
            return f"{width} x {height} has fewer than {self.least_pixels:,} pixels"
        if self.most_pixels is not None and pixels > self.most_pixels:
            return f"{width} x {height} has more than {self.most_pixels:,} pixels"
        return None

    def __str__(self) -> str:
        if self.listed:
            sizes = [f"{width} x {height}" for width, height in self.listed]
            return sizes[0] if len(sizes) == 1 else f"{len(sizes)} sizes, such as {', '.join(sizes[:3])}"
        if not self.exact:
            return "the model's own"
        words = f"{self.smallest} to {self.largest}"
        if self.multiple > 1:
            words += f", multiples of {self.multiple}"
        if self.most_pixels:
            words += f", at most {self.most_pixels / 1e6:.3g} megapixels"
        return words


@dataclass(frozen=True, slots=True)
class Steps:
    """How many steps a model takes. Where they are not ``sent``, they are still part of a picture's key."""

    lowest: int = 1
    highest: int = 50
    default: int = 4
    sent: bool = True

    def refusal(self, steps: int) -> str | None:
        """Why the model would refuse so many; None where it would not."""
        if self.lowest <= steps <= self.highest:
            return None
        if self.lowest == self.highest:
            return f"steps {steps} is not {self.lowest}, the only number that the model takes"
        return f"steps {steps} is not between {self.lowest} and {self.highest}"


@dataclass(frozen=True, slots=True)
class Profile:
    """What one model at one vendor takes and costs.

    ``names`` are the model's names for our fields: prompt, and where it takes them negative_prompt, seed,
    steps and format. ``formats`` maps png, jpeg and webp to the model's words, ``always`` is sent with every
    request. ``params`` are further fields; with ``open`` others are passed on unchecked. ``required`` are
    fields that a request cannot do without and that have no default.
    """

    vendor: str
    name: str
    title: str
    sizes: Sizes = Sizes()
    size_form: SizeForm = "width and height"
    steps: Steps = Steps()
    names: Mapping[str, str] = field(default_factory=lambda: {"prompt": "prompt"})
    formats: Mapping[str, str] = field(default_factory=lambda: {"png": "png", "jpeg": "jpeg"})
    always: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Param] = field(default_factory=dict)
    open: bool = False
    required: tuple[str, ...] = ()
    price: Price | None = None
    noted: date | None = None
    source: str = ""
    confirmed: bool = False
    note: str = ""
    origin: Origin = "listed"

    @property
    def uses_negative_prompt(self) -> bool:
        """Whether a negative prompt is sent, and so part of a picture's key."""
        return "negative_prompt" in self.names

    @property
    def confirmed_in_words(self) -> str:
        """Whether the vendor's own document was seen: yes, no, or for all but the price."""
        if not self.confirmed:
            return "no"
        return "yes" if self.price is None or self.price.confirmed else "not its price"

    def refusal(self, width: int, height: int, steps: int) -> str | None:
        """Why the model would refuse this; None where it would not."""
        who = {"bfl": "Black Forest Labs", "fal": "fal", "openai": "OpenAI"}.get(
            self.vendor, self.vendor.capitalize()
        )
        size = self.sizes.refusal(width, height, who) if self.sizes.exact else None
        return size or self.steps.refusal(steps)

    def checked(self, given: Mapping[str, Any]) -> str:
        """Further fields for a job, typed and checked, as JSON with sorted names; "" for none.

        Raises:
            ValueError: a field is not the model's, or its value is not one that it takes; says which and why.
        """
        found: dict[str, Any] = {}
        for name, value in given.items():
            if value is None or (isinstance(value, float) and math.isnan(value)):
                continue
            known = self.params.get(name)
            if known is None and (reason := self._foreign(name)):
                raise ValueError(reason)
            try:
                found[name] = (known or Param()).value(value)
            except ValueError as error:
                raise ValueError(f"param {name} {str(value)[:60]!r} {error}") from None
        missing = [name for name in self.required if name not in found]
        if missing:
            raise ValueError(
                f"{self.name} needs the field {missing[0]}: set it with --param {missing[0]}=VALUE"
            )
        return json.dumps(found, sort_keys=True, separators=(",", ":")) if found else ""

    def _foreign(self, name: str) -> str | None:
        if name in self.names.values() or name in OURS:
            return f"param {name} is set by imagemill itself"
        if name in {"width", "height", "image_size", "size"} and self.sizes.exact:
            return f"param {name} is set by imagemill itself: use width and height"
        if self.open or name in self.always:
            return None
        listed = ", ".join(sorted(self.params)) or "none"
        return f"param {name} is not a field of {self.name}; its further fields: {listed}"

    def fields(
        self,
        *,
        prompt: str,
        negative_prompt: str | None,
        width: int,
        height: int,
        steps: int,
        seed: int,
        image_format: str,
        params: str = "",
    ) -> dict[str, Any]:
        """The model's own input for a job: what :meth:`checked` made of ``params`` wins over the rest."""
        values: dict[str, Any] = {"prompt": prompt, "seed": seed, "negative_prompt": negative_prompt}
        if self.steps.sent:
            values["steps"] = steps
        values["format"] = self.formats.get(image_format) or None
        found = {theirs: values[ours] for ours, theirs in self.names.items() if values.get(ours) is not None}
        found |= self._size_fields(width, height) | dict(self.always)
        if params:
            job = {"seed": seed, "steps": steps}
            for name, value in json.loads(params).items():
                placeholder = PLACEHOLDERS.get(value) if isinstance(value, str) else None
                found[name] = job[placeholder] if placeholder else value
        return found

    def _size_fields(self, width: int, height: int) -> dict[str, Any]:
        match self.size_form:
            case "width and height":
                return {"width": width, "height": height}
            case "image_size":
                return {"image_size": {"width": width, "height": height}}
            case "custom ratio":
                return {"aspect_ratio": "custom", "width": width, "height": height}
            case "size":
                return {"size": f"{width}x{height}"}
            case "listed":
                return dict(self.sizes.listed.get((width, height), {}))
            case "none":
                return {}

    def price_of(self, width: int, height: int, steps: int | None = None, params: str = "") -> Decimal | None:
        """What one image costs, in USD, by the list price; None where that is not known."""
        return self.price.of(width, height, steps, params) if self.price else None
