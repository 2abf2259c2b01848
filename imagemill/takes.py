"""Takes: a picture that is made anew, with another seed, is the next take of the same picture.

The first take is the object ``images/<key[:2]>/<key>.png``, the second ``<key>.2.png``. Each is written once,
for caches keep a picture for a year; a later run finds all of them beside each other, and uses the last one.
"""

from __future__ import annotations

import hashlib

REJECTED = "rejected"
"""The extension of an object that says that a take was rejected, in place of a picture."""


def take_name(take: int) -> str:
    """What a take adds to the key in the name of its object: nothing for the first."""
    return "" if take == 1 else f".{take}"


def take_of(name: str) -> int:
    """The take that an object is, by its name; 1 for a name that says nothing else."""
    parts = name.rpartition("/")[2].split(".")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() and len(parts[1]) < 10 else 1


def picture_of(name: str) -> str:
    """What an object is called for short: the key of its picture, and the take unless it is the first."""
    file = name.rpartition("/")[2]
    return f"{file.partition('.')[0]}{take_name(take_of(name))}"


def rejected_name(name: str) -> str:
    """The name of the object that says that the take of this name was rejected."""
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{file.partition('.')[0]}.{take_of(name)}.{REJECTED}"


def is_rejected(name: str) -> bool:
    """Whether an object stands for a take that was rejected."""
    return name.endswith(f".{REJECTED}")


def another_seed(seed: int) -> int:
    """The seed of the take after the one with this seed: always the same one, within 31 bits."""
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest()) >> 1


def seed_of(seed: int, take: int) -> int:
    """The seed of a take, from that of the first."""
    for _ in range(1, take):
        seed = another_seed(seed)
    return seed
