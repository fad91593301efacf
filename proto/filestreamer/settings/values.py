"""Readers of values of settings.

A reader is a function of one value: text, or a JSON value from the config file. It raises ValueError with a message for
the user.
"""

import codecs
import errno
import math
import os
import stat
import string
from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, Literal, TypeAlias, TypeVar

from filestreamer.settings import sizes
from filestreamer.settings.address import Address, parse_address
from filestreamer.settings.renewed import Signature
from filestreamer.wire import limits
from filestreamer.wire.job_name import is_job_name

RUN_CHARACTERS_MAX: Final = 128
_PEM: Final = ("-----BEGIN ", "LS0tLS1CRUdJTi")
"""How a PEM file begins, and how it does in base64, as the Secrets of Kubernetes have it."""
T = TypeVar("T")

MetricsAddress: TypeAlias = Address | Literal["off"]

SECONDS_MIN: Final = 0.001
SECONDS_MAX: Final = 1e9
"""Up to here, the sum with a clock is exact to a microsecond, and no waiting function of Python overflows."""
_SECONDS_BOUNDS: Final = f"it must be {SECONDS_MIN:g} to {SECONDS_MAX:.0f} seconds (31 years)"

RATE_MAX: Final = 2**40
"""Bytes per second; more than any network card has."""

URL_ACCEPTED: Final = (
    "http://[USER:PASSWORD@]HOST[:PORT][/PATH], or https, with an @ : / ? # or % of a password as %40 or so"
)

TOKEN_CHARACTERS_MIN: Final = 16
TOKEN_CHARACTERS_MAX: Final = 4096
VOUCHING_CHARACTERS_MIN: Final = 32
"""The shortest token that may vouch for a certificate: who stands in between sees a proof that was made with it, and
may try tokens against that for as long as they like. Those that are generated here have as many."""
TOKEN_BYTES_MAX: Final = 4 * TOKEN_CHARACTERS_MAX + 1024
"""The most bytes of a token file: each character in UTF-8, and some white space around the token."""


def text(value: object) -> str:
    """Read text that could be a path: not empty, without NUL."""
    if value == "":
        raise ValueError("must not be empty")
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f"{value!r} is not text")
    os.fsencode(value)  # raises ValueError for half a surrogate pair, which JSON can have and a path can't
    return value


def pem_file(value: object) -> str:
    """Read the path of a PEM file. No message repeats what is PEM itself, as it may be a private key."""
    path = text(value)
    if any(begin in path for begin in _PEM):
        raise ValueError("it is PEM itself, and not the name of a file: write that to a file, and name the file")
    return path


def metrics_address(value: object) -> MetricsAddress:
    """Read HOST:PORT, or `off`."""
    if value == "off":
        return "off"
    address = parse_address(value)
    if not str(value).endswith(f":{address.port}"):
        raise ValueError(f"{value!r} has no port: write it as HOST:PORT")
    return address


def url(value: object) -> str:
    """Read an HTTP or HTTPS URL. No message repeats it, as it may contain a password."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value if isinstance(value, str) and value.isprintable() and " " not in value else "")
        before = parts.path.partition("/metrics/")[0]
        # A / or # in a password that is not escaped ends the host part: the rest would be taken for path or fragment.
        is_split_right = not parts.fragment and "@" not in before + parts.query and parts.netloc.count("@") < 2
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and is_split_right
    except ValueError:  # brackets that don't match, or a port that is not a number
        is_good = False
    if not is_good:
        raise ValueError(f"it is not a URL of the form {URL_ACCEPTED}")
    return str(value)


def without_password(address: str) -> str:
    """Return a URL that `url` has read without user and password, to be shown; a query may hold a secret, too."""
    scheme, separator, rest = address.partition("?")[0].partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


class OneOf(Generic[T]):
    """A reader of one of some words."""

    __name__ = "word"  # click calls the type of a setting as its reader

    def __init__(self, known: Mapping[str, T]) -> None:
        self.known = known
        """What each word is read as."""

    def __call__(self, value: object) -> T:
        """Return what the word is read as."""
        if not isinstance(value, str) or value not in self.known:
            raise ValueError(f"{value!r} is none of {', '.join(self.known)}")
        return self.known[value]


class Words:
    """A reader of a list of the words, separated by commas or white space; between commas there is a word."""

    __name__ = "words"

    def __init__(self, *known: str) -> None:
        self.known = known
        self._read_one = one_of(*known)

    def __call__(self, value: object) -> tuple[str, ...]:
        """Return the words."""
        pieces = [piece.split() for piece in text(value).split(",")]
        if not any(pieces):
            raise ValueError("must not be empty")
        return tuple([self._read_one(word) for piece in pieces for word in piece or [""]])


def one_of(*words: str) -> OneOf[str]:
    """Return a reader of one of the words, which is read as itself."""
    return OneOf({word: word for word in words})


def whole(least: int, most: int, unit: str) -> Callable[[object], int]:
    """Return a reader of whole numbers between two bounds, both included; `unit` is what is counted."""

    def read(value: object) -> int:
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
            raise ValueError(f"{value!r} is not a number of {unit} from {least} to {most}")
        return number

    return read


def or_auto(read: Callable[[object], T]) -> Callable[[object], T | None]:
    """Return a reader of `auto`, which is read as None, and of what `read` reads."""

    def read_either(value: object) -> T | None:
        try:
            return None if value == "auto" else read(value)
        except ValueError as error:
            raise ValueError(f"{error}, nor auto") from None

    return read_either


def size(least: int, most: int) -> Callable[[Any], int]:
    """Return a reader of sizes in bytes between two bounds, both included."""
    return _between(sizes.parse_size, least, most, sizes.format_size)


def rate(value: Any) -> int:
    """Read a rate of one byte per second to RATE_MAX; return bytes per second."""
    return _between(sizes.parse_rate, 1, RATE_MAX, sizes.format_rate)(value)


def _between(
    parse: Callable[[Any], int], least: int, most: int, written: Callable[[float], str]
) -> Callable[[Any], int]:
    """Return a reader of what `parse` reads, between two bounds, both included; each of its errors has the bounds."""
    bounds = f"{written(least)} to {written(most)}"

    def read(value: Any) -> int:
        try:
            number = parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, {bounds}") from None
        if not least <= number <= most:
            raise ValueError(f"{value!r} is out of bounds: it must be {bounds}")
        return number

    return read


def seconds(value: object) -> float:
    """Read a number of seconds, SECONDS_MIN to SECONDS_MAX."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    except OverflowError:  # an integer that is more than any float
        number = math.inf
    if math.isnan(number):
        raise ValueError(f"{value!r} is not a number of seconds: {_SECONDS_BOUNDS}")
    if not SECONDS_MIN <= number <= SECONDS_MAX:
        raise ValueError(f"{value!r} is out of bounds: {_SECONDS_BOUNDS}")
    return number


class Literally(str):
    """Text from a variable that holds the content of the file which the flag and the config key would name."""

    __slots__ = ()


class Token(str):
    """A token, and the path of its file; None where it came from the environment."""

    path: str | None = None
    signature: Signature | None = None
    """That of its file when it was read; None where there is none, or it is a pipe, which can't be read again."""


def sha256(value: object) -> tuple[bytes, ...]:
    """Read SHA-256 digests in hex, with or without colons, separated by commas: 32 bytes each."""
    found = []
    for each in text(value).split(","):
        digits = each.strip().replace(":", "")
        if len(digits) != 64 or not all(digit in string.hexdigits for digit in digits):
            raise ValueError(
                f"{each.strip()!r} is not a SHA-256: 64 hex digits, with or without colons, as the receiver's log says"
                " them at its start, or openssl x509 -in FILE -noout -fingerprint -sha256"
            )
        found.append(bytes.fromhex(digits))
    return tuple(found)


def job_name(value: object) -> str:
    """Read the name of a job."""
    name = text(value)
    if not is_job_name(name):
        raise ValueError(
            f"{name!r} is not the name of a job: 1 to {limits.JOB_NAME_BYTES} of a-z, 0-9, '.' and '-', beginning"
            " and ending with a letter or digit"
        )
    return name


def run_id(value: object) -> str:
    """Read what tells one run from another one."""
    read = text(value)
    if not 0 < len(read) <= RUN_CHARACTERS_MAX or not (read.isascii() and read.isprintable()) or " " in read:
        raise ValueError(f"{read!r} is not the ID of a run: 1 to {RUN_CHARACTERS_MAX} letters, digits and signs")
    return read


def token(value: object) -> Token:
    """Read the token from the file of that name or, from a `Literally`, from the value itself.

    The same bytes are the same token on both sides. A token is refused where two different ones could look the same.
    """
    path = None if isinstance(value, Literally) else text(value)
    # Back to bytes: Python decoded the variable by the locale, and the other side may have another locale.
    content, signature = (os.fsencode(str(value)), None) if path is None else _file_content(path)
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
    made.path, made.signature = path, signature
    return made


def _file_content(path: str) -> tuple[bytes, Signature | None]:
    try:
        with open(path, "rb") as file:
            signature = Signature.of(os.fstat(file.fileno()))
            content = file.read(TOKEN_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(unreadable(path, error)) from error
    if len(content) > TOKEN_BYTES_MAX:
        raise ValueError(f"{path!r} has more than {TOKEN_BYTES_MAX} bytes: it is not a token")
    return content, signature


def unreadable(path: str, error: OSError) -> str:
    """Say that the path of a setting that is about tokens can't be read.

    It is not repeated where it may be a token: nothing has that name, and it leads through no directory that is there.
    """
    is_there = error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
    top, slash, _ = path[1:].partition("/")
    if is_there or len(path) < TOKEN_CHARACTERS_MIN or (slash and os.path.isdir(path[:1] + top)):
        return f"can't read {path!r}: {error.strerror}"
    return (
        "nothing has this name here; it is not repeated, as it may be a token: the variable FILESTREAMER_TOKEN takes a"
        " token itself"
    )


def is_open_to_all(path: str) -> bool:
    """Return whether every user of this machine may read or change a regular file; False where that is not known."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) and bool(mode & (stat.S_IROTH | stat.S_IWOTH))
