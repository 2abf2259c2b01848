"""Amounts add up to the digit that a person would write."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.usd import exact, in_words, of_picos, picos, plus, total

AMOUNTS = st.decimals(min_value=0, max_value=900, places=12)


@pytest.mark.parametrize("price", [0.003, 0.0027, 0.0028311552, 0.1])
def test_a_total_has_no_noise(price: float) -> None:
    assert total([price] * 9_000) == float(Decimal(str(price)) * 9_000)
    assert plus(0.1, 0.2) == 0.3


@given(st.lists(AMOUNTS, max_size=50))
def test_a_total_is_the_sum_of_its_rows(amounts: list[Decimal]) -> None:
    assert total(map(float, amounts)) == float(sum(amounts, Decimal(0)))


@given(AMOUNTS)
def test_a_float_gives_its_amount_back(amount: Decimal) -> None:
    assert of_picos(picos(float(amount))) == float(amount)
    assert exact(float(amount)) == amount


def test_words_have_all_digits() -> None:
    assert in_words(Decimal("0.0000528")) == "0.0000528"
    assert in_words(Decimal(30)) == "30"
    assert in_words(exact(27.0)) == "27"
