"""A sender inside the test's own process: what the test does in between is left to no chance."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sender.coordinator import BeginAgain, Transfer
from sender.listing import listing
from sender.settings import parse
from sender.source.item import Item
from sender.source.reader import Reader


class Silent:
    """A log that nobody reads."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._say

    def _say(self, *_: object, **__: object) -> None:
        pass


def send(*args: object) -> Transfer:
    """Send as the command does; return the transfer after its end. Raises what it ends with."""
    transfer, is_committed = send_shard(*args)
    assert is_committed
    return transfer


def send_shard(*args: object, watch: Callable[[Transfer], object] = lambda _: None) -> tuple[Transfer, bool]:
    """Send as `send` does; return also whether the whole is committed. `watch` is told of each transfer that begins."""
    settings, _ = parse([str(arg) for arg in args], {})
    transfer = Transfer(settings, Silent())
    while True:
        watch(transfer)
        try:
            return transfer, transfer.run()
        except BeginAgain:
            transfer = transfer.again()


@contextmanager
def once_listed(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> Iterator[None]:
    """Do something when the walk has ended, before anything of what it found is offered."""
    real = listing.ListingThread._post_part
    found: list[list[Item]] = []
    is_walked = False

    def post_part(self: listing.ListingThread, items: list[Item], *, last: bool) -> None:
        nonlocal is_walked
        if is_walked:  # what changed, and is listed again
            real(self, items, last=last)
            return
        found.append(items)
        if last:
            is_walked = True
            action()
            for part in found:
                real(self, part, last=part is items)
            found.clear()

    with monkeypatch.context() as patched:
        patched.setattr(listing.ListingThread, "_post_part", post_part)
        yield


def walk_ended(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return what is set when the walk has posted its last part."""
    real = listing.ListingThread._post_part
    ended = threading.Event()

    def post_part(self: listing.ListingThread, items: list[Item], *, last: bool) -> None:
        real(self, items, last=last)
        if last:
            ended.set()

    monkeypatch.setattr(listing.ListingThread, "_post_part", post_part)
    return ended


@contextmanager
def once_read(
    monkeypatch: pytest.MonkeyPatch, name: bytes, reads: int, action: Callable[[], object], *, before: bool = False
) -> Iterator[None]:
    """Do something, once, right after (or before) a file of this name is read from for the `reads`th time."""
    real = Reader.read_into
    lock = threading.Lock()
    left = reads

    def read_into(self: Reader, item: Item, view: memoryview, offset: int) -> Any:
        nonlocal left
        if not before:
            real(self, item, view, offset)
        if item.path.rpartition(b"/")[2] == name:
            with lock:
                left -= 1
                is_it = left == 0
            if is_it:
                action()
        if before:
            real(self, item, view, offset)

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "read_into", read_into)
        patched.setattr(Reader, "read_run", _read_one_by_one)
        yield
    assert left <= 0, f"{name!r} was read from {reads - left} times"


@contextmanager
def before_reads(monkeypatch: pytest.MonkeyPatch, top: bytes, action: Callable[[bytes], object]) -> Iterator[None]:
    """Do something before each read of a file, of which it is told the path below `top`."""
    real = Reader.read_into

    def read_into(self: Reader, item: Item, view: memoryview, offset: int) -> None:
        action(item.path.removeprefix(top))
        real(self, item, view, offset)

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "read_into", read_into)
        patched.setattr(Reader, "read_run", _read_one_by_one)
        yield


def _read_one_by_one(self: Reader, item: Item, view: memoryview, offsets: range, length: int) -> None:
    """Read each segment of a run by itself, so that something can happen in between."""
    for at, offset in zip(range(0, len(view), length), offsets, strict=True):
        self.read_into(item, view[at : at + length], offset)
