"""Puts chunks on the wire of one data connection (proto/README.md, "Chunks and segments").

For each chunk: a header frame, then each block of its payload is read, hashed and sent while it is in the CPU's cache,
then one digest for each segment. Small ones are gathered into one system call (`outbox`).

Small chunks of a large file go as a run: the chunks that follow in the queue at one distance are sent under one header.

Of a sparse file, holes are looked for before the header: it lists those of its segments, whose zeros are hashed and not
sent. A chunk that is nothing but a hole is told on the control connection, with all chunks behind it in the same hole.

A header promises bytes before they are read. Where they can't be read, or are not the file that was listed, other bytes
are sent in their place with a digest that nothing has: the receiver rejects that chunk, and it is sent again without
the file, or when the file was read again.
"""

import contextlib
import time
from typing import Final

from filestreamer.telemetry.counters import ConnectionCounters, StageClock
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.blocks import blocks
from filestreamer.wire.digests import segment_digest, segment_hasher, update_with_zeros
from filestreamer.wire.errors import ConnectionLost
from filestreamer.wire.framing import frame
from filestreamer.wire.session import Session
from filestreamer.wire.sockets.transport import Channel
from sender.dispatch.manifest import FoundZeros
from sender.network.outbox import Outbox
from sender.network.send_window import SendWindow, SentChunk
from sender.network.shared import Shared
from sender.source.holes import runs_of
from sender.source.item import Identity, Item, Unsendable, changed
from sender.source.reader import OTHER_BYTES, Reader
from sender.source.run_reader import Places, RunReader

FIRST_RUN_BYTES: Final = 64 * limits.KIB
"""How much payload the first run over a connection has at most."""
_NO_DIGEST: Final = b"\xff" * limits.DIGEST_BYTES
"""Marks a payload that is not the listed file: only one payload in 2^128 has this digest."""


class ChunkSender:
    """Sends the chunks that one connection is given, also after it was opened anew. For the connection's thread."""

    def __init__(self, shared: Shared, counters: ConnectionCounters, clock: StageClock, window: SendWindow) -> None:
        """Send for a connection; what was sent is added to its window."""
        self._shared = shared
        self._queue = shared.queue
        self._rate_limit = shared.rate_limit
        self._digests = shared.digests
        self._counters = counters
        self._clock = clock
        self._window = window
        self._epoch = 0  # of the receiver that the connection leads to (`send_queue`)
        self.has_runs = False
        """Whether the receiver is known to take runs of chunks."""
        self._arrived_before_bytes = 0  # over earlier connections with this id
        self._outbox = Outbox(counters, clock)
        self._reader = Reader()
        self._run_reader = RunReader(self._reader, shared.digests, clock)
        self._hasher = segment_hasher()
        self._is_hashing = True  # whether the digest of the segment that is being sent is not known
        self._poisoned: set[int] = set()  # chunks in the window with a file that is not what was listed
        self._is_poisoned = False  # whether the chunk that is being sent has one

    def begin(self, epoch: int, *, has_runs: bool) -> None:
        """Send over a connection that was opened, to the receiver of this epoch."""
        self._epoch, self.has_runs = epoch, has_runs
        self._arrived_before_bytes = self._counters.acknowledged_bytes

    def end(self) -> None:
        """Drop what was gathered for a connection that has ended; the caller empties the window."""
        self._outbox.clear()
        self._poisoned.clear()
        self._is_poisoned = False  # the chunk that was being sent was lost in the middle

    def close(self) -> None:
        """Close the files of the source."""
        self._reader.close()

    def flush(self, channel: Channel) -> None:
        """Send what was gathered."""
        self._outbox.flush(channel)

    def take_poisoned(self, chunk_id: int) -> bool:
        """Whether a rejected chunk was sent with a wrong digest on purpose; it no longer counts as that."""
        is_poisoned = chunk_id in self._poisoned
        self._poisoned.discard(chunk_id)
        return is_poisoned

    def send(self, channel: Channel, chunk_id: int, session: Session) -> None:
        """Send a chunk that the queue gave to this connection, with the chunks that can travel in a run with it."""
        carried = self._shared.manifest.carried(chunk_id)
        chunk_ids = range(chunk_id, chunk_id + 1)
        is_stolen = not self._queue.is_home(chunk_id, self._counters.connection_id)
        self._counters.stolen_chunks += is_stolen
        if not carried:  # all of its files were withdrawn
            self._queue.mark_done((chunk_id,), self._epoch)
            return
        if any(item.entry.data_bytes is not None for _, item in carried):
            if self._takes_zeros(chunk_id, *carried[0]):
                return
            carried = self._with_holes(carried)
        elif (most := self._run_most()) > 1:
            end = self._shared.manifest.end_of_run(chunk_id, carried[0][0].file_id)
            chunk_ids = self._queue.take_run(chunk_id, self._counters.connection_id, self._epoch, most=most, end=end)
            self._counters.stolen_chunks += is_stolen * (len(chunk_ids) - 1)
        header = m.ChunkHeader(chunk_id, tuple([segment for segment, _ in carried]), len(chunk_ids), chunk_ids.step)
        session.sending(header)
        hole_bytes = sum([segment.length - segment.payload_bytes for segment in header.segments if segment.runs])
        payload_bytes = sum([segment.length for segment in header.segments]) - hole_bytes
        self._window.add(chunk_ids, SentChunk(payload_bytes, hole_bytes, time.monotonic()))
        self._outbox.add(channel, frame(header))
        if header.chunks > 1:
            digests = self._send_run(channel, header, *carried[0])
        else:
            digests = self._send_segments(channel, chunk_id, carried)
        self._outbox.add(channel, b"".join(digests))
        if self._outbox.gathered_bytes >= limits.BLOCK_BYTES or self._rate_limit is not None:
            self._outbox.flush(channel)

    def _run_most(self) -> int:
        """Return how many chunks may be sent under one header now."""
        if not self.has_runs:
            return 1
        limit, chunk_size = self._rate_limit, self._shared.manifest.chunk_size
        # Nothing of a run counts before its digests, which come last. So a connection that is cut again and again, or
        # is slow, must not begin with long ones: none has more bytes than have arrived over the connection.
        arrived_bytes = self._counters.acknowledged_bytes - self._arrived_before_bytes
        run_bytes = min(limits.RUN_BYTES, max(FIRST_RUN_BYTES, arrived_bytes))
        # At a low rate, each header and its digests come soon: whoever waits for a chunk sees that something moves.
        run_bytes = run_bytes if limit is None else min(run_bytes, limit.piece_bytes)
        return min(limits.CHUNKS_PER_RUN, run_bytes // chunk_size, self._window.room)

    def _send_segments(self, channel: Channel, chunk_id: int, carried: list[tuple[m.Segment, Item]]) -> list[bytes]:
        """Send the segments of a chunk; return the digests to send for them."""
        seen: Identity | None = None
        if len(carried) > 1 and self._digests is None and self._rate_limit is None:
            digests = self._send_bundle(channel, carried)
        else:
            sent = [self._send_segment(channel, segment, item) for segment, item in carried]
            digests, seen = [digest for digest, _ in sent], sent[0][1]
        for index in self._queue.pin_digest(chunk_id, [segment for segment, _ in carried], digests):
            segment, item = carried[index]
            digests[index] = self._withdraw(segment, changed(item, OTHER_BYTES))
        if not self._is_poisoned and self._must_hold_back(chunk_id, *carried[0], seen):
            digests = [_NO_DIGEST]
            self._is_poisoned = True
        if self._is_poisoned:
            self._poisoned.add(chunk_id)
            self._is_poisoned = False
        return digests

    def _send_bundle(self, channel: Channel, carried: list[tuple[m.Segment, Item]]) -> list[bytes]:
        """Send small files, as many at a time as a block has room for; return the digests to send for them."""
        digests: list[bytes] = []
        for first, end, size in blocks([segment for segment, _ in carried], limits.BLOCK_BYTES):
            if size:
                digests += self._send_block(channel, carried[first:end], size)
            else:
                digests.append(self._send_segment(channel, *carried[first])[0])
        return digests

    def _send_block(self, channel: Channel, carried: list[tuple[m.Segment, Item]], size: int) -> list[bytes]:
        """Read, hash and send small files of `size` bytes together; return the digests to send for them."""
        view, end = self._outbox.reserve(channel, size), 0
        pieces = [view[end : (end := end + segment.length)] for segment, _ in carried]
        reader, troubles = self._reader, {}
        self._clock.enter("read")
        for index, (_, item) in enumerate(carried):
            try:
                reader.read_whole(item, pieces[index])
            except Unsendable as error:
                troubles[index] = _lasting(error)
                pieces[index][:] = bytes(len(pieces[index]))  # the header has announced these bytes
        self._clock.enter("digest")
        digests = [segment_digest(piece) for piece in pieces]
        self._clock.enter(None)
        self._outbox.add_payload(size)
        for index, trouble in troubles.items():
            digests[index] = self._withdraw(carried[index][0], trouble)
        return digests

    def _must_hold_back(self, chunk_id: int, segment: m.Segment, item: Item, seen: Identity | None) -> bool:
        """Whether a chunk of a file that moved is to be rejected, until what was sent of the file is compared.

        Without this chunk the receiver can't complete the file.
        """
        if seen is None or self._shared.manifest.is_bundle(chunk_id):
            return False
        return self._shared.verifier.saw(segment.file_id, item, seen, chunk_id)

    def _send_run(self, channel: Channel, header: m.ChunkHeader, segment: m.Segment, item: Item) -> list[bytes]:
        """Read, hash and send the segments of a run; return the digests to send for them."""
        chunk_ids, verifier = header.chunk_ids, self._shared.verifier
        try:
            digests, seen = self._send_gathered(channel, header, item)
            if self._queue.pin_run(chunk_ids, digests):
                raise changed(item, OTHER_BYTES)
        except Unsendable as error:
            self._withdraw(segment, _lasting(error))
            self._is_poisoned = False
            self._poisoned.update(chunk_ids)
            return [_NO_DIGEST] * len(chunk_ids)
        held = [verifier.saw(segment.file_id, item, seen, chunk_ids[0])]
        if verifier.has_moved(segment.file_id):
            held += [verifier.saw(segment.file_id, item, seen, chunk_id) for chunk_id in chunk_ids[1:]]
        for index, is_held in enumerate(held):
            if is_held:
                digests[index] = _NO_DIGEST
                self._poisoned.add(chunk_ids[index])
        return digests

    def _send_gathered(self, channel: Channel, header: m.ChunkHeader, item: Item) -> tuple[list[bytes], Identity]:
        """Send the segments of a run; return their digests, and the identity of their file all the while.

        Raises Unsendable after other bytes were sent in their place, as the header has announced some.
        """
        view = self._outbox.reserve(channel, header.length)
        self._outbox.add_payload(len(view))
        try:
            return self._run_reader.read_into(item, Places.of(header), view)
        except Unsendable:
            view[:] = bytes(len(view))
            raise
        finally:
            if self._rate_limit is not None:
                self._clock.enter("limit")
                self._rate_limit.wait(len(view), lambda: self._queue.is_over)
            self._clock.enter(None)

    def _takes_zeros(self, chunk_id: int, segment: m.Segment, item: Item) -> bool:
        """Have a chunk told that lies in a hole, with all chunks behind it in the same hole; return whether it does."""
        if not self._queue.may_be_told(chunk_id):
            return False
        reader = self._reader
        try:
            before = reader.look(item)
            hole_end = reader.extents(item).hole_end(segment.offset)
            if hole_end < segment.offset + segment.length or reader.look(item) != before:
                return False
        except Unsendable:
            return False  # the same happens when the chunk is sent
        if self._shared.verifier.saw(segment.file_id, item, before, chunk_id):
            return False  # the file has moved: this chunk is to be held back, which zeros that are told can't be
        chunk_size = self._shared.manifest.chunk_size
        chunks = -(-hole_end // chunk_size) if hole_end == item.entry.size else hole_end // chunk_size
        taken = self._queue.take_zeros(chunk_id, chunk_id + chunks - segment.offset // chunk_size, self._epoch)
        self._shared.mailbox.post(FoundZeros(segment.file_id, taken, self._epoch))
        return True

    def _with_holes(self, carried: list[tuple[m.Segment, Item]]) -> list[tuple[m.Segment, Item]]:
        """Return what a chunk carries, with the holes of its segments."""
        left = limits.RUNS_PER_CHUNK
        found = []
        for segment, item in carried:
            runs: tuple[int, ...] = ()
            if item.entry.data_bytes is not None:
                with contextlib.suppress(Unsendable):  # the same happens when the segment is read
                    holes = self._reader.extents(item).holes_in(segment.offset, segment.offset + segment.length)
                    runs = runs_of(segment, holes, left)
            left -= len(runs)
            found.append((segment._replace(runs=runs) if runs else segment, item))
        return found

    def _send_segment(self, channel: Channel, segment: m.Segment, item: Item) -> tuple[bytes, Identity | None]:
        """Read, hash and send a segment, block by block.

        Return its digest, and the identity of its file all the while; another digest, and None, if it is withdrawn.
        """
        reader, clock = self._reader, self._clock
        trouble: Unsendable | None = None
        before: Identity | None = None
        known: bytes | None = None
        self._hasher.reset()
        clock.enter("read")
        try:
            before = reader.look(item)
            if self._digests is not None and item.stream is None:
                known = self._digests.get(before, segment.offset, segment.length)
            if segment.runs and not reader.has_holes(item, segment):
                raise changed(item, OTHER_BYTES)
        except Unsendable as error:
            trouble = _lasting(error)
        self._is_hashing = known is None
        if not segment.runs:
            trouble = self._send_data(channel, item, segment.offset, segment.offset + segment.length, trouble)
        else:
            trouble = self._send_pieces(channel, item, segment, trouble)
        if before is not None and trouble is None:
            digest = known or self._hasher.digest()
            try:
                seen = reader.confirm(item, before, segment.offset, segment.length, digest)
                if known is None and self._digests is not None and item.stream is None:
                    self._digests.add(seen, segment.offset, segment.length, digest)
                clock.enter(None)
                return digest, seen
            except Unsendable as error:
                trouble = _lasting(error)
        clock.enter(None)
        assert trouble is not None
        return self._withdraw(segment, trouble), None

    def _send_pieces(
        self, channel: Channel, item: Item, segment: m.Segment, trouble: Unsendable | None
    ) -> Unsendable | None:
        """Send the data of a segment that has holes, and hash all of it; return as `_send_data`."""
        for start, end, is_data in segment.pieces():
            if is_data:
                trouble = self._send_data(channel, item, start, end, trouble)
            elif self._is_hashing:
                self._clock.enter("digest")
                update_with_zeros(self._hasher, end - start)
        return trouble

    def _send_data(
        self, channel: Channel, item: Item, offset: int, end: int, trouble: Unsendable | None
    ) -> Unsendable | None:
        """Read, hash and send bytes [offset, end) of a file; return the trouble that it had, or that came before."""
        reader, outbox, limit, clock = self._reader, self._outbox, self._rate_limit, self._clock
        block_bytes = limits.BLOCK_BYTES if limit is None else limit.piece_bytes
        while offset < end:
            size = min(block_bytes, end - offset)
            view = outbox.reserve(channel, size)
            clock.enter("read")
            if trouble is None:
                try:
                    reader.read_into(item, view, offset)
                except Unsendable as error:
                    trouble = _lasting(error)
            if trouble is not None:
                view[:] = bytes(size)  # the header has announced these bytes, so something has to be sent
            if self._is_hashing:
                clock.enter("digest")
                self._hasher.update(view)
            outbox.add_payload(size)
            offset += size
            if limit is not None:
                clock.enter("limit")
                limit.wait(size, lambda: self._queue.is_over)
                outbox.flush(channel, more=True)
        return trouble

    def _withdraw(self, segment: m.Segment, trouble: Unsendable) -> bytes:
        """Withdraw a file that is not what was listed; return a digest that the receiver will not accept for it."""
        if withdrew := self._shared.manifest.withdraw(segment.file_id, trouble):
            self._shared.mailbox.post(withdrew)
        self._is_poisoned = True
        return _NO_DIGEST

    def forget_digests(self, chunk_id: int) -> None:
        """Have a chunk hashed anew that arrived with another digest than was sent."""
        if self._digests is None:
            return
        for segment, item in self._shared.manifest.carried(chunk_id):
            if item.stream is None:
                with contextlib.suppress(Unsendable):  # it is not what it was: its digests count no more
                    self._digests.forget(self._reader.look(item), segment.offset)


def _lasting(error: Unsendable) -> Unsendable:
    """Return an error that says something of its file. Raises ConnectionLost for one that does not."""
    if error.retryable:  # this process has too many open files
        raise ConnectionLost(str(error)) from None
    return error
