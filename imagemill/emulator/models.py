"""The models that each vendor serves: excerpts of their published input schemas, in ``schemas``, as data.

A model's ``input`` is a JSON schema of its fields. Beside it stand facts that no schema holds, in pixels:
``sides`` (smallest, largest, multiple), ``sizes`` where there are only some, ``least_pixels``,
``most_pixels``, ``widest`` (the longer side to the shorter), ``rounds_to`` (the multiple that a size is
rounded to); and ``units``, what a picture is charged in units of 1e-10 USD, null where no price is known.
``roles`` says which field is the prompt, the steps, the seed, the format and the number of pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from imagemill.emulator.faults import FaultPlan, UnknownFaultError
from imagemill.emulator.fields import SEEDS, FieldError
from imagemill.emulator.order import Format, Order

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Model", "check_value", "find_model", "models_of"]

_PIXELS_OF_A_WHOLE = 2**20  # 1024 x 1024 is one, 1920 x 1080 two: fal.ai/models/fal-ai/flux-2-flex/llms.txt
_PIXELS_OF_A_TILE = 512 * 512
_FORMATS: dict[str, Format] = {
    "png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp",
}  # fmt: skip
_KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,), "number": (int, float), "boolean": (bool,), "string": (str,), "array": (list,),
    "object": (dict,),
}  # fmt: skip
_USUAL_STEPS = 4


@dataclass(frozen=True)
class Model:
    """One model at one vendor: what its document says."""

    vendor: str
    name: str
    facts: Mapping[str, Any]
    roles: Mapping[str, str]

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the model's input."""
        schema: dict[str, Any] = self.facts["input"]
        return schema

    def checked(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that the model knows, with the defaults of those that are not given.

        Raises:
            FieldError: A field that it needs is missing, or one has a value that it does not take.
        """
        found = {}
        for name, rule in self.schema["properties"].items():
            value = fields.get(name)
            if value is None and name in self.schema["required"]:
                message = "Field required"
                raise FieldError(name, message, kind="missing")
            if value is not None:
                check_value(name, value, rule)
            elif "default" not in rule:
                continue
            found[name] = rule.get("default") if value is None else value
        return found

    def order(self, fields: Mapping[str, Any], drawn_seed: int, size: tuple[int, int] | None = None) -> Order:
        """Return the order that a request's fields stand for; `drawn_seed` counts where they name no seed.

        `size` is in pixels, by default that of the fields `width` and `height`.

        Raises:
            FieldError: A field cannot be used.
        """
        found = self.checked(fields)
        prompt = found[self.roles["prompt"]]
        if not prompt.strip():
            message = "The prompt must not be blank."
            raise FieldError(self.roles["prompt"], message, kind="string_too_short")
        try:
            FaultPlan.check(prompt)
        except UnknownFaultError as unknown:
            message = f"The emulator has no fault {unknown}."
            raise FieldError(self.roles["prompt"], message) from unknown
        width, height = size or (found["width"], found["height"])
        self.check_size(width, height)
        seed = found.get(self.roles.get("seed", ""))
        if seed is not None and seed not in SEEDS:
            message = f"The seed must be from {SEEDS[0]} to {SEEDS[-1]}."
            raise FieldError(self.roles["seed"], message)
        image_format = found.get(self.roles.get("format", ""), "jpeg")
        return Order(
            provider=self.vendor,
            model=self.name,
            prompt=prompt,
            width=self._rounded(width),
            height=self._rounded(height),
            steps=found.get(self.roles.get("steps", ""), _USUAL_STEPS),
            seed=seed,
            drawn_seed=drawn_seed if seed is None else seed,
            format=_FORMATS[image_format.lower()],
            count=found.get(self.roles.get("count", ""), 1),
        )

    def check_size(self, width: int, height: int, name: str = "width") -> None:
        """Check a size, in pixels, by what the schema does not say.

        Raises:
            FieldError: The model does not make it.
        """
        facts = self.facts
        smallest, largest, multiple = facts.get("sides", (1, width + height, 1))
        fits = all(smallest <= side <= largest and side % multiple == 0 for side in (width, height))
        fits = fits and facts.get("least_pixels", 0) <= width * height <= facts.get("most_pixels", 2**62)
        fits = fits and max(width, height) <= facts.get("widest", 2**62) * min(width, height)
        if "sizes" in facts:
            fits = f"{width}x{height}" in facts["sizes"]
        if not fits:
            message = f"{width} x {height} pixels is not a size of {self.name}."
            raise FieldError(name, message, kind="value_error")

    def units(self, width: int, height: int, steps: int) -> int:
        """Return the price of a picture in units of 1e-10 USD; 0 where no price is known."""
        units: dict[str, int] = self.facts["units"] or {}
        pixels = width * height
        usual = units.get("usual_steps", 0)
        amount = pixels * units.get("pixel", 0)
        if usual:
            amount = amount * (steps if units.get("fewer_steps_cost_less") else max(steps, usual)) // usual
        amount += units.get("image", 0) + steps * units.get("step", 0)
        amount += -(-pixels // _PIXELS_OF_A_TILE) * units.get("tile", 0)
        further = -(-pixels // _PIXELS_OF_A_WHOLE) - 1
        return amount + units.get("megapixel", 0) + further * units.get("further", 0)

    def token_units(self, text_tokens: int, image_tokens: int) -> int:
        """Return the price of tokens read and made, in units of 1e-10 USD; 0 where it is not known."""
        units: dict[str, int] = self.facts["units"] or {}
        return text_tokens * units.get("text_token", 0) + image_tokens * units.get("image_token", 0)

    def _rounded(self, side: int) -> int:
        to: int = self.facts.get("rounds_to", 1)
        return max(to, round(side / to) * to)


@cache
def models_of(vendor: str) -> Mapping[str, Model]:
    """Return the models of a vendor by name."""
    text = files("imagemill.emulator").joinpath("schemas", f"{vendor}.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return {
        name: Model(vendor, name, facts, facts.get("roles", document["roles"]))
        for name, facts in document["models"].items()
    }


def find_model(vendor: str, name: object) -> Model | None:
    """Return a model of a vendor; None where it has none of this name."""
    return models_of(vendor).get(name) if isinstance(name, str) else None


def check_value(name: str, value: object, rule: Mapping[str, Any]) -> None:
    """Check a value by the rule that a schema has for it.

    Raises:
        FieldError: It is not of the type, out of range, or none of the choices.
    """
    kind = rule.get("type")
    right = kind is None or isinstance(value, _KINDS[kind])
    if not right or (isinstance(value, bool) and kind in {"integer", "number"}):
        message = f"Input should be a valid {kind}"
        raise FieldError(name, message, kind=f"{'int' if kind == 'integer' else kind}_type")
    if "enum" in rule and value not in rule["enum"]:
        message = f"Input should be one of {', '.join(map(str, rule['enum']))}"
        raise FieldError(name, message, kind="enum")
    if isinstance(value, str):
        if not rule.get("minLength", 0) <= len(value) <= rule.get("maxLength", len(value)):
            message = f"Input should have from {rule.get('minLength', 0)} to {rule['maxLength']} characters"
            raise FieldError(name, message, kind="string_too_long")
        return
    if not isinstance(value, int | float):
        return
    for limit, words, wrong, past in (
        ("minimum", "greater than or equal to", "greater_than_equal", value < rule.get("minimum", value)),
        ("maximum", "less than or equal to", "less_than_equal", value > rule.get("maximum", value)),
        ("multipleOf", "a multiple of", "multiple_of", value % rule.get("multipleOf", 1) != 0),
    ):
        if past and limit in rule:
            message = f"Input should be {words} {rule[limit]}"
            raise FieldError(name, message, kind=wrong)
