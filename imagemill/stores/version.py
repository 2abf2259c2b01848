"""The version of what job stores hold: written when a store is made, read when it is opened.

``STORE_VERSION`` goes up with each change of the tables, the checkpoint or the keys in Redis that another
version of imagemill would read wrongly. Stores of the versions in ``UPGRADED`` are brought up to date when
they are opened. From any other there is no way: a run is short, and its plan and images are in the bucket,
so another store takes it up.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

from imagemill.errors import InputError

STORE_VERSION = 6
"""2: jobs have ``params``, ``cost_source`` and ``queued_s``.

3: ``variant``, ``varied``, ``quality`` and ``suspect``.

4: ``judge_usd``.

5: ``route``.

6: ``earlier``.
"""

UPGRADED = frozenset({1, 2, 3, 4, 5})
"""Earlier versions that differ only by fields that have a default."""

UNKNOWN = 0
"""Of a store whose contents are none that this imagemill knows, and that does not say its version."""


@dataclass(frozen=True, slots=True)
class StoreVersion:
    """A store's version, and the version of imagemill that made the store; None where it does not say."""

    number: int
    made_by: str | None = None

    @classmethod
    def here(cls) -> StoreVersion:
        """What this imagemill writes."""
        return cls(STORE_VERSION, version("imagemill"))

    def check(self, store: str) -> None:
        """See that this imagemill can read the store; ``store`` says which it is, and begins a sentence.

        Raises:
            InputError: another version made it; says which, and what to do.
        """
        here = StoreVersion.here()
        if self.number == here.number or self.number in UPGRADED:
            return
        age = "a newer" if self.number > here.number else "an older"
        maker = f"imagemill {self.made_by}" if self.made_by else f"{age} imagemill"
        which = f"in version {self.number}" if self.number != UNKNOWN else "which gave it no version"
        raise InputError(
            f"{store} was made by {maker}, {which}; this is imagemill {here.made_by}, which reads version"
            f" {here.number}. Continue with the version that made it, or use another store (--store): images"
            " that are in the bucket are found there and are not paid for again."
        )
