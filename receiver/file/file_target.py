"""A transfer of one file, or of a share of it (`files`): what is needed is answered at once, what is claimed later."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, ConnectionLost, RemoteProtocolError, TransferFailed
from receiver.file.chunk_states import Delivery
from receiver.file.file_share import MISSING_MOST, Answer, FileShare
from receiver.file.rehash import FinalsRehashed, Rehashed, Rehasher, Work
from receiver.file.shared_file import Step as ShareStep
from receiver.file.target import LEAVE_SECONDS, Connection, IncomingSegment, Step


class FileTarget:
    """One file, or a share of it."""

    def __init__(
        self, entry: m.Entry, file_share: FileShare, counters: TransferCounters, rehasher: Rehasher, log: Any
    ) -> None:
        """Receive into a stake that was claimed; what the ledger claims is re-hashed from now on."""
        self.name = file_share.file.name
        self._manifest = (entry,)
        self._file_share = file_share
        self._counters = counters
        self._rehasher = rehasher
        self._log = log
        self._rehashing = 0
        """Batches of other shares that are being re-hashed, before the file is committed."""
        self._steps: list[Callable[[], None]] = []
        """What is to be done before the file's next step is asked for."""
        self._is_committed = False
        counters.size_bytes += file_share.payload_bytes
        counters.chunks += file_share.chunks
        counters.name = file_share.content.path
        counters.chunk_map = file_share.chunk_map
        claimed = file_share.claimed_chunks()
        shard = {"shard": str(file_share.share)} if file_share.share.count > 1 else {}
        log.info(
            "transfer_started",
            file=file_share.content.path,
            bytes=file_share.payload_bytes,
            claimed_chunks=claimed,
            **shard,
        )
        if file_share.file.set_aside:
            log.warning(
                "shares_set_aside",
                shares=file_share.file.set_aside,
                reason="they are of another source, or of another number of shards",
            )
        if claimed:
            runs = file_share.claimed_runs()
            rehasher.add_all(
                Work(0, file_share.content, file_share.grid, file_share.share, start, stop) for start, stop in runs
            )

    # --- answers

    @property
    def has_more(self) -> bool:
        """Nothing comes later but what is re-hashed."""
        return False

    def take_part(self, part: m.ManifestPart, body: bytes) -> Iterable[m.Message]:
        """Answer what is needed and what is held, every time that the manifest comes."""
        del body
        if part.entries != self._manifest or part.first_file_id or not part.last:
            raise RemoteProtocolError("the manifest is repeated, otherwise than before")
        return self._file_share.answers(0)

    def rejoin(self) -> None:
        """Nothing to do: the manifest is answered whole."""

    def _messages(self, answer: Answer) -> Sequence[m.Message]:
        needed = self._file_share.needed_messages(0, answer.needed)
        return [*needed, *self._file_share.held_messages(0, answer.held)]

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Sequence[m.Message]:
        """Answer claimed chunks, now that it is known what is on the disk."""
        assert isinstance(batch, Rehashed)  # a single file is staged
        answer = self._file_share.rehashed(batch.share, batch.start, batch.digests)
        self._counters.rehashed_bytes += batch.bytes
        if batch.share == self._file_share.share:
            return self._messages(answer)
        self._rehashing -= 1
        return []

    def more(self) -> Sequence[m.Message]:
        """Nothing comes later but what is re-hashed."""
        return []

    def withdraw(self, file_ids: Sequence[int]) -> None:
        """Refuse: who can't send its one file has nothing to send."""
        raise RemoteProtocolError(f"file {file_ids[0]} is withdrawn, which is for trees")

    # --- the end

    def missing(self) -> Sequence[m.Needed]:
        """Return what is not here, or so much of it that its sender has something to do."""
        return self._file_share.needed_messages(0, self._file_share.missing(MISSING_MOST))

    def finish(self, finish: m.Finish) -> bytes:
        """Let no further write in, and compare what is staged with what the sender read."""
        file_share = self._file_share
        file_share.close()
        self._counters.held_bytes = file_share.held_bytes()
        root = root_digest(file_share.digests())
        if root != finish.root_digest or finish.chunks != file_share.chunks:
            reason = "what is staged differs from what the sender read, though every chunk was equal: send it again"
            file_share.discard()
            raise TransferFailed(Code.DIGEST, reason)
        if file_share.share.count > 1:
            self._steps.append(file_share.seal)
        return root

    def next_step(self) -> Step:
        """Seal a share; commit or, where a shard is not the last one, be done."""
        if self._rehashing:
            return None
        if self._steps:
            return self._steps.pop()
        if self._is_committed:
            return m.Complete(True)
        file_share = self._file_share
        match file_share.file.next_step(file_share.share):
            case ShareStep.WAIT:
                self._log.info("share_complete", shard=str(file_share.share), missing=file_share.file.missing_shares)
                return m.Complete(False)
            case ShareStep.REHASH:
                for share, start, stop in file_share.file.sealed_claims():
                    self._rehashing += self._rehasher.add(
                        Work(0, file_share.content, file_share.grid, share, start, stop)
                    )
                return None if self._rehashing else self.next_step()  # somebody else has done it just now
            case ShareStep.COMMIT:
                return self._commit

    def _commit(self) -> None:
        begun = time.monotonic()
        self._file_share.file.commit()
        self._counters.sync_seconds = time.monotonic() - begun
        self._is_committed = True

    def close(self, *, cleanly: bool) -> None:
        """Nothing to do: the file stays in staging."""

    # --- chunks

    @property
    def chunks(self) -> Self:
        """What data connections talk to."""
        return self

    def begin_chunk(self, connection: Connection, header: m.ChunkHeader) -> list[IncomingSegment]:
        """Check every segment of a chunk, and begin them."""
        places = [(self._position(header.chunk_id, segment), segment) for segment in header.segments]
        return [begin_segment(self._file_share, connection, position, segment) for position, segment in places]

    def _position(self, chunk_id: int, segment: m.Segment) -> int:
        if segment.file_id:
            raise RemoteProtocolError(f"chunk {chunk_id}: file {segment.file_id} was not offered")
        position = self._file_share.position(segment)
        if position is None:
            where = f"bytes {segment.offset} to {segment.offset + segment.length}"
            whose = f"shard {self._file_share.share}" if self._file_share.share.count > 1 else f"file {segment.file_id}"
            raise RemoteProtocolError(f"chunk {chunk_id}: {where} are no segment of {whose}")
        return position

    def end_chunk(
        self, connection: Connection, segments: list[IncomingSegment], digests: list[bytes], computed: list[bytes]
    ) -> bool:
        """Settle the segments of a chunk."""
        by = connection.connection_id
        good = [
            self._file_share.deliver(part.position, connection, digest, actual, by)
            for part, digest, actual in zip(segments, digests, computed, strict=True)
        ]
        return all(good)

    def detach(self, connection: Connection) -> None:
        """Take back what a connection was writing."""
        self._file_share.abandon(connection)

    def stop_writes(self) -> None:
        """Let no further write in."""
        self._file_share.close()


def begin_segment(file_share: FileShare, connection: Connection, position: int, segment: m.Segment) -> IncomingSegment:
    """Begin one segment; who else is writing it is shut and has left first."""
    while True:
        turn, other = file_share.begin(position, connection)
        if turn is not Delivery.WAIT:
            return IncomingSegment(file_share, position, segment, turn is Delivery.WRITE)
        if other is not None and not other.stop(LEAVE_SECONDS):
            raise ConnectionLost(f"another connection does not leave segment {position}")
