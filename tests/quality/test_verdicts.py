"""Pictures with known flaws, as the emulator draws them, and pictures without."""

from __future__ import annotations

import struct
import zlib

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.emulator.faults import FLAWS
from imagemill.emulator.order import Format, Shot
from imagemill.emulator.picture import draw
from imagemill.jobs import Job
from imagemill.quality.inspection import Finding, Inspection
from imagemill.quality.measures import measure
from imagemill.quality.near_duplicates import MOST_BITS_APART, near_duplicates
from imagemill.quality.sampling import Sampling
from imagemill.quality.verdicts import judge

FORMATS: list[Format] = ["png", "jpeg", "webp"]
SEEN_IN_ONE = sorted(FLAWS - {"black", "near_duplicate", "placeholder"})


def drawn(number: int, file_format: Format, flaw: str | None = None) -> bytes:
    return draw(Shot(f"a lighthouse in style {number}", 1024, 768, 4, number, file_format, flaw))


@pytest.mark.parametrize("file_format", FORMATS)
def test_pictures_without_flaws_are_not_suspect(file_format: Format) -> None:
    assert {judge(measure(drawn(number, file_format))) for number in range(8)} == {()}


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("flaw", SEEN_IN_ONE)
def test_each_flaw_is_named(file_format: Format, flaw: str) -> None:
    assert [judge(measure(drawn(number, file_format, flaw))) for number in range(4)] == [(flaw,)] * 4


def test_a_picture_over_which_the_decoder_stumbles_is_not_suspect() -> None:
    fine, animated = drawn(1, "png"), b"acTL" + bytes(8)  # of no frames: a warning, and here an error
    broken = fine[:33] + struct.pack(">I", 8) + animated + struct.pack(">I", zlib.crc32(animated)) + fine[33:]
    with pytest.raises(UserWarning):
        measure(broken)
    job = Job(0, "0", "k", "a lighthouse", None, 1024, 768, 1, 4, "m", "png")
    assert anyio.run(Inspection(1.0).look, broken, job) == Finding()


def test_pictures_alike_are_found_and_others_are_not() -> None:
    shots = [drawn(number, "jpeg") for number in range(6)]
    alike = [drawn(number, "png", "near_duplicate") for number in (7, 8)]
    measured = [measure(content) for content in [*shots, *alike]]
    hashes = np.array([int(each.phash, 16) for each in measured], np.uint64)
    looks = np.array([[each.brightness, each.contrast, each.colourfulness] for each in measured], np.float32)
    assert near_duplicates(hashes, np.arange(8), looks).tolist() == [-1] * 6 + [7, 6]
    assert near_duplicates(hashes, np.zeros(8, np.int64), looks).tolist() == [-1] * 8, "one prompt"
    looks[7, 2] += 0.01
    assert near_duplicates(hashes, np.arange(8), looks).tolist() == [-1] * 8, "other colours"


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.lists(st.integers(0, 63), max_size=3), st.data())
def test_every_hash_within_three_bits_is_found(
    hashes: list[int], bits: list[int], data: st.DataObject
) -> None:
    if hashes:
        changed = data.draw(st.sampled_from(hashes))
        for bit in set(bits):
            changed ^= 1 << bit
        hashes = [*hashes, changed]
    looks = np.zeros((len(hashes), 3), np.float32)
    found = near_duplicates(np.array(hashes, np.uint64), np.arange(len(hashes)), looks)
    for place, one in enumerate(hashes):
        apart = {other: (one ^ hashes[other]).bit_count() for other in range(len(hashes)) if other != place}
        near = [other for other, bits_apart in apart.items() if bits_apart <= MOST_BITS_APART]
        assert found[place] in near if near else found[place] == -1


def test_measuring_takes_its_share_of_the_cpu_time_and_no_more() -> None:
    process = thread = 0.0
    sampling = Sampling(0.1, cpu_s=(lambda: process, lambda: thread))
    measured = 0

    def costs() -> None:
        nonlocal process, thread
        process, thread = process + 20, thread + 20

    for _ in range(1000):
        process += 5  # everything else that an image costs
        if sampling.is_due():
            sampling.timed(costs)
            measured += 1
    assert 0.09 < 20 * measured / process < 0.11
