"""The bill: what was charged, exactly, in whole units of 1e-10 USD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imagemill.emulator.models import find_model

if TYPE_CHECKING:
    from imagemill.emulator.order import Order

__all__ = ["Bill", "nano_usd", "price", "usd"]

_UNITS_A_USD = 10**10
_UNITS_OF_AN_OWN_SERVER = 30_000_000


def price(order: Order) -> int:
    """Return the price of all pictures of an order, in units of 1e-10 USD, by its model's own rule.

    Servers that speak OpenAI's API and have models of their own charge 0.003 USD a picture.
    """
    model = find_model(order.provider, order.model)
    if model is None:
        return _UNITS_OF_AN_OWN_SERVER * order.count
    if order.tokens:
        return model.token_units(order.text_tokens, order.tokens * order.count)
    return model.units(order.width, order.height, order.steps) * order.count


def nano_usd(order: Order) -> int:
    """Return the price of all pictures of an order, in units of 1e-9 USD."""
    return price(order) // 10


def usd(order: Order) -> float:
    """Return the price of all pictures of an order, in USD."""
    return price(order) / _UNITS_A_USD


class Bill:
    """Counts the pictures charged, by digest of what was asked for, and holds credit back."""

    def __init__(self) -> None:
        """Start with nothing charged."""
        self.images = 0
        self._reserved = 0
        self._units = 0
        self._lines: dict[str, tuple[Order, int, int]] = {}
        self._chat = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}

    def covers(self, images: int, credit: int | None) -> bool:
        """Say whether the credit, in images, covers these beside those in flight."""
        return credit is None or self.images + self._reserved + images <= credit

    def reserve(self, images: int) -> None:
        """Hold credit back for a request in flight."""
        self._reserved += images

    def free(self, images: int) -> None:
        """Give up credit held back."""
        self._reserved -= images

    def charge(self, order: Order) -> None:
        """Charge all pictures of an order."""
        units = price(order)
        self.images += order.count
        self._units += units
        _, count, total = self._lines.get(order.digest, (order, 0, 0))
        self._lines[order.digest] = (order, count + order.count, total + units)

    def charge_chat(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Charge one answer of the chat model, in tokens: their price is each model's own."""
        counted = {"requests": 1, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        for name, count in counted.items():
            self._chat[name] += count

    def as_dict(self) -> dict[str, Any]:
        """Return the bill as plain values: images, USD, one line per digest, and the chat model's tokens."""
        lines = {
            digest: {
                "count": count,
                "prompt": order.prompt,
                "seed": order.seed,
                "width": order.width,
                "height": order.height,
                "steps": order.steps,
                "model": order.model,
                "provider": order.provider,
                "usd": units / _UNITS_A_USD,
            }
            for digest, (order, count, units) in self._lines.items()
        }
        return {
            "images": self.images,
            "usd": self._units / _UNITS_A_USD,
            "by_key": lines,
            "chat": dict(self._chat),
        }
