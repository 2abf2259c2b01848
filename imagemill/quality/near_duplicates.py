"""Finds similar pictures among millions, by their perceptual hashes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_BITS_APART = 3
"""Hashes of two encodings of one picture differ in a few bits; those of two pictures, in some 30."""

LOOKS_APART = 0.005
"""Brightness, contrast and colourfulness of two encodings of one picture differ by up to 0.003.

A hash sees the composition only: two products in the same light, or two landscapes in other colours, may have
the same one.
"""

_BANDS = 4
_NEIGHBOURS = 64

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Looks = npt.NDArray[np.float32]


def near_duplicates(hashes: Hashes, prompts: Places, looks: Looks) -> Places:
    """For each picture, the index of a similar one made for another prompt; -1 if there is none.

    Args:
        hashes: perceptual hashes; alike are those that differ in at most ``MOST_BITS_APART`` bits.
        prompts: a number for each picture's prompt.
        looks: for each picture, measures from 0 to 1 that differ by at most ``LOOKS_APART`` too.

    Two hashes that differ in three bits agree in one of four bands of 16 bits at least. Within a band they
    are sorted by their other bits too, and each is compared with the 64 that follow: among pictures that
    agree in a band by the thousand, a few may be missed.
    """
    found = np.full(len(hashes), -1, np.int64)
    for band in range(_BANDS):
        turned = (hashes << np.uint64(16 * band)) | (hashes >> np.uint64(-16 * band % 64))
        order = np.argsort(turned, kind="stable")
        ordered, spoken = turned[order], prompts[order]
        bands = ordered >> np.uint64(48)
        for step in range(1, min(_NEIGHBOURS, len(hashes) - 1) + 1):
            same = bands[step:] == bands[:-step]
            if not same.any():
                break
            apart = np.bitwise_count(ordered[step:] ^ ordered[:-step])
            others = spoken[step:] != spoken[:-step]
            first = np.flatnonzero(same & others & (apart <= MOST_BITS_APART))
            one, other = order[first], order[first + step]
            close = (np.abs(looks[one] - looks[other]) <= LOOKS_APART).all(axis=1)
            one, other = one[close], other[close]
            found[one] = np.where(found[one] < 0, other, found[one])
            found[other] = np.where(found[other] < 0, one, found[other])
    return found
