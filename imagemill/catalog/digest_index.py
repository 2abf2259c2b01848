"""Numbers by 128-bit digests, a million of them in some 30 MB: which key, which id was seen before."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

DIGEST_BYTES = 16

_Words: TypeAlias = npt.NDArray[np.uint64]
_Places: TypeAlias = npt.NDArray[np.intp]
_LEAST = 1024
_SECRETS = np.frombuffer(secrets.token_bytes(32), np.uint64) | np.uint64(1)
_SHIFTS = np.array([32, 31], np.uint64)
_FIRST_BYTES = np.array([2 ** (8 * count) - 1 for count in range(9)], np.uint64)
"""Masks of so many bytes of a word."""


class DigestIndex:
    """A hash table of digests, looked up and filled a batch at a time.

    A digest has 16 bytes: two that are equal by chance are not to be expected among fewer than 2**60. An
    entry takes 20 bytes, and its share of the slots, which are at most half full.
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
        new = np.flatnonzero(numbers < 0)
        if new.size:
            words = _words(digests)[new]
            first, which = _distinct(words)
            numbers[new] = self._size + which
            self.add(words[first].tobytes(), range(self._size, self._size + len(first)))
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

    def add(self, digests: bytes, numbers: Sequence[int] | npt.NDArray[np.int32]) -> None:
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
        # The highest bits: all of a text's bytes have a part in them.
        return (words[:, 0] >> np.uint64(65 - len(self._slots).bit_length())).astype(np.int64)

    def _next_slots(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return (slots + 1) & (len(self._slots) - 1)


def text_digests(texts: pa.Array) -> bytes:
    """The digests of many texts, which follow each other; null has one of its own. Good in this process only.

    Both halves take the texts eight bytes at a time, all texts at once, with secret multipliers: nobody can
    choose texts of equal digests.
    """
    texts = texts.cast(pa.string())
    _, offsets, content = texts.buffers()
    ends = np.frombuffer(offsets or bytes(4), np.int32)[texts.offset :][: len(texts) + 1].astype(np.int64)
    starts, sizes = ends[:-1] - ends[0], np.diff(ends)
    octets = np.frombuffer(content or b"", np.uint8)[ends[0] : ends[-1]]
    octets = np.concatenate((octets, np.zeros(8, np.uint8)))  # the last word may reach beyond the last text
    words = np.ndarray(len(octets) - 7, "<u8", octets, strides=(1,))
    # A size must not cancel out with the bytes that follow: "\x07" was "\0\0\0\0\0\0".
    halves: npt.NDArray[np.uint64] = (
        sizes.astype(np.uint64) * _SECRETS[2:, np.newaxis] ^ _SECRETS[:2, np.newaxis]
    )
    shortest = sizes.min(initial=0)
    for place in range(0, int(sizes.max(initial=0)), 8):
        rows = slice(None) if place < shortest else np.flatnonzero(sizes > place)
        word = words[starts[rows] + place] & _FIRST_BYTES[np.minimum(sizes[rows] - place, 8)]
        for half, factor, shift in zip(halves, _SECRETS[2:], _SHIFTS, strict=True):
            mixed = (half[rows] ^ word) * factor
            half[rows] = mixed ^ (mixed >> shift)
    halves[:, ~texts.is_valid().to_numpy(zero_copy_only=False)] = _SECRETS[2:, np.newaxis]
    return halves.T.tobytes()


def _distinct(words: _Words) -> tuple[_Places, _Places]:
    """Where each digest occurs first, ascending, and for all of them which one of these it is."""
    halves = np.sort(words[:, 0])
    if (halves[1:] != halves[:-1]).all():  # the usual case, and the sort of values alone is the quickest
        everyone = np.arange(len(words))
        return everyone, everyone
    _, first, which = np.unique(words[:, 0], return_index=True, return_inverse=True)
    if (words[first[which], 1] != words[:, 1]).any():  # the halves of two are equal
        _, first, which = np.unique(words, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[which.reshape(-1)]


def _words(digests: bytes) -> _Words:
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)
