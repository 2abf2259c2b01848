"""Whatever an API, a catalog or a damaged disk holds ends as a typed error; for longer: benchmarks.fuzz."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.answers import ANSWERS
from tests.fuzz.files import FILES

TARGETS = FILES | ANSWERS


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rnd=st.randoms(use_true_random=True))
def test_nothing_but_typed_errors_comes_out(name: str, rnd: random.Random) -> None:
    assert TARGETS[name](rnd)
