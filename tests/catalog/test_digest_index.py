"""The index of digests gives back what a dictionary would."""

from __future__ import annotations

import random

import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagemill.catalog.digest_index import DIGEST_BYTES, DigestIndex, text_digests

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


TEXTS = st.none() | st.text(max_size=30) | st.integers(0, 17).map(lambda size: "\0" * size)


@settings(deadline=None)  # numpy and pyarrow load what they need with the first one
@example(["\x07", "\0" * 6], 0)
@example(["a1234567x", "b1234567x\0"], 0)
@given(st.lists(TEXTS, max_size=40), st.integers(0, 5))
def test_texts_have_equal_digests_if_they_are_equal(texts: list[str | None], skipped: int) -> None:
    digests = split(text_digests(pa.array(texts, pa.string())))
    assert len(set(digests)) == len(set(texts))
    assert len(set(zip(digests, texts, strict=True))) == len(set(texts))
    part = pa.array([*texts, "more"], pa.large_string())[skipped:-1]
    assert split(text_digests(part)) == digests[skipped:]


def split(digests: bytes) -> list[bytes]:
    return [digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)]
