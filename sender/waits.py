"""Says what a transfer that makes no progress waits for: the end of "gave up after 60 s, waiting for ..."."""

import time

from filestreamer.settings.sizes import format_size
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.sockets.control_link import ControlLink
from sender.dispatch.manifest import Manifest
from sender.dispatch.send_queue import SendQueue
from sender.network.connections import DataConnections
from sender.network.connector import Connector
from sender.network.peer import Peer


class Waits:
    """Looks at one transfer. For the coordinator's thread."""

    def __init__(
        self,
        *,
        counters: TransferCounters,
        manifest: Manifest,
        queue: SendQueue,
        connections: DataConnections,
        connector: Connector,
        link: ControlLink,
        peer: Peer,
    ) -> None:
        self._counters = counters
        self._manifest = manifest
        self._queue = queue
        self._connections = connections
        self._connector = connector
        self._link = link
        self._peer = peer

    def waits_for(self, peer_progress: m.Progress | None, since: float) -> str:
        """Return what the transfer waits for `since` then (monotonic); `peer_progress` is the receiver's last one."""
        if self._link.channel is None:
            return self._connector.waits_for()
        waited = self._waits_for_transfer(peer_progress, since)
        silent_seconds = time.monotonic() - self._peer.heard_at
        if silent_seconds > 2 * limits.HEARTBEAT_SECONDS:
            waited += f"; the receiver was last heard {silent_seconds:.0f} s ago"
        return waited

    def _waits_for_transfer(self, peer_progress: m.Progress | None, since: float) -> str:
        # Finish may be said ahead of acknowledgements.
        if self._link.state in ("finishing", "complete") and self._queue.all_done:
            return self._sync(peer_progress)
        queue = self._queue
        unacknowledged_bytes, connections = self._connections.unacknowledged()
        if unacknowledged_bytes and connections > self._connections.reading:
            return self._acknowledgements(unacknowledged_bytes, connections, peer_progress, since)
        if queue.unanswered or (self._manifest.parts and self._link.state in ("offer", "manifest")):
            rehashed_bytes = peer_progress.rehashed_bytes if peer_progress is not None else 0
            found = f", which has re-hashed {format_size(rehashed_bytes)}" if rehashed_bytes else ""
            return f"the receiver's answer to the offer{found}"
        if queue.remaining and not self._connections.reading:
            return f"data connections to {self._link.channel.peer if self._link.channel else 'the receiver'}"
        stream = self._manifest.stream
        if stream is not None:
            return f"the program that writes to {stream.path}"
        if self._connections.reading:
            return f"the source, which {self._connections.reading} connections read"
        if not self._manifest.is_listed:
            return "the source: its directories are being listed"
        return "the source: files that changed meanwhile are read again"

    def _acknowledgements(
        self, unacknowledged_bytes: int, connections: int, peer_progress: m.Progress | None, since: float
    ) -> str:
        last = max((each.finished_at or 0.0 for each in self._counters.connections), default=0.0)
        now = time.monotonic()
        when = f"the last one came {now - last:.0f} s ago" if last else f"none came in {now - since:.0f} s"
        on = "1 connection" if connections == 1 else f"{connections} connections"
        waited = f"acknowledgements of {format_size(unacknowledged_bytes)} on {on}; {when}"
        if peer_progress is not None and peer_progress.phase is m.Phase.WAITING:
            waited += "; the receiver waits for the program that reads its output"
        return waited

    def _sync(self, peer_progress: m.Progress | None) -> str:
        if peer_progress is not None and peer_progress.phase is m.Phase.WAITING:
            return "the program that reads the receiver's output"
        return "the receiver to sync the files and put them in place"
