from __future__ import annotations

import pytest

from pipeline.reporting import numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "unknown"), (0, "0"), (0.0, "0"), (7, "7"), (60.0, "60"), (1.3, "1.3"), (0.0523, "0.0523"),
        (99.96, "100"), (1311.4, "1,311"), (2_000_000, "2,000,000"), (0.00012345, "0.000123"),
    ],
)  # fmt: skip
def test_a_number_has_significant_digits(value: float | None, shown: str) -> None:
    assert numbers.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0 files"), (1, "1 file"), (12_000, "12,000 files"), (None, "an unknown number of files")]
)
def test_a_count_has_a_singular(value: int | None, shown: str) -> None:
    assert numbers.count(value, "file") == shown


def test_a_plural_may_be_irregular() -> None:
    assert numbers.count(2, "retry", "retries") == "2 retries"
    assert numbers.count(None, "retry", "retries") == "an unknown number of retries"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1, "1 byte"), (34, "34 bytes"), (1000, "1 kB"), (1234, "1.23 kB"), (999_600, "1 MB"), (60_000_000, "60 MB"),
        (123_456_789, "123 MB"), (5 * 10**12, "5 TB"), (3 * 10**18, "3,000 PB"), (None, "unknown"),
    ],
)  # fmt: skip
def test_a_size_has_a_unit(value: float | None, shown: str) -> None:
    assert numbers.size(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"), (0.04, "0.04 s"), (9.24, "9.2 s"), (9.96, "10 s"), (59.4, "59 s"), (59.94, "1 min 00 s"),
        (185.4, "3 min 05 s"), (3599.7, "1 h 00 min"), (6272.4, "1 h 45 min"), (86_399, "1 d 00 h"),
        (100_000, "1 d 04 h"), (None, "unknown"),
    ],
)  # fmt: skip
def test_a_duration_has_its_two_largest_units(seconds: float | None, shown: str) -> None:
    assert numbers.duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "$0"), (0.00031, "$0.00031"), (0.0098, "$0.0098"), (0.51, "$0.51"), (1.3, "$1.30"), (1249.6, "$1,250")],
)
def test_a_price_is_not_rounded_to_nothing(value: float, shown: str) -> None:
    assert numbers.dollars(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0, "0%"), (0.0004, "<0.1%"), (0.003, "0.3%"), (0.123, "12%"), (0.789, "78%"), (0.9996, "99.9%"),
        (1, "100%"), (1.11, "111%"),
    ],
)  # fmt: skip
def test_only_a_whole_is_a_hundred_percent(share: float, shown: str) -> None:
    assert numbers.percent(share) == shown


def test_rates_and_moments() -> None:
    assert numbers.rate(1.3) == "1.3 documents/s"
    assert numbers.rate(60_768.8) == "60,769 documents/s"
    assert numbers.milliseconds(1.1) == "1.1 ms"
    assert numbers.milliseconds(12_000) == "12 s"
    assert numbers.timestamp(1_767_323_045) == "2026-01-02 03:04 UTC"
