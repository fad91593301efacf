"""Checks of the fields of a message from a peer. Each raises RemoteProtocolError, which names the field."""

from collections.abc import Sequence
from typing import TypeVar

from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, RemoteProtocolError

MAX_U63 = (1 << 63) - 1


def require(condition: bool, what: str) -> None:
    if not condition:
        raise RemoteProtocolError(what)


def sized(value: bytes, size: int, what: str) -> bytes:
    require(len(value) == size, f"{what} has {len(value)} bytes, not {size}")
    return value


def within(value: int, lowest: int, highest: int, what: str) -> int:
    if not lowest <= value <= highest:
        raise RemoteProtocolError(f"{what} is {value}, not in {lowest}..{highest}")
    return value


def all_within(values: Sequence[int], lowest: int, highest: int, what: str) -> None:
    """Check each of maybe thousands of values; nearly always all are fine, which the least and the greatest tell."""
    if values and (min(values) < lowest or max(values) > highest):
        for value in values:
            within(value, lowest, highest, what)


E = TypeVar("E", m.Role, m.EntryType, m.Existing, m.Phase, m.Verdict, m.Standing, m.SkipKind, Code)


def enum(kind: type[E], value: int, what: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise RemoteProtocolError(f"{what} has the unknown value {value}") from None
