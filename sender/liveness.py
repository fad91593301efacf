"""When the transfer made progress last, and when it gives up (proto/README.md, "Liveness").

`filestreamer.wire.progress_clock` defines progress; this module has the counts of the sender.
"""

import time
from typing import Final

from filestreamer.process.backoff import Backoff
from filestreamer.settings.sizes import format_size
from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import Code, TransferFailed
from filestreamer.wire.progress_clock import Patience, ProgressClock, sync_seconds
from filestreamer.wire.sockets.control_link import ControlLink
from sender.dispatch.manifest import Manifest
from sender.dispatch.send_queue import SendQueue
from sender.network.connections import DataConnections
from sender.network.connector import Connector
from sender.network.peer import Peer
from sender.presence import Presence
from sender.waits import Waits

SMALL_CHUNK_BYTES: Final = 64 * limits.KIB
"""No smaller chunks are advised where no connection lasts for one,"""
SMALLER: Final = 16
"""but chunks so many times smaller."""


class Liveness:
    """The clock of one transfer, and of those that continue it. For the coordinator's thread."""

    def __init__(
        self,
        *,
        counters: TransferCounters,
        manifest: Manifest,
        queue: SendQueue,
        connections: DataConnections,
        link: ControlLink,
        connector: Connector,
        peer: Peer,
        patience: Patience,
        before: "Liveness | None",
        job: str | None = None,
    ) -> None:
        """Begin to count; `before` is that of the transfer that this one continues, whose clock goes on."""
        self._patience = patience
        self._presence: Presence = before._presence if before is not None else Presence(job, time.monotonic())
        self._has_begun: bool = before is not None and before._has_begun
        """Whether a byte was acknowledged, or nothing had to be sent, in this transfer or an earlier one of the run."""
        self._peer_progress: m.Progress | None = None
        self._waits = Waits(
            counters=counters,
            manifest=manifest,
            queue=queue,
            connections=connections,
            connector=connector,
            link=link,
            peer=peer,
        )
        self._path_mtu = connector.path_mtu
        self.backoff: Backoff = before.backoff if before is not None else Backoff()
        """How long a transfer waits before it begins again; it is reset when a chunk is done."""
        self._clock: ProgressClock = before._clock if before is not None else ProgressClock(time.monotonic())
        self._counters = counters
        self._manifest = manifest
        self._queue = queue
        self._connections = connections
        self._link = link
        self._peer = peer
        self._peer_rehashed_bytes = 0
        self._peer_deleted = 0
        self._finished_at: float | None = None
        """When Finish was said, if there was no other progress since."""
        self._reopened_chunks = 0
        """How many chunks the receiver has missed after Finish, all times together."""
        self._fewest_missing: int | None = None
        """The fewest chunks that it has missed at a time."""

    # --- what happens

    def take_progress(self, message: m.Progress) -> None:
        """Take in how far the receiver is: it re-hashes, syncs, or waits for the reader of its pipe."""
        self._peer_progress = message
        self._peer_rehashed_bytes = message.rehashed_bytes
        self._peer_deleted = message.deleted if self._link.state == "finishing" else 0
        now = time.monotonic()
        if message.phase is m.Phase.WAITING and self._queue.is_in_order:
            self._clock.wait(now)
        if message.phase is m.Phase.SYNCING and self._link.state == "finishing" and self._finished_at is not None:
            seconds = sync_seconds(self._counters.data_bytes, self._manifest.files)
            self._clock.sync(self._finished_at, seconds, now)

    def finish(self) -> None:
        """Take in that Finish is said."""
        self._finished_at = self._finished_at or time.monotonic()
        self._has_begun = True

    def reopen(self, missing: int) -> None:
        """Take in how many chunks the receiver misses after Finish. Sending these may count as progress once more.

        It does while they are not more than all chunks together, and afterwards if they are fewer than ever before: a
        receiver that misses chunks again and again can't keep a transfer alive for ever.
        """
        self._reopened_chunks += missing
        fewest = self._fewest_missing
        if self._reopened_chunks <= self._queue.states.chunks or (fewest is not None and missing < fewest):
            self._clock.reopen(self._queue.states.done_count)
        self._fewest_missing = missing if fewest is None else min(missing, fewest)

    def start_over(self, *, is_tree: bool) -> None:
        """Take in that the receiver no longer knows this transfer, so that everything counts once more."""
        self.note_progress(time.monotonic())  # of what came since the last time
        self._peer_rehashed_bytes = 0
        if is_tree:  # a tree begins again, with counters at 0
            self._clock.start_over()
        else:
            self._clock.start_over(rehashed=self._counters.rehashed_bytes)

    # --- the clock

    def note_progress(self, now: float) -> None:
        """Report all counts that may have grown to the clock."""
        counters, clock, states = self._counters, self._clock, self._queue.states
        stream = self._manifest.stream
        # A receiver that reads slowly may have all of it in its kernel.
        reported = self._peer_progress.under_way_bytes if self._peer_progress is not None else 0
        read = min(reported, self._connections.unacknowledged()[0])
        under_way = self._connections.delivered_bytes
        if self._peer.take_lost_data():
            clock.lose(under_way)
        # Nothing is sent because the program that writes to standard input writes nothing: this transfer can't change
        # that.
        is_waiting = stream is not None and self._link.channel is not None and stream.is_waiting
        counters.is_waiting = is_waiting and states.done_count == states.chunks
        if counters.is_waiting:
            clock.wait(now)
        size_bytes = self._file_bytes()
        done = states.done_count - states.others
        is_chunk_done = clock.done(done, now)
        self._has_begun = self._has_begun or done > 0
        gets_on = [
            is_chunk_done,
            clock.under_way(under_way, now, read=read),
            clock.reach("listed", self._manifest.files, now),
            clock.reach("passed_over", counters.passed_over_files, now),
            clock.reach("answered", states.chunks - self._queue.unanswered, now),
            clock.reach("deleted", self._peer_deleted, now),
            clock.reach("rehashed", counters.rehashed_bytes, now, most=size_bytes),
            clock.reach(
                "peer_rehashed", self._peer_rehashed_bytes, now, most=size_bytes, step=limits.REHASH_STEP_BYTES
            ),
        ]
        if any(gets_on):
            if self._link.state != "finishing":
                self._finished_at = None
            if is_chunk_done:
                self.backoff.reset()
        counters.last_progress_at = clock.at

    def _file_bytes(self) -> int:
        """Return how many bytes may be hashed again: of a shard, all of the file, as the receiver may hash it all."""
        if self._queue.share.count > 1:
            return self._manifest.parts[0].items[0].entry.size
        return self._counters.size_bytes

    def check(self, now: float) -> None:
        """Raise TransferFailed(TIMEOUT, or BUSY) where there was no progress for longer than the user allows.

        Raises Absent where a job has had no receiver for so long that it has most likely ended for good.
        """
        most_seconds = self._patience.seconds(has_begun=self._has_begun)
        last = self._peer.last_trouble
        self._presence.check(
            now, is_connected=self._link.channel is not None, trouble=last, trouble_at=self._peer.trouble_at
        )
        if now - self._clock.at <= most_seconds:
            return
        seconds = f"{most_seconds:g} s"
        if last is not None and getattr(last, "code", None) is Code.BUSY:
            raise TransferFailed(Code.BUSY, f"gave up after {seconds}: {last}")
        waited = self._waits.waits_for(self._peer_progress, self._clock.at)
        suspicion = f"; {self._path_mtu.suspicion}" if self._path_mtu.suspicion else ""
        # An error from before the last progress is not the reason; nor is what became of connections that were shut
        # because packets are lost.
        is_reason = last is not None and self._peer.trouble_at > self._clock.at
        trouble = f" ({last})" if is_reason and not (suspicion and self._link.channel is not None) else ""
        raise TransferFailed(
            Code.TIMEOUT,
            f"gave up after {seconds} without progress, waiting for {waited}{trouble}{suspicion}; {self._advice()}",
        )

    def _advice(self) -> str:
        """Return what the user is to do after a transfer that has made no progress."""
        chunk_size = self._manifest.chunk_size
        # Connections are also lost where large packets are, or all of them: smaller chunks are no remedy for that. Nor
        # are they for an output, whose connections have a whole window under way.
        may_help = self._peer.is_heard() and not self._path_mtu.suspicion and not self._queue.is_in_order
        if may_help and self._connections.is_cut_short and chunk_size > SMALL_CHUNK_BYTES:
            smaller = max(chunk_size // SMALLER, SMALL_CHUNK_BYTES) // limits.KIB
            cause = f"no connection lasted for a chunk of {format_size(chunk_size)}"
            return f"{cause}: run the command again with a smaller one, such as --chunk-size {smaller}KiB"
        return "run the pipe again" if self._manifest.stream is not None else "run the same command again to resume"
