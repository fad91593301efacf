"""Gathers verdicts on entries into messages within the limits of a frame."""

from collections.abc import Iterator

from filestreamer.wire import limits
from filestreamer.wire.messages import EntryVerdict, Standing, Verdicts

_BYTES: int = limits.FRAME_BYTES // 2
"""The paths and reasons of one message."""


class VerdictMessages:
    """The verdicts that were not sent yet, in order."""

    def __init__(self) -> None:
        self._entries: list[EntryVerdict] = []
        self._bytes = 0
        self._full: list[Verdicts] = []

    def add(self, verdict: EntryVerdict) -> None:
        """Add the verdict on the next entry, or on one that would be removed."""
        last = self._entries[-1] if self._entries else None
        if (
            last is not None
            and verdict.standing is not Standing.EXTRA
            and (last.standing, last.reason) == (verdict.standing, verdict.reason)
            and last.file_id + last.files == verdict.file_id
        ):
            self._entries[-1] = last._replace(files=last.files + verdict.files)
            return
        size = len(verdict.path) + 4 * len(verdict.reason)
        if len(self._entries) == limits.VERDICTS_PER_FRAME or (self._entries and self._bytes + size > _BYTES):
            self._close()
        self._entries.append(verdict)
        self._bytes += size

    def _close(self) -> None:
        if self._entries:
            self._full.append(Verdicts(tuple(self._entries)))
            self._entries, self._bytes = [], 0

    def take_full(self) -> Iterator[Verdicts]:
        """Yield the messages that are full."""
        full, self._full = self._full, []
        yield from full

    def take(self) -> Iterator[Verdicts]:
        """Yield all that was added."""
        self._close()
        yield from self.take_full()
