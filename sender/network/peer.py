"""What all connections of a transfer know of the receiver: whether it is alive, and the last error."""

import threading
import time
from collections.abc import Iterable
from typing import Any

from filestreamer.wire import limits
from filestreamer.wire.errors import Code, FilestreamerError, Refused
from filestreamer.wire.sockets.transport import Channel


class Peer:
    """Whether the receiver is alive, and the last error of a connection. Any thread may call."""

    def __init__(self, log: Any, last_trouble: FilestreamerError | None = None) -> None:
        self.last_trouble = last_trouble
        self.trouble_at = time.monotonic() if last_trouble is not None else 0.0
        """The error of the connection that failed last, if any: the likely reason why there is no progress."""
        self._log = log
        self._mutex = threading.Lock()  # protects the fields below
        self._channels: set[Channel] = set()  # those that are open
        self._has_lost_data = False
        self._is_limit_logged = False
        self._starved = frozenset[int]()
        self._starved_at = 0.0

    def opened(self, channel: Channel) -> None:
        """Take in that a connection is up."""
        with self._mutex:
            self._channels.add(channel)

    def closed(self, channel: Channel) -> None:
        """Take in that a connection is closed."""
        with self._mutex:
            self._channels.discard(channel)

    @property
    def heard_at(self) -> float:
        """When the last byte came over a connection that is open now (monotonic); 0.0 if there is none."""
        with self._mutex:
            return max((channel.heard_at for channel in self._channels), default=0.0)

    def is_heard(self) -> bool:
        """Return whether any open connection received a byte within DEAD_SECONDS."""
        return time.monotonic() - self.heard_at <= limits.DEAD_SECONDS

    def take_starved(self, connection_ids: Iterable[int]) -> None:
        """Take in over which data connections nothing comes to a receiver that reads them (`Progress.starved`)."""
        with self._mutex:
            self._starved, self._starved_at = frozenset(connection_ids), time.monotonic()

    def starves(self, connection_id: int) -> bool:
        """Whether nothing comes over a data connection to a receiver that reads it, as the receiver last said."""
        with self._mutex:  # what it said long ago may be over
            is_recent = time.monotonic() - self._starved_at <= limits.DEAD_SECONDS / 2
            return is_recent and connection_id in self._starved

    def note_trouble(self, error: FilestreamerError) -> None:
        """Keep the error of a connection, for the message of a transfer that gives up."""
        # Its traceback would keep alive the buffers of all the frames in it.
        self.last_trouble = error.with_traceback(None)
        self.trouble_at = time.monotonic()

    def data_connection_lost(self, connection_id: int, error: FilestreamerError) -> None:
        """Keep the error of a data connection, and log it."""
        self.note_trouble(error)
        # A receiver that has no room for all connections refuses each of them, whenever it tries again.
        is_limit = isinstance(error, Refused) and error.code is Code.LIMIT
        with self._mutex:
            self._has_lost_data = True
            is_known = is_limit and self._is_limit_logged
            self._is_limit_logged = self._is_limit_logged or is_limit
        log = self._log.debug if is_known else self._log.warning
        log("connection_lost", connection=connection_id, reason=str(error))

    def take_lost_data(self) -> bool:
        """Return whether a data connection was lost since the last call."""
        with self._mutex:
            has_lost, self._has_lost_data = self._has_lost_data, False
        return has_lost
