"""The config file: a JSON object with settings of one service or both.

    {"sender": {"chunk_size": "8MiB"}, "log_level": "debug"}

A section named for a service wins over what stands outside of it. Both services may read the same file: each checks the
other's keys, and leaves them alone. A key that stands twice in an object is an error, as JSON leaves it open which one
counts (RFC 8259, section 4).
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from filestreamer.settings.definition import Definition
from filestreamer.settings.keys import COMMON_KEYS, OWN_KEYS
from filestreamer.wire import limits
from filestreamer.wire.errors import UsageError
from filestreamer.wire.session import Side

SERVICES: Final = ("sender", "receiver")
CONFIG_BYTES_MAX: Final = 16 * limits.MIB
WHOLE_DIGITS_MAX: Final = 1000

ORIGINAL_KEYS: Final[Mapping[str, str]] = {
    "serveraddr": "listen",
    "clientaddr": "to",
    "parallelpage": "connections",
    "chunk": "chunk_size",
    "inputfile": "input_file",
    "outputfile": "output_file",
}
"""Config keys of the original program, and ours. They are in lower case: that program ignored case."""


class _Object(dict[str, Any]):
    """A JSON object, and the first of its keys that stands in it twice."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        super().__init__()
        self.twice: str | None = None
        for key, value in pairs:
            if key in self and self.twice is None:
                self.twice = key
            self[key] = value


class Found(NamedTuple):
    """A value of the environment or the config file, and how an error message about it begins."""

    value: object
    origin: str


def read_settings(defined: Mapping[str, Definition], service: Side, path: str, origin: str) -> dict[str, Found]:
    """Read the config file; return the values of one service by field name.

    `origin` names the flag or variable that named the file. Raises UsageError.
    """
    document = _load_object(path, origin)
    sections = {name: document.pop(name, None) for name in SERVICES}
    found = _entries(path, "", document, COMMON_KEYS.union(*OWN_KEYS.values()))
    of_section: dict[str, Found] = {}
    for name, content in sections.items():
        entries = _entries(path, name, content, COMMON_KEYS | OWN_KEYS[name])
        if name == service:
            found |= entries
            of_section = entries
    own = {name: found[definition.key] for name, definition in defined.items() if definition.key in found}
    for name, definition in defined.items():
        if definition.is_own and definition.key not in of_section:
            own.pop(name, None)
    return {name: _shaped(item, defined[name]) for name, item in own.items()}


def _shaped(item: Found, definition: Definition) -> Found:
    """Make a list of the value of a setting that may be repeated. Raises UsageError for a list of any other."""
    if definition.multiple:
        return item if isinstance(item.value, list) else Found([item.value], item.origin)
    if isinstance(item.value, list):
        raise UsageError(f"{item.origin}: must be text, a number, true or false")
    if definition.read is bool and isinstance(item.value, int | float) and not isinstance(item.value, bool):
        return Found(str(item.value), item.origin)  # click reads 0 and 1 only as text
    return item


def _load_object(path: str, origin: str) -> _Object:
    try:
        with open(path, "rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
        if len(content) > CONFIG_BYTES_MAX:
            raise UsageError(f"{path}: has more than {CONFIG_BYTES_MAX >> 20} MiB: it is not a config file")
        document = json.loads(content, object_pairs_hook=_Object, parse_int=_whole_number)
    except OSError as error:
        raise UsageError(f"{origin}: can't read {path!r}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: line {error.lineno} column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not JSON: {error}") from error
    if not isinstance(document, _Object):
        raise UsageError(f"{path}: must be a JSON object with settings")
    return document


def _whole_number(digits: str) -> int | float:
    """Read a whole number of JSON; one that no setting can have is as good as infinite."""
    # int() refuses to read thousands of digits.
    return int(digits) if len(digits) <= WHOLE_DIGITS_MAX else float(digits)


def _entries(path: str, section: str, content: object, keys: frozenset[str]) -> dict[str, Found]:
    """Return the values of one object of the config file by our keys.

    Raises UsageError for an unknown key, one that stands twice, and for a value that no setting can have.
    """
    if content is None:
        return {}
    if not isinstance(content, _Object):
        raise UsageError(f"{path}: {section}: must be an object with settings of the {section}")
    prefix = f"{section}." if section else ""
    if content.twice is not None:
        raise UsageError(f"{path}: the key {prefix + content.twice!r} stands twice: keep one of them")
    entries: dict[str, Found] = {}
    for written, value in content.items():
        key = ORIGINAL_KEYS.get(written.lower(), written)
        if key not in keys:
            hint = suggestion(prefix, written, keys if section else keys.union(SERVICES))
            raise UsageError(f"{path}: unknown key {prefix + written!r}{hint}")
        if key in entries:
            raise UsageError(f"{path}: {prefix}{written}: the same setting as {entries[key].origin}: keep one of them")
        if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(item, str) for item in value)):
            raise UsageError(f"{path}: {prefix}{written}: must be text, a number, true, false or a list of texts")
        if value is not None:
            entries[key] = Found(value, f"{path}: {prefix}{written}")
    return entries


def suggestion(prefix: str, word: str, words: Iterable[str]) -> str:
    """Return ": did you mean ...?" with the known word that is most like `word`; "" where none is."""
    from difflib import get_close_matches

    matches = get_close_matches(word, sorted(words), n=1)
    return f": did you mean {prefix}{matches[0]}?" if matches else ""
