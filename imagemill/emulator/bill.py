"""The bill: what was charged, exactly, in whole units of 1e-10 USD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagemill.emulator.order import Order

__all__ = ["Bill", "nano_usd", "price", "usd"]

_UNITS_A_USD = 10**10
_TOGETHER_UNITS_A_PIXEL = 27
_USUAL_STEPS = 4
_FAL_UNITS_A_MEGAPIXEL = 30_000_000
_PIXELS_A_MEGAPIXEL = 2**20  # 1024 x 1024 is one, 1920 x 1080 two: fal.ai/models/fal-ai/flux-2-flex/llms.txt
_UNITS_AN_IMAGE = {"replicate": 30_000_000, "openai": 30_000_000}
_RUNWARE_UNITS_A_PIXEL = 13
_CLOUDFLARE_UNITS_A_TILE = 528_000
_CLOUDFLARE_UNITS_A_STEP = 1_056_000
_TILE = 512
_BFL_UNITS = {
    "flux-dev": (250_000_000, 0),
    "flux-pro-1.1": (400_000_000, 0),
    "flux-kontext-pro": (400_000_000, 0),
    "flux-2-klein-4b": (140_000_000, 10_000_000),
    "flux-2-klein-9b": (150_000_000, 20_000_000),
    "flux-2-pro": (300_000_000, 150_000_000),
    "flux-2-flex": (500_000_000, 500_000_000),  # docs.bfl.ai/quick_start/pricing
    "flux-2-max": (700_000_000, 300_000_000),
}
"""The first megapixel, and each further one begun."""

_UNITS_A_TEXT_TOKEN = 50_000
_UNITS_AN_IMAGE_TOKEN = 300_000


def price(order: Order) -> int:
    """Return the price of all pictures of an order, in units of 1e-10 USD.

    Together: 0.0027 USD a megapixel at up to 4 steps, beyond in proportion to them. fal: 0.003 USD a
    megapixel of 2**20 pixels, rounded up to whole ones. Replicate, and servers that speak OpenAI's API:
    0.003 USD a picture. Black Forest Labs: by the model, for the first and each further megapixel. OpenAI: 5
    USD a million text tokens of input, 30 USD a million image tokens of output (as LiteLLM's price list has
    it). Runware: 0.0013 USD a megapixel at 4 steps (unconfirmed). Cloudflare: by tiles of 512 by 512 pixels
    and by steps.
    """
    if order.tokens:
        text = order.text_tokens * _UNITS_A_TEXT_TOKEN
        return text + order.tokens * order.count * _UNITS_AN_IMAGE_TOKEN
    return _picture(order) * order.count


def _picture(order: Order) -> int:
    pixels = order.width * order.height
    megapixels = -(-pixels // _PIXELS_A_MEGAPIXEL)
    if order.provider == "bfl":
        first, further = _BFL_UNITS[order.model]
        return first + max(0, megapixels - 1) * further
    if order.provider in _UNITS_AN_IMAGE:
        return _UNITS_AN_IMAGE[order.provider]
    if order.provider == "cloudflare":
        tiles = -(-order.width // _TILE) * -(-order.height // _TILE)
        return tiles * _CLOUDFLARE_UNITS_A_TILE + order.steps * _CLOUDFLARE_UNITS_A_STEP
    if order.provider == "runware":
        return pixels * _RUNWARE_UNITS_A_PIXEL * order.steps // _USUAL_STEPS
    if order.provider == "fal":
        return megapixels * _FAL_UNITS_A_MEGAPIXEL
    return pixels * _TOGETHER_UNITS_A_PIXEL * max(order.steps, _USUAL_STEPS) // _USUAL_STEPS


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
