"""How long a sender has found no receiver. That of a job has most likely ended for good after a while."""

from typing import Final

from filestreamer.wire.errors import Absent, FilestreamerError, Refused

ABSENT_SECONDS: Final = 600.0
"""How long the sender of a job looks for its receiver: longer than a cluster takes to miss a node."""


class Presence:
    """When the receiver was there last: control was open, or was refused. For one thread."""

    def __init__(self, job: str | None, now: float) -> None:
        """Begin to count; without a `job` a receiver is never absent."""
        self._job = job
        self._seen_at = now

    def check(self, now: float, *, is_connected: bool, trouble: FilestreamerError | None, trouble_at: float) -> None:
        """Raise Absent where there was no receiver for too long.

        `is_connected`: control is open now. `trouble` is the last error of a connection, of the time `trouble_at`.
        """
        if is_connected:
            self._seen_at = now
        elif isinstance(trouble, Refused):
            self._seen_at = max(self._seen_at, trouble_at)
        if self._job is None or now - self._seen_at <= ABSENT_SECONDS:
            return
        raise Absent.looked_for("receiver", self._job, ABSENT_SECONDS, trouble)
