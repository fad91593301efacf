"""When a transfer last got on: one definition for both ends (proto/README.md, "Liveness"). Pure: it has no clock.

Each end counts what it sees, and tells a `ProgressClock`. What counts was never there before: a count makes progress
where it passes the highest value that it ever had. So what is only said again, sent again, or opened again makes none.
Where something is lost for an honest reason (a connection in the middle of a large chunk, a receiver that was
restarted) it may count once more, a few times in a row; the next chunk that is done for good renews that.
"""

from typing import Final

from filestreamer.wire import limits

FRESH_STARTS: Final = 2
"""How often all may be counted again, before anything more is done than ever before."""
LOSSES: Final = 4
"""How often bytes under way may be lost and counted again, before that."""


def sync_seconds(size_bytes: int, entries: int) -> float:
    """Return how long a sync of so much counts as progress."""
    return (size_bytes + limits.SYNC_ENTRY_BYTES * entries) / limits.SYNC_BYTES_PER_SECOND


class ProgressClock:
    """The moment (`at`) of the last progress of one transfer, as one end sees it. For one thread."""

    def __init__(self, now: float) -> None:
        self.at = now
        self._marks: dict[str, int] = {}
        self._bases: dict[str, int] = {}
        self._done_most = 0
        self._fresh_starts = FRESH_STARTS
        self._losses = LOSSES

    def reach(self, what: str, count: int, now: float, *, most: int | None = None, step: int = 1) -> bool:
        """Take in a count, of which no more than `most` makes sense; whether it is progress.

        It is where it has grown by `step` since it last was, or has come to `most`.
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
        """Take in how much is done for good: acknowledged, or held and equal; whether it is progress."""
        if count > self._done_most:
            self._done_most, self._fresh_starts, self._losses = count, FRESH_STARTS, LOSSES
        if not self.reach("done", count, now):
            return False
        self._marks.pop("under_way", None)
        return True

    def under_way(self, count: int, now: float) -> bool:
        """Take in how many bytes the receiver has of chunks that are not done: more than since the last one was.

        A large chunk that comes slowly is progress, too.
        """
        return self.reach("under_way", count, now)

    def wait(self, now: float) -> None:
        """Take in that a pipe waits, here or at the peer: that is whoever reads or writes it, and counts."""
        self.at = now

    def sync(self, begun_at: float, seconds: float, now: float) -> None:
        """Take in that what began to be synced at `begun_at` still is: that counts for so many seconds."""
        self.at = max(self.at, min(now, begun_at + seconds))

    def lose(self, count: int) -> None:
        """Let bytes that were under way on a lost connection be counted again, if it was not too often.

        So many are still under way, on others.
        """
        if self._marks.get("under_way", 0) > count and self._losses:
            self._losses -= 1
            self._marks["under_way"] = count

    def start_over(self, **bases: int) -> None:
        """Let everything be counted again, if it was not too often: the receiver has forgotten it.

        Counts begin at 0 again; those that go on are given with the value that they have. Where nothing was done,
        nothing is lost: to be told so again and again makes no progress.
        """
        if self._marks.get("done") and self._fresh_starts:
            self._fresh_starts -= 1
            self._marks, self._bases = {}, bases

    def reopen(self, done: int) -> None:
        """Let what the receiver misses after Finish be counted again: only `done` is."""
        self._marks["done"] = done
        self._marks.pop("under_way", None)
