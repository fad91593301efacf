"""How the value of a setting is read.

Each reader is a function of one value, text or what JSON has for it, that raises ValueError with a text for people.
"""

import codecs
import math
import os
import stat
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, TypeVar

from filestreamer.settings import sizes
from filestreamer.settings.address import Address, parse_address

T = TypeVar("T")

MetricsAddress: TypeAlias = Address | Literal["off"]

SECONDS_MIN: Final = 0.001
SECONDS_MAX: Final = 1e9
"""Sums with a clock stay exact to a microsecond up to here, and no wait of the library overflows."""

URL_ACCEPTED: Final = (
    "http://[USER:PASSWORD@]HOST[:PORT][/PATH], or https, with an @ : / ? # or % of a password as %40 or so"
)

TOKEN_CHARACTERS_MIN: Final = 16
TOKEN_CHARACTERS_MAX: Final = 4096
TOKEN_BYTES_MAX: Final = 4 * TOKEN_CHARACTERS_MAX + 1024
"""Of a file that holds one: each character in UTF-8, and white space around it."""


def text(value: object) -> str:
    """Read text that is not empty and could be a path."""
    if value == "":
        raise ValueError("must not be empty")
    if not isinstance(value, str) or "\0" in value:
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
    """Read the address of something that speaks HTTP. It may have a password in it, so no message repeats it."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value if isinstance(value, str) and value.isprintable() and " " not in value else "")
        before = parts.path.partition("/metrics/")[0]
        # A password that is not escaped ends at its / or #: what follows would be taken for a path or a fragment.
        is_split_right = not parts.fragment and "@" not in before + parts.query and parts.netloc.count("@") < 2
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and is_split_right
    except ValueError:  # brackets that don't match, or a port that is none
        is_good = False
    if not is_good:
        raise ValueError(f"it is not a URL that is written as {URL_ACCEPTED}")
    return str(value)


def without_password(address: str) -> str:
    """Return a URL for people to see: without the user and the password of one that `url` has read."""
    scheme, separator, rest = address.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def one_of(*words: str) -> Callable[[object], str]:
    """Return a reader of one of the words."""

    def read(value: object) -> str:
        if value not in words:
            raise ValueError(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return read


def words(*known: str) -> Callable[[object], tuple[str, ...]]:
    """Return a reader of some of the words, with commas between them."""
    read_one = one_of(*known)

    def read(value: object) -> tuple[str, ...]:
        return tuple(read_one(word.strip()) for word in text(value).split(","))

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


class Token(str):
    """A shared secret, and the file that it came from, if any."""

    path: str | None = None


def token(value: object) -> Token:
    """Read the token out of the file of that name, or take it as it is where the environment carries it.

    Both are bytes, and the same bytes are the same token. What could look the same and be another one is refused.
    """
    path = None if isinstance(value, Literally) else text(value)
    # As bytes: what a variable holds is decoded by the locale, which need not be that of the other side.
    content = os.fsencode(str(value)) if path is None else _file_content(path)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("the token is UTF-16 text: save it as UTF-8")
    try:
        stripped = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError("the token is not UTF-8 text: openssl rand -hex 32 makes one that is") from None
    if not TOKEN_CHARACTERS_MIN <= len(stripped) <= TOKEN_CHARACTERS_MAX:
        wanted = f"{TOKEN_CHARACTERS_MIN} to {TOKEN_CHARACTERS_MAX}"
        raise ValueError(f"the token has {len(stripped)} characters: it must have {wanted}")
    if not stripped.isprintable():
        raise ValueError(
            "the token has a line break in it, or a character that can't be seen: it must be one line of text"
        )
    made = Token(stripped)
    made.path = path
    return made


def _file_content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(TOKEN_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"can't read {path!r}: {error.strerror}") from error
    if len(content) > TOKEN_BYTES_MAX:
        raise ValueError(f"{path!r} has more than {TOKEN_BYTES_MAX} bytes: it is no token")
    return content


def is_open_to_all(path: str) -> bool:
    """Whether every user of this machine may read or change a file: not a pipe, and not one that can't be looked at."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & (stat.S_IROTH | stat.S_IWOTH))
