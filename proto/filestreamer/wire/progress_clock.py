"""When a transfer last made progress: one definition for both ends (proto/README.md, "Liveness").

Each end counts what it sees, and reports the counts to a `ProgressClock`. A count makes progress where it exceeds the
highest value that it ever had. So a peer makes no progress by repeating a message, sending a chunk again, or opening
another connection.

Where bytes are lost for an honest reason (a connection in the middle of a large chunk, a receiver that was restarted),
they may be counted again, but only a few times before one more chunk is done for good.

Pure: the caller has the clock.
"""

from typing import Final, NamedTuple

from filestreamer.wire import limits

FRESH_STARTS: Final = 2
"""How often all counts may start again before more is done than ever before."""
LOSSES: Final = 4
"""How often bytes under way may be lost and counted again before that."""


class Patience(NamedTuple):
    """How long an end waits without progress before it gives up, in seconds."""

    first_seconds: float
    """Until the first byte of the run is acknowledged."""
    later_seconds: float

    def seconds(self, *, has_begun: bool) -> float:
        """Return how long to wait; `has_begun`: a byte was acknowledged, or nothing had to be sent."""
        return self.later_seconds if has_begun else self.first_seconds


def sync_seconds(size_bytes: int, entries: int) -> float:
    """Return how many seconds a sync of so many bytes and entries counts as progress."""
    return (size_bytes + limits.SYNC_ENTRY_BYTES * entries) / limits.SYNC_BYTES_PER_SECOND


class ProgressClock:
    """Knows the moment of the last progress (`at`) of one transfer, as one end sees it. For one thread."""

    def __init__(self, now: float) -> None:
        self.at = now
        self._marks: dict[str, int] = {}  # the highest value of each count
        self._bases: dict[str, int] = {}  # what each count began with at the last fresh start
        self._done_most = 0  # the highest value of "done", fresh starts included
        self._fresh_starts = FRESH_STARTS
        self._losses = LOSSES

    def reach(self, what: str, count: int, now: float, *, most: int | None = None, step: int = 1) -> bool:
        """Report a count; return whether it is progress.

        It is progress where it has grown by `step` since it last was, or has reached `most`, the highest value that
        makes sense.
        """
        mark = self._marks.get(what, 0)
        count -= self._bases.get(what, 0)
        if most is not None and count >= most:
            count, step = most, 1
        if count < mark + step:
            return False
        self._marks[what], self.at = count, now
        return True

    def done(self, count: int, now: float) -> bool:
        """Report how much is done for good (acknowledged, or held and equal); return whether it is progress."""
        if count > self._done_most:
            self._done_most, self._fresh_starts, self._losses = count, FRESH_STARTS, LOSSES
        if not self.reach("done", count, now):
            return False
        self._forget_under_way()
        return True

    def _forget_under_way(self) -> None:
        self._marks.pop("under_way", None)
        self._marks.pop("read", None)

    def under_way(self, count: int, now: float, *, read: int = 0) -> bool:
        """Report how many bytes the receiver has of chunks that are not done; return whether it is progress.

        A sender reports the bytes that the receiver's kernel has, and `read`, those that the receiver says it has read.
        With this, a large chunk that comes slowly is progress. The highest values are forgotten when a chunk is done.
        """
        gets_on = [self.reach("under_way", count, now), self.reach("read", read, now)]
        return any(gets_on)

    def wait(self, now: float) -> None:
        """Report that a pipe waits, here or at the peer. It counts, as neither end can speed up the program."""
        self.at = now

    def sync(self, begun_at: float, seconds: float, now: float) -> None:
        """Report that a sync is going on since `begun_at`; it counts as progress for its first `seconds` seconds."""
        self.at = max(self.at, min(now, begun_at + seconds))

    def lose(self, count: int) -> None:
        """Let the bytes under way on a connection that was lost be counted again, if that was not too often.

        `count` bytes are still under way on other connections.
        """
        if self._marks.get("under_way", 0) > count and self._losses:
            self._losses -= 1
            self._marks["under_way"] = count
            self._marks.pop("read", None)

    def start_over(self, **bases: int) -> None:
        """Let everything be counted again, if that was not too often, as the receiver no longer knows the transfer.

        Counts start at 0 again; `bases` has the present value of those that do not. Nothing changes where nothing was
        done: then nothing is lost, and a receiver that says so again and again must not keep the transfer alive.
        """
        if self._marks.get("done") and self._fresh_starts:
            self._fresh_starts -= 1
            self._marks, self._bases = {}, bases

    def reopen(self, done: int) -> None:
        """Let chunks that the receiver needs after Finish count as progress again; only `done` bytes are done now."""
        self._marks["done"] = done
        self._forget_under_way()
