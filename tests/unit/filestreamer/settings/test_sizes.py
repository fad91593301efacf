"""Sizes and rates: what is read, what is refused and in which words, and how they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filestreamer.settings.sizes import format_rate, format_size, parse_rate, parse_size


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("0", 0),
        ("12B", 12),
        ("1KiB", 1024),
        ("4MiB", 4 << 20),
        ("4 MiB", 4 << 20),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("1kB", 1000),
        ("1KB", 1000),
        ("1MB", 10**6),
        ("1GB", 10**9),
        ("1TB", 10**12),
        ("4k", 4096),
        ("4K", 4096),
        ("4M", 4 << 20),
        ("4G", 4 << 30),
        ("0.1KiB", 102),
        ("8388607.999999999TiB", 9223372036854774708),
        (4096.0, 4096),
    ],
    ids=repr,
)
def test_parse_size(written: str | float, expected: int) -> None:
    assert expected == parse_size(written)


@pytest.mark.parametrize(
    "written",
    ["", "MiB", "4XB", "-1", "1e6", "4Mb", "4mib", "1,5GiB", "4MiB/s", "1Gbit", "٤", "9" * 5000, "4\n", True],
    ids=lambda written: repr(written)[:10],
)
def test_parse_size_refuses(written: str) -> None:
    with pytest.raises(ValueError, match=r" is not a size: write it as 4MiB, 1.5GiB, 1GB or plain bytes$") as caught:
        parse_size(written)
    assert str(caught.value).startswith(repr(written))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (1000, 1000),
        ("1000", 1000),
        ("1000/s", 1000),
        ("100MiB/s", 100 << 20),
        ("100MiB", 100 << 20),
        ("100MB/s", 100 * 10**6),
        ("100M", 100 << 20),
        ("1.5GB/s", 1_500_000_000),
        ("1Gbit/s", 125_000_000),
        ("1Gbit", 125_000_000),
        ("100Mbit/s", 12_500_000),
        ("800kbit/s", 100_000),
        ("8bit/s", 1),
        ("2.5Gbit/s", 312_500_000),
    ],
    ids=repr,
)
def test_parse_rate(written: str | int, expected: int) -> None:
    assert expected == parse_rate(written)


@pytest.mark.parametrize("written", ["", "fast", "100Mb/s", "1Gbps", "100MiB/h", "/s", "-1MB/s", "1Gibit/s", False])
def test_parse_rate_refuses(written: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate: write it as 100MiB/s, 1.5GB/s, 1Gbit/s or plain bytes per"):
        parse_rate(written)


@pytest.mark.parametrize(
    ("size_bytes", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1024, "1.00 KiB"),
        (10 * 1024, "10.0 KiB"),
        (100 * 1024, "100 KiB"),
        (4 << 20, "4.00 MiB"),
        (5 << 30, "5.00 GiB"),
        (3 << 50, "3072 TiB"),
    ],
)
def test_format_size(size_bytes: int, expected: str) -> None:
    assert expected == format_size(size_bytes)


def test_format_rate() -> None:
    assert format_rate(443.2 * 2**20) == "443 MiB/s"


@given(st.integers(0, 2**63 - 1))
def test_what_is_shown_is_read_again_and_nearly_the_same(size_bytes: int) -> None:
    shown = format_size(size_bytes)
    assert len(shown) <= len("8388608 TiB")
    assert parse_size(shown) == pytest.approx(size_bytes, rel=0.006)
