"""The bill: what was charged, exactly, in whole units of 1e-10 USD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagemill.emulator.order import Order

__all__ = ["Bill", "price"]

_UNITS_A_USD = 10**10
_TOGETHER_UNITS_A_PIXEL = 27
_FAL_UNITS_A_MEGAPIXEL = 30_000_000
_PIXELS_A_MEGAPIXEL = 10**6
_UNITS_AN_IMAGE = {"replicate": 30_000_000, "openai": 30_000_000, "bfl": 250_000_000}
_UNITS_AN_IMAGE_OF_PRO = 400_000_000


def price(order: Order) -> int:
    """Return the price of one picture of an order, in units of 1e-10 USD.

    Together: 0.0027 USD a megapixel. fal: 0.003 USD a megapixel, rounded up to whole ones.
    Replicate and OpenAI-compatible servers: 0.003 USD a picture. Black Forest Labs: 0.025 USD a
    picture, of flux-pro-1.1 0.04 USD.
    """
    if order.model == "flux-pro-1.1":
        return _UNITS_AN_IMAGE_OF_PRO
    if order.provider in _UNITS_AN_IMAGE:
        return _UNITS_AN_IMAGE[order.provider]
    pixels = order.width * order.height
    if order.provider == "fal":
        return -(-pixels // _PIXELS_A_MEGAPIXEL) * _FAL_UNITS_A_MEGAPIXEL
    return pixels * _TOGETHER_UNITS_A_PIXEL


class Bill:
    """Counts the pictures charged, by digest of what was asked for, and holds credit back."""

    def __init__(self) -> None:
        """Start with nothing charged."""
        self.images = 0
        self._reserved = 0
        self._units = 0
        self._lines: dict[str, tuple[Order, int, int]] = {}

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
        units = price(order) * order.count
        self.images += order.count
        self._units += units
        _, count, total = self._lines.get(order.digest, (order, 0, 0))
        self._lines[order.digest] = (order, count + order.count, total + units)

    def as_dict(self) -> dict[str, Any]:
        """Return the bill as plain values: images, USD, and one line a digest."""
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
        return {"images": self.images, "usd": self._units / _UNITS_A_USD, "by_key": lines}
