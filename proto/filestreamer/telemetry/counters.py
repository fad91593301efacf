"""Plain numbers of what a transfer does: the source of the progress display, the log lines, the result and the metrics.

Each field is written by one thread, without a lock: a reader may see one field a moment older than another.
"""

import os
import socket
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

from filestreamer.process.log import printable
from filestreamer.telemetry import tcp_info
from filestreamer.telemetry.bottleneck import Bottleneck, bottleneck
from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.wire.errors import Partial
from filestreamer.wire.messages import (
    SENDER_STAGES,
    Finish,
    LeftOut,
    LeftOutCount,
    Progress,
    SkipKind,
    Standing,
)
from filestreamer.wire.messages import Phase as WirePhase

Phase = Literal["offering", "moving", "syncing", "complete"]

ParallelismReason = Literal["long_path", "try_more", "no_gain", "try_fewer", "needed"]
"""Why a sender changes the number of connections (sender.dispatch.parallelism)."""

LATENCY_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the buckets in which the time of a chunk is counted."""

SKIPPED_MAX: Final = 100
"""Skipped entries of a transfer that are listed; all of them are counted."""
WARNINGS_MAX: Final = 20
"""Different warnings of a transfer that are kept."""


class Skipped(NamedTuple):
    """An entry that was not moved, and why."""

    path: str
    reason: str
    kind: SkipKind
    name: bytes = b""
    """Its path at the destination."""
    is_told: bool = False
    """Whether the peer has told it."""


class Latencies:
    """How long chunks took to be acknowledged: a count for each bucket, and one beyond the last.

    The sender counts from when the queue gives a chunk to a connection, the receiver from its header.
    """

    __slots__ = ("counts", "sum_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_SECONDS) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float, chunks: int = 1) -> None:
        """Count one chunk, or those of a run."""
        self.counts[bisect_left(LATENCY_SECONDS, seconds)] += chunks
        self.sum_seconds += seconds * chunks


class StageClock:
    """Measures how long the thread of a connection is in each stage; at any moment it is in one or none.

    Stages are entered for each block, so that the times are right while a large chunk is under way.
    """

    __slots__ = ("_at", "_seconds", "_stage")

    def __init__(self, seconds: dict[str, float]) -> None:
        """Add times to `seconds`, which has a key for every stage."""
        self._seconds = seconds
        self._stage: str | None = None
        self._at = 0.0

    def enter(self, stage: str | None) -> str | None:
        """Enter another stage, or none; return the stage that was left."""
        now = time.perf_counter()
        ended = self._stage
        if ended is not None:
            self._seconds[ended] += now - self._at
        self._stage, self._at = stage, now
        return ended

    @property
    def stage(self) -> str | None:
        """The stage of now. Any thread may ask."""
        return self._stage

    def drop(self) -> None:
        """Enter no stage; the time in the current one is not counted."""
        self._stage = None


@dataclass(slots=True, eq=False, repr=False)
class ConnectionCounters:
    """One data connection. Bytes are payload bytes, without frames and digests."""

    connection_id: int
    moved_bytes: int = 0
    """Sender: handed to the kernel. Receiver: read from the socket."""
    acknowledged_bytes: int = 0
    abandoned_bytes: int = 0
    """Moved on a connection that ended before they were acknowledged, or moved again: the receiver had them already."""
    hole_bytes: int = 0
    """Bytes of acknowledged chunks that lie in holes: they were not moved."""
    chunks: int = 0
    """Chunks acknowledged."""
    reconnects: int = 0
    resent_chunks: int = 0
    mismatches: int = 0
    """Chunks whose digest at the receiver differed from the sender's."""
    stolen_chunks: int = 0
    up: bool = False
    latencies: Latencies = field(default_factory=Latencies)
    link: tuple[socket.socket | None, int] = (None, 0)
    """The open socket, for TCP_INFO, and the TCP segments that earlier sockets have sent again. One tuple, so that a
    reader never sees one without the other."""
    finished_at: float | None = None
    """Monotonic time of the last acknowledgement."""
    is_dismissed: bool = False
    """Whether the connection ended in order before the transfer, because fewer connections are enough."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds in each stage of wire.messages.SENDER_STAGES or RECEIVER_STAGES."""

    @property
    def bytes_in_flight(self) -> int:
        """Bytes that were moved, and are neither acknowledged nor abandoned."""
        return max(0, self.moved_bytes - self.acknowledged_bytes - self.abandoned_bytes)

    def connect(self, opened: socket.socket) -> None:
        """Note that the connection is up on this socket."""
        self.link = (opened, self.link[1])
        self.up, self.is_dismissed = True, False

    def disconnect(self) -> None:
        """Note that the connection is down, before its socket is closed.

        Bytes that were moved and not acknowledged are abandoned.
        """
        opened, retransmits = self.link
        if opened is not None and (info := tcp_info.read(opened)):
            retransmits += info.retransmits
        self.link, self.up = (None, retransmits), False
        self.abandoned_bytes = self.moved_bytes - self.acknowledged_bytes


class JobCounts(NamedTuple):
    """What the shards of a tree have moved that are finished."""

    name: str
    shard: str
    """The one of this transfer, as INDEX/COUNT."""
    shards_finished: int
    files: int
    bytes: int


@dataclass(slots=True, eq=False, repr=False)
class TransferCounters:
    """One transfer, on either side."""

    transfer_id: bytes
    name: str
    """The name of the file, to be shown; never a metric label."""
    stages: tuple[str, ...] = ()
    """The stages of this end's connections: SENDER_STAGES or RECEIVER_STAGES."""
    user: str = ""
    """Receiver: whose transfer it is; empty where the receiver has no users."""
    label: str = ""
    """Its label in metrics, and on the page: `History` gives it one that no other transfer has there."""
    size_bytes: int = 0
    """Bytes of all files that were listed, holes included."""
    zero_bytes: int = 0
    """Bytes of chunks that are holes entirely: told, and not sent."""
    is_growing: bool = False
    """Whether size_bytes and chunks may still grow: a stream that has not ended."""
    is_waiting: bool = False
    """Receiver: whether the reader of the pipe takes nothing. Sender: whether the stream brings nothing."""
    passing_seconds: float = 0.0
    """Receiver: seconds spent writing to a pipe in order, while the connections waited for it."""
    held_bytes: int = 0
    """Bytes that the receiver had before, as equal digests prove."""
    sync_seconds: float = 0.0
    """Receiver: seconds that it took, after the last byte, to put the files in place durably."""
    unchecked_bytes: int = 0
    """Bytes of files that were taken for equal because of size and mtime."""
    skipped: list[Skipped] = field(default_factory=list)
    """The first SKIPPED_MAX entries that were skipped; an entry that is a failure displaces one that is not."""
    skipped_kinds: dict[SkipKind, int] = field(default_factory=dict)
    """How many entries were skipped, by kind."""
    told_kinds: dict[SkipKind, int] = field(default_factory=dict)
    """How many of them the peer has told: the receiver by Declined, the sender by Finish."""
    left_files: int = 0
    """Entries that exist at the destination and differ, and were left as they are (--existing): no failure."""
    deleted_files: int = 0
    """Entries that were removed at the destination (--delete)."""
    undeletable_files: int = 0
    """Entries that were to be removed, and could not be."""
    verdicts: dict[Standing, int] | None = None
    """How many entries stand how at the destination, in a dry run; None: this is no dry run."""
    tolerated: frozenset[SkipKind] = frozenset()
    """Kinds that do not count as failures (--tolerate)."""
    warnings: list[str] = field(default_factory=list)
    """What was done otherwise than the user might expect, each told once: no failure. The first WARNINGS_MAX."""
    rehashed_bytes: int = 0
    hashing_bytes: int = 0
    """Receiver: rehashed bytes, including those of segments that are being rehashed."""
    forgotten_bytes: int = 0
    """Bytes acknowledged by a receiver that was restarted since; those that it kept count as held."""
    forgotten_hole_bytes: int = 0
    """Bytes in holes of the chunks that these belong to."""
    files: int = 1
    passed_over_files: int = 0
    """Sender: entries that the walk has found and that are not listed, as a filter or another shard has them."""
    chunks: int = 0
    chunk_size: int = 0
    chunk_map: ChunkMap = field(default_factory=ChunkMap)
    phase: Phase = "offering"
    peer_stages: tuple[int, ...] = ()
    """The peer's stages in microseconds, from its last Progress; () before the first one."""
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    is_replaced: bool = False
    """Another transfer goes on with this one, which has no result; `telemetry.history` has its totals."""
    status: str | None = None
    """How the transfer ended (telemetry.result.Status); None while it runs."""
    job: JobCounts | None = None
    """What all shards of a tree have moved, once this one is finished; None: this is no shard of a tree."""
    failed_by_others: int = 0
    """Receiver, where this shard was the last one of its tree: how many entries the others have skipped as failures."""
    last_progress_at: float = field(default_factory=time.monotonic)
    """Monotonic time of the last progress, as wire.progress_clock defines it: the time that --give-up-after counts."""
    connections: list[ConnectionCounters] = field(default_factory=list)
    parallelism: int = 0
    """Sender: the number of connections that get chunks."""
    parallelism_changes: dict[ParallelismReason, int] = field(
        default_factory=lambda: dict.fromkeys(get_args(ParallelismReason), 0)
    )

    @property
    def acknowledged_bytes(self) -> int:
        """Bytes that the receiver has written and verified in this transfer."""
        return sum(connection.acknowledged_bytes for connection in self.connections) - self.forgotten_bytes

    @property
    def data_bytes(self) -> int:
        """Bytes of all files, without those that are known to lie in holes."""
        hole_bytes = sum(connection.hole_bytes for connection in self.connections) - self.forgotten_hole_bytes
        return max(0, self.size_bytes - self.zero_bytes - hole_bytes)

    @property
    def there_bytes(self) -> int:
        """Bytes that the receiver had before: held or unchecked."""
        return self.held_bytes + self.unchecked_bytes

    @property
    def skipped_files(self) -> int:
        """How many entries were skipped."""
        return sum(self.skipped_kinds.values())

    @property
    def failed_files(self) -> int:
        """How many entries were skipped for a reason that is a failure, or could not be removed."""
        skipped = sum(count for kind, count in self.skipped_kinds.items() if self.is_failure(kind))
        return skipped + (self.undeletable_files if self.is_failure(SkipKind.DECLINED) else 0)

    def is_failure(self, kind: SkipKind) -> bool:
        """Whether entries skipped for this reason make the exit code 5."""
        return kind is not SkipKind.SPECIAL and kind not in self.tolerated

    def leave_out(self, skipped: Skipped) -> None:
        """Count a skipped entry. For one thread at a time."""
        self.skipped_kinds[skipped.kind] = self.skipped_kinds.get(skipped.kind, 0) + 1
        if skipped.is_told:
            self.told_kinds[skipped.kind] = self.told_kinds.get(skipped.kind, 0) + 1
        is_failure = self.is_failure(skipped.kind)
        if len(self.skipped) == SKIPPED_MAX and is_failure:
            for at in [at for at, each in enumerate(self.skipped) if not self.is_failure(each.kind)][-1:]:
                del self.skipped[at]
        if len(self.skipped) < SKIPPED_MAX:
            self.skipped.append(skipped)

    def count_verdict(self, standing: Standing) -> None:
        """Count an entry in a dry run, by how it stands at the destination."""
        assert self.verdicts is not None
        self.verdicts[standing] = self.verdicts.get(standing, 0) + 1

    def warn(self, text: str) -> bool:
        """Keep a warning; return whether it is new, and to be logged. For one thread at a time."""
        is_new = text not in self.warnings and len(self.warnings) < WARNINGS_MAX
        if is_new:
            self.warnings.append(text)
        return is_new

    def left_out_fields(self) -> tuple[tuple[LeftOutCount, ...], tuple[LeftOut, ...]]:
        """Return the two fields of Finish about skipped entries: those that this end has found itself."""
        own = self._own_kinds()
        counts = tuple(LeftOutCount(kind, own[kind]) for kind in sorted(own))
        return counts, tuple(LeftOut(each.name, each.kind, each.reason) for each in self.skipped if not each.is_told)

    def take_left_out(self, finish: Finish) -> None:
        """Take the skipped entries from the sender's last Finish, beside those that this receiver has found itself."""
        self.skipped_kinds = self._own_kinds()
        self.told_kinds = {count.kind: count.entries for count in finish.left_out_counts}
        for kind, count in self.told_kinds.items():
            self.skipped_kinds[kind] = self.skipped_kinds.get(kind, 0) + count
        listed = [each for each in self.skipped if not each.is_told]
        self.skipped = listed + [
            Skipped(printable(os.fsdecode(each.path)), each.reason, each.kind, each.path, is_told=True)
            for each in finish.left_out[: SKIPPED_MAX - len(listed)]
        ]

    def _own_kinds(self) -> dict[SkipKind, int]:
        """Return how many entries this end itself has found to be skipped, by kind."""
        left = {kind: count - self.told_kinds.get(kind, 0) for kind, count in self.skipped_kinds.items()}
        return {kind: count for kind, count in left.items() if count}

    def shortfall(self) -> Partial | None:
        """Return the error of a transfer that is complete but for skipped entries; None where none is a failure."""
        if not self.failed_files:
            return self._shortfall_of_others()
        first = next((each for each in self.skipped if self.is_failure(each.kind)), None)
        kinds = [
            f"{count} {kind.name.lower()}"
            for kind, count in sorted(self.skipped_kinds.items())
            if self.is_failure(kind)
        ]
        example = f", the first: {first.path}: {first.reason}" if first is not None else ""
        if self.undeletable_files:
            kinds.append(f"{self.undeletable_files} not removed")
        entries = "1 entry was" if self.failed_files == 1 else f"{self.failed_files} entries were"
        return Partial(f"{entries} skipped ({', '.join(kinds)}){example}; all other files are complete")

    def _shortfall_of_others(self) -> Partial | None:
        """Return the error of a shard that completes a tree of which others have skipped something."""
        if not self.failed_by_others:
            return None
        entries = "1 entry was" if self.failed_by_others == 1 else f"{self.failed_by_others} entries were"
        return Partial(f"{entries} skipped by other shards, whose results name them; all other files are complete")

    def start_over(self) -> None:
        """Reset what was acknowledged and held, as a restarted receiver answers from the start."""
        self.held_bytes = self.unchecked_bytes = self.zero_bytes = 0
        self.forgotten_bytes += self.acknowledged_bytes
        self.forgotten_hole_bytes = sum(connection.hole_bytes for connection in self.connections)

    def add_connection(self, connection_id: int) -> ConnectionCounters:
        """Return the counters of a data connection, which are new unless it was there before."""
        for known in self.connections:
            if known.connection_id == connection_id:
                return known
        counters = ConnectionCounters(connection_id, stage_seconds=dict.fromkeys(self.stages, 0.0))
        self.connections.append(counters)
        return counters

    def stage_microseconds(self) -> tuple[int, ...]:
        """Sum up the time of all connections in each stage, in the form of Progress."""
        spent = {stage: sum(item.stage_seconds[stage] for item in self.connections) for stage in self.stages}
        # All connections wait for the sync at the end, and for a pipe that takes bytes in order: both count as writing.
        if self.sync_seconds:
            spent["write"] += self.sync_seconds * len(self.connections)
        if self.passing_seconds:
            waited = min(spent["receive"], self.passing_seconds * len(self.connections))
            spent["receive"] -= waited
            spent["write"] += waited
        return tuple(round(1e6 * seconds) for seconds in spent.values())

    @property
    def bottleneck(self) -> Bottleneck | None:
        """What the transfer is bound by; None until both ends have reported their stages."""
        mine = self.stage_microseconds()
        if self.stages == SENDER_STAGES:
            return bottleneck(mine, self.peer_stages)
        return bottleneck(self.peer_stages, mine)

    def heartbeat(self) -> Progress:
        """Make the Progress message that the peer gets every few seconds."""
        phase = {"offering": WirePhase.OFFERING, "syncing": WirePhase.SYNCING}.get(self.phase, WirePhase.MOVING)
        if self.is_waiting:
            phase = WirePhase.WAITING
        rehashed_bytes = max(self.rehashed_bytes, self.hashing_bytes)
        return Progress(
            phase,
            self.acknowledged_bytes,
            rehashed_bytes,
            self.stage_microseconds(),
            self.deleted_files,
            passed_over=self.passed_over_files,
        )

    def totals(self) -> dict[str, int]:
        """Sum up over the connections what only ever grows, also where a receiver is restarted."""
        return {
            "moved_bytes": self.moved_bytes,
            "acknowledged_bytes": sum(item.acknowledged_bytes for item in self.connections),
            "digest_mismatches": sum(item.mismatches for item in self.connections),
            "chunks_resent": sum(item.resent_chunks for item in self.connections),
            "chunks_stolen": sum(item.stolen_chunks for item in self.connections),
        }

    @property
    def moved_bytes(self) -> int:
        return sum(connection.moved_bytes for connection in self.connections)

    @property
    def bytes_in_flight(self) -> int:
        return sum(connection.bytes_in_flight for connection in self.connections)

    @property
    def seconds(self) -> float:
        """Seconds since the start; fixed once the transfer has ended."""
        return self._now - self.started_at

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last progress; fixed once the transfer has ended."""
        return max(0.0, self._now - self.last_progress_at)

    @property
    def _now(self) -> float:
        return self.ended_at if self.ended_at is not None else time.monotonic()
