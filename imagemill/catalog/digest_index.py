"""Numbers by 128-bit digests, a million of them in some 30 MB: which key, which id was seen before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 16

_Words: TypeAlias = npt.NDArray[np.uint64]
_LEAST = 1024
_NONE = bytes(DIGEST_BYTES)


class DigestIndex:
    """A hash table of digests, looked up and filled a batch at a time.

    A digest is 16 bytes of a cryptographic one: two that are equal by chance are not to be expected among
    fewer than 2**60. An entry takes 20 bytes, and its share of the slots, which are at most half full.
    """

    def __init__(self) -> None:
        self._size = 0
        self._slots = np.full(_LEAST, -1, np.int32)
        self._digests = np.empty((_LEAST // 2, 2), np.uint64)
        self._numbers = np.empty(_LEAST // 2, np.int32)

    def __len__(self) -> int:
        return self._size

    def find(self, digests: bytes) -> list[int]:
        """The number of each digest, which follow each other; -1 where it was never added."""
        numbers: list[int] = self.places(digests).tolist()
        return numbers

    def number(self, digests: bytes) -> npt.NDArray[np.int32]:
        """The number of each digest; those that are new are added under the next numbers from 0 on."""
        numbers = self.places(digests)
        new: dict[bytes, int] = {}
        for place in np.flatnonzero(numbers < 0).tolist():
            digest = digests[place * DIGEST_BYTES : (place + 1) * DIGEST_BYTES]
            numbers[place] = new.setdefault(digest, self._size + len(new))
        self.add(b"".join(new), list(new.values()))
        return numbers

    def places(self, digests: bytes) -> npt.NDArray[np.int32]:
        """As :meth:`find`, in an array."""
        wanted = _words(digests)
        found = np.full(len(wanted), -1, np.int32)
        rows = np.arange(len(wanted))
        slots = self._first_slots(wanted)
        while rows.size:
            entries = self._slots[slots]
            taken = entries >= 0
            rows, slots, entries = rows[taken], slots[taken], entries[taken]
            same = (self._digests[entries] == wanted[rows]).all(axis=1)
            found[rows[same]] = self._numbers[entries[same]]
            rows, slots = rows[~same], self._next_slots(slots[~same])
        return found

    def add(self, digests: bytes, numbers: Sequence[int]) -> None:
        """Add digests that differ from each other and from all added before, each with its number."""
        added = _words(digests)
        size = self._size + len(added)
        if size > len(self._numbers):
            room = max(size, len(self._numbers) * 3 // 2)
            self._digests.resize((room, 2), refcheck=False)
            self._numbers.resize(room, refcheck=False)
        self._digests[self._size : size] = added
        self._numbers[self._size : size] = numbers
        first, self._size = self._size, size
        if size > len(self._slots) // 2:
            self._slots = np.full(1 << (2 * size).bit_length(), -1, np.int32)
            first = 0
        self._place(first)

    def _place(self, first: int) -> None:
        """Give slots to the entries from ``first`` on."""
        entries = np.arange(first, self._size, dtype=np.int32)
        slots = self._first_slots(self._digests[first : self._size])
        while entries.size:
            free = self._slots[slots] < 0
            self._slots[slots[free]] = entries[free]  # where several want one, one gets it
            left = self._slots[slots] != entries
            entries, slots = entries[left], self._next_slots(slots[left])

    def _first_slots(self, words: _Words) -> npt.NDArray[np.int64]:
        return (words[:, 0] & np.uint64(len(self._slots) - 1)).astype(np.int64)

    def _next_slots(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (slots + 1) & (len(self._slots) - 1)


def text_digest(text: str) -> bytes:
    """The digest of one text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def text_digests(texts: Iterable[str | None]) -> bytes:
    """The digests of many texts, which follow each other; None has one of its own."""
    return b"".join([_NONE if text is None else text_digest(text) for text in texts])


def _words(digests: bytes) -> _Words:
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)
