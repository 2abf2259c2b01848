"""The index of digests gives back what a dictionary would."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from imagemill.catalog.digest_index import DIGEST_BYTES, DigestIndex

DIGESTS = st.sets(st.integers(0, 2**128 - 1) | st.integers(0, 40).map(lambda high: high << 64), max_size=60)


@given(st.lists(DIGESTS, max_size=6))
def test_what_was_added_is_found_and_nothing_else(batches: list[set[int]]) -> None:
    index, known = DigestIndex(), dict[int, int]()
    for batch in batches:
        wanted = sorted(batch)
        assert index.find(packed(wanted)) == [known.get(digest, -1) for digest in wanted]
        new = [digest for digest in wanted if digest not in known]
        numbers = [len(known) + 3 * place for place in range(len(new))]
        index.add(packed(new), numbers)
        known.update(zip(new, numbers, strict=True))
    assert index.find(packed(list(known))) == list(known.values())


def test_it_grows() -> None:
    rng = random.Random(3)
    digests = [rng.getrandbits(128) for _ in range(30_000)]
    index = DigestIndex()
    for start in range(0, 30_000, 7_000):
        some = digests[start : start + 7_000]
        index.add(packed(some), range(start, start + len(some)))
    assert index.find(packed(digests)) == list(range(30_000))
    assert index.find(packed([rng.getrandbits(128) for _ in range(1_000)])) == [-1] * 1_000


def packed(digests: list[int]) -> bytes:
    return b"".join(digest.to_bytes(DIGEST_BYTES, "little") for digest in digests)
