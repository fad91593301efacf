"""Sizes and rates: read as people write them, written as people read them.

    size   4096   4KiB 4MiB 1.5GiB 2TiB (powers of 1024)   4kB 4MB 1GB 2TB (powers of 1000)   4K 4M 1G (powers of 1024)
    rate   the same, with or without /s: 100MiB/s 100M     or bits, powers of 1000: 800kbit/s 100Mbit/s 1Gbit/s

A bare K, M, G or T is a power of 1024, as for rsync, split and dd. It may be of either case. B is always a capital:
"Mb" is refused, as it means bits to some people and bytes to others.
"""

import re
from typing import Final

SIZES_ACCEPTED: Final = "4MiB, 1.5GiB, 1GB or plain bytes"
RATES_ACCEPTED: Final = "100MiB/s, 1.5GB/s, 1Gbit/s or plain bytes per second"

_POWERS: Final = "KMGT"
_NUMBER: Final = r"([0-9]{1,20})(?:\.([0-9]{1,20}))? ?"
_SIZE: Final = re.compile(_NUMBER + r"(?:([KMGTkmgt])(iB|B|)|B?)")
_RATE: Final = re.compile(_NUMBER + r"(?:([KMGTkmgt]?)(bit)|([KMGTkmgt])(iB|B|)|B?)(?:/s)?")


def parse_size(value: str | float) -> int:
    """Read a size; return bytes, rounded down.

    Raises ValueError with a message that says which forms are accepted.
    """
    match = None if isinstance(value, bool) else _SIZE.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a size: write it as {SIZES_ACCEPTED}")
    return _bytes(*match.groups(""))


def parse_rate(value: str | float) -> int:
    """Read a rate; return bytes per second, rounded down.

    Raises ValueError with a message that says which forms are accepted.
    """
    match = None if isinstance(value, bool) else _RATE.fullmatch(str(value))
    if match is None:
        raise ValueError(f"{value!r} is not a rate: write it as {RATES_ACCEPTED}")
    integer, fraction, bit_power, bit, power, unit = match.groups("")
    return _bytes(integer, fraction, bit_power, "B") // 8 if bit else _bytes(integer, fraction, power, unit)


def _bytes(integer: str, fraction: str, power: str, unit: str) -> int:
    exponent = _POWERS.index(power.upper()) + 1 if power else 0
    factor: int = (1000 if unit == "B" else 1024) ** exponent
    divisor: int = 10 ** len(fraction)
    # Integers all the way: a float would lose bytes of a large size.
    return int(integer + fraction) * factor // divisor


def format_size(size_bytes: float) -> str:
    """Write a size with three digits: "512 B", "4.00 MiB", "12.3 GiB"."""
    size, unit = float(size_bytes), "B"
    for power in _POWERS:
        if size < 999.5:
            break
        size, unit = size / 1024, f"{power}iB"
    decimals = 0 if unit == "B" or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{decimals}f} {unit}"


def format_rate(bytes_per_second: float) -> str:
    """Write a rate with three digits: "443 MiB/s"."""
    return f"{format_size(bytes_per_second)}/s"
