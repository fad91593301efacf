"""What one transfer has in a file: the chunks of its share, and no others."""

import itertools
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

from filestreamer.telemetry.chunk_map import ChunkMap
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Share
from receiver.disk.readable import InPlace
from receiver.disk.staging import Staging
from receiver.file.chunk_states import Delivery, Writer
from receiver.file.shared_file import File
from receiver.file.states import CLAIMED, FREE, HELD, HOLE, VERIFIED, WRITING, runs

MISSING_MOST: Final = 1 << 15
"""Runs of missing chunks that are told at once: a sender that has sent these hears of the others."""


class Answer(NamedTuple):
    """What the sender is to hear of some chunks of its share, as runs [start, stop) of their ordinals."""

    needed: list[tuple[int, int]]
    held: list[tuple[int, int]]


class FileShare:
    """What one transfer has in a file: the chunks of its share, and no others."""

    def __init__(self, file: File, share: Share) -> None:
        self.file = file
        self.share = share
        self.grid = file.grid
        self.chunks = share.chunks(file.grid.segments)
        self.chunk_map = ChunkMap(self.chunks)
        """Of the chunks of the share, by ordinal; written under the file's lock."""
        self._is_closed = False  # protected by the file's lock

    @property
    def content(self) -> Staging | InPlace:
        return self.file.content

    @property
    def ledger_writer(self) -> Self:
        """What notes chunks before they are acknowledged: it does, in the ledger."""
        return self

    @property
    def payload_bytes(self) -> int:
        """Bytes of the share that a sender sends, or that are here: all but those of chunks in holes."""
        runs = self.file.chunk_states.runs(HOLE, share=self.share)
        holes = sum(self.share.bytes_between(self.grid, start, stop) for start, stop in runs)
        return self.share.bytes_of(self.grid) - holes

    def begin_again(self) -> None:
        """Let what an earlier transfer of this share brought be compared, as everything that lies there."""
        with self.file.lock:
            self.file.chunk_states.begin_again(self.share)
            for start, stop in self.file.chunk_states.runs(HELD, share=self.share):
                for ordinal in range(start, stop):
                    self.chunk_map.add(ordinal, None)

    # --- chunks

    def position(self, segment: m.Segment) -> int | None:
        """Which segment of its file this is; None where it is none, or one of another share."""
        position = self.grid.index_of(segment.offset, segment.length)
        return position if position is not None and self.share.holds(position) else None

    def begin(self, position: int, writer: Writer) -> tuple[Delivery, Writer | None]:
        """Begin one segment; where the turn is WAIT, who has to leave first.

        Raises RemoteProtocolError after Finish, TransferFailed(SOURCE_CHANGED) where the file is complete already.
        """
        with self.file.lock:
            if self.file.chunk_states.state(position) != VERIFIED:
                if self._is_closed:
                    raise RemoteProtocolError(f"segment {position} was sent after Finish")
                if self.file.is_full:
                    reason = (
                        f"{self.content.path} is complete, and differs from the source, though not in size and mtime"
                    )
                    raise TransferFailed(Code.SOURCE_CHANGED, f"{reason}: remove it, or touch the source")
            was_held = self.file.chunk_states.state(position) == HELD
            turn = self.file.chunk_states.begin(position, writer)
            if turn is Delivery.WRITE:
                self.file.void(self.share)
            if was_held:  # the source has another chunk there by now
                self.chunk_map.remove(self.share.ordinal(position), was_held=True)
            return turn, self.file.chunk_states.writer(position)

    def deliver(self, position: int, writer: Writer, digest: bytes, computed: bytes, by: int) -> bool:
        """Settle a segment whose bytes connection `by` has brought; whether its digest was right."""
        with self.file.lock:
            was_written = self.file.chunk_states.writer(position) is writer
            is_good = self.file.chunk_states.deliver(position, writer, digest, computed)
            if was_written and is_good:
                self.chunk_map.add(self.share.ordinal(position), by)
            return is_good

    def write(self, view: memoryview, offset: int) -> None:
        """Write bytes of a segment that was begun. Raises TransferFailed: NO_SPACE, DESTINATION."""
        assert isinstance(self.content, Staging)  # nobody begins to write what is complete
        self.content.write(view, offset)

    def record(self, records: list[tuple[int, bytes]]) -> None:
        """Note (position, digest) of what was written, before it is acknowledged. Raises TransferFailed."""
        assert isinstance(self.content, Staging)
        self.content.record(records)

    def digest(self, position: int) -> bytes:
        """Return the digest of a chunk that is VERIFIED."""
        return self.file.chunk_states.digest(position)

    def abandon(self, writer: Writer) -> None:
        """Take back what a connection was writing."""
        with self.file.lock:
            self.file.chunk_states.abandon(writer)

    def rehashed(self, share: Share, start: int, digests: list[bytes]) -> Answer:
        """Settle claimed chunks of any share: held, or needed where the disk differs from what the ledger says."""
        answer = Answer([], [])
        with self.file.lock:
            for ordinal, digest in enumerate(digests, start):
                position = share.chunk(ordinal)
                was_claimed = self.file.chunk_states.state(position) == CLAIMED
                self.file.chunk_states.rehashed(position, digest)
                is_held = self.file.chunk_states.state(position) in (HELD, VERIFIED)
                if was_claimed and is_held and share == self.share:
                    self.chunk_map.add(ordinal, None)
                _extend(answer.held if is_held else answer.needed, ordinal)
        return answer

    # --- answers

    def answer(self) -> Answer:
        """Read what is needed and what is held now; what is claimed is told when it is re-hashed."""
        states = self.states()
        return Answer(list(runs(states, FREE, WRITING)), list(runs(states, HELD, VERIFIED)))

    def answers(self, file_id: int) -> Iterator[m.Needed | m.Held]:
        """Say so, message by message: of a file of many chunks there can be as many runs."""
        states = self.states()
        yield from self._needed(file_id, runs(states, FREE, WRITING))
        yield from self._held(file_id, runs(states, HELD, VERIFIED))

    def states(self) -> bytes:
        """Return the states of the chunks of the share as they are now, one byte each."""
        with self.file.lock:
            return self.file.chunk_states.states(self.share)

    def claimed(self) -> list[tuple[int, int]]:
        """Read which chunks are to be re-hashed, as runs of ordinals."""
        with self.file.lock:
            return list(self.file.chunk_states.runs(CLAIMED, share=self.share))

    def claimed_chunks(self) -> int:
        """Count the chunks that are to be re-hashed."""
        return self.states().count(CLAIMED)

    def claimed_runs(self) -> Iterator[tuple[int, int]]:
        """Yield them, as they are now, as runs of ordinals: of a file of many chunks there can be as many."""
        return runs(self.states(), CLAIMED)

    def missing(self, most: int | None = None) -> list[tuple[int, int]]:
        """Read which chunks are not here, as runs of ordinals: all of these, or the first `most`."""
        return list(itertools.islice(runs(self.states(), FREE, CLAIMED, WRITING), most))

    def needed_messages(self, file_id: int, runs: list[tuple[int, int]]) -> list[m.Needed]:
        """Say what is needed in messages that are small enough."""
        return list(self._needed(file_id, iter(runs)))

    def held_messages(self, file_id: int, runs: list[tuple[int, int]]) -> list[m.Held]:
        """Say what is held, with digests, in messages that are small enough."""
        return list(self._held(file_id, iter(runs)))

    def _needed(self, file_id: int, runs: Iterator[tuple[int, int]]) -> Iterator[m.Needed]:
        spans = (self.share.span(start, stop) for start, stop in runs)
        ranges = (m.SegmentRange(file_id, first, end - first) for first, end in spans)
        while some := tuple(itertools.islice(ranges, limits.RANGES_PER_NEEDED)):
            yield m.Needed((), some)

    def _held(self, file_id: int, runs: Iterator[tuple[int, int]]) -> Iterator[m.Held]:
        for start, stop in runs:
            for at in range(start, stop, limits.DIGESTS_PER_HELD):
                digests = b"".join(self._digests(at, min(at + limits.DIGESTS_PER_HELD, stop)))
                yield m.Held(file_id, self.share.chunk(at), digests)

    def _digests(self, start: int, stop: int) -> Iterator[memoryview]:
        return self.file.chunk_states.digests(self.share, start, stop)

    # --- the end

    def close(self) -> None:
        """Let no further write in, now that nothing is missing or the transfer is over."""
        with self.file.lock:
            self._is_closed = True

    def held_bytes(self) -> int:
        """Count the bytes that were there before."""
        with self.file.lock:
            return self.file.chunk_states.held_bytes(self.share)

    def digests(self) -> Iterator[memoryview]:
        """Yield the digests of all chunks that have one, in order."""
        return self.file.chunk_states.digests(self.share)

    def seal(self) -> None:
        """Make the share durable in staging. Raises TransferFailed."""
        if isinstance(self.content, Staging):
            self.content.seal(self.share, root_digest(self.digests()))

    def discard(self) -> None:
        """Trust nothing that was received: it differs from what the sender read, though every chunk was equal."""
        if self.share.count == 1 and isinstance(self.content, Staging):
            self.content.discard()
        with self.file.lock:
            self.file.void(self.share)
            self.file.chunk_states.forget(self.share)


def _extend(runs: list[tuple[int, int]], ordinal: int) -> None:
    """Add the next ordinal to runs [start, stop)."""
    if runs and runs[-1][1] == ordinal:
        runs[-1] = (runs[-1][0], ordinal + 1)
    else:
        runs.append((ordinal, ordinal + 1))
