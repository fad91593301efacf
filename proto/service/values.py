"""How the value of a setting is read.

Each reader is a function of one value, text or what JSON has for it, that raises ValueError with a text for people.
"""

import math
import os
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, TypeVar

from service import sizes
from service.address import Address, parse_address

T = TypeVar("T")

MetricsAddress: TypeAlias = Address | Literal["off"]

SECONDS_MIN: Final = 0.001
SECONDS_MAX: Final = 1e9
"""Sums with a clock stay exact to a microsecond up to here, and no wait of the library overflows."""

TOKEN_CHARACTERS_MIN: Final = 16
TOKEN_CHARACTERS_MAX: Final = 4096


def text(value: object) -> str:
    """Read text that is not empty and could be a path."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r} is not text")
    os.fsencode(value)  # raises ValueError for half a surrogate pair, which JSON can spell and no path can hold
    return value


def metrics_address(value: object) -> MetricsAddress:
    """Read HOST:PORT, or `off`."""
    if value == "off":
        return "off"
    address = parse_address(value)
    if not str(value).endswith(f":{address.port}"):
        raise ValueError(f"{value!r} has no port: write it as HOST:PORT")
    return address


def url(value: object) -> str:
    """Read the address of something that speaks HTTP."""
    address = text(value)
    if not address.startswith(("http://", "https://")) or not address.partition("://")[2]:
        raise ValueError(f"{value!r} is not a URL: it begins with http:// or https://")
    return address


def one_of(*words: str) -> Callable[[object], str]:
    """Return a reader of one of the words."""

    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return read


def whole(least: int, most: int) -> Callable[[object], int]:
    """Return a reader of whole numbers between two bounds, both included."""

    def read(value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
        return number

    return read


def or_auto(read: Callable[[object], T]) -> Callable[[object], T | None]:
    """Return a reader of `auto`, which is None, or what `read` reads."""

    def read_either(value: object) -> T | None:
        try:
            return None if value == "auto" else read(value)
        except ValueError as error:
            raise ValueError(f"{error}, nor auto") from None

    return read_either


def size(least: int, most: int) -> Callable[[Any], int]:
    """Return a reader of sizes in bytes between two bounds, both included."""

    def read(value: Any) -> int:
        size_bytes = sizes.parse_size(value)
        if not least <= size_bytes <= most:
            bounds = f"{sizes.format_size(least)} to {sizes.format_size(most)}"
            raise ValueError(f"{value!r} is out of bounds: it must be {bounds}")
        return size_bytes

    return read


def rate(value: Any) -> int:
    """Read a rate of at least one byte per second; return bytes per second."""
    bytes_per_second = sizes.parse_rate(value)
    if bytes_per_second < 1:
        raise ValueError(f"{value!r} moves nothing: a rate is at least 1 byte per second")
    return bytes_per_second


def seconds(value: object) -> float:
    """Read a number of seconds above 0."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    except OverflowError:  # an integer that is more than any float
        number = math.inf
    if not number > 0:
        raise ValueError(f"{value!r} is not a number of seconds above 0")
    if not SECONDS_MIN <= number <= SECONDS_MAX:
        raise ValueError(
            f"{value!r} is out of bounds: it must be {SECONDS_MIN:g} to {SECONDS_MAX:.0f} seconds (31 years)"
        )
    return number


class Literally(str):
    """A value that the environment carries itself, for a setting whose flag and key name a file."""

    __slots__ = ()


def token(value: object) -> str:
    """Read the token out of the file of that name, or take it as it is where the environment carries it."""
    content = value if isinstance(value, Literally) else _file_content(text(value))
    stripped = content.strip()
    if not TOKEN_CHARACTERS_MIN <= len(stripped) <= TOKEN_CHARACTERS_MAX:
        wanted = f"{TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX}"
        raise ValueError(f"the token has {len(stripped)} characters: it must have {wanted}")
    return stripped


def _file_content(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(2 * TOKEN_CHARACTERS_MAX)
    except OSError as error:
        raise ValueError(f"can't read {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path!r} is not text") from error
