"""A transfer of one file, or of a share of it (`files`): what is needed is answered at once, what is claimed later."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from receiver.assembly import Turn
from receiver.cargo import Connection, Part, Step
from receiver.files import LEAVE_SECONDS, MISSING_MOST, Answer, Stake
from receiver.files import Step as ShareStep
from receiver.rehash import FinalsRehashed, Rehashed, Rehasher, Work
from service.counters import TransferCounters
from wire import messages as m
from wire.digests import root_digest
from wire.errors import Code, ConnectionLost, RemoteProtocolError, TransferFailed


class Single:
    """One file, or a share of it."""

    def __init__(self, entry: m.Entry, stake: Stake, counters: TransferCounters, rehasher: Rehasher, log: Any) -> None:
        """Receive into a stake that was claimed; what the ledger claims is re-hashed from now on."""
        self.name = stake.file.name
        self._manifest = (entry,)
        self._stake = stake
        self._counters = counters
        self._rehasher = rehasher
        self._log = log
        self._rehashing = 0
        """Batches of other shares that are being re-hashed, before the file is committed."""
        self._steps: list[Callable[[], None]] = []
        """What is to be done before the file's next step is asked for."""
        self._is_committed = False
        counters.size_bytes += stake.payload_bytes
        counters.chunks += stake.chunks
        counters.name = stake.content.path
        counters.chunk_map = stake.chunk_map
        claimed = stake.claimed_chunks()
        shard = {"shard": str(stake.share)} if stake.share.count > 1 else {}
        log.info(
            "transfer_started",
            file=stake.content.path,
            bytes=stake.payload_bytes,
            claimed_chunks=claimed,
            **shard,
        )
        if stake.file.set_aside:
            log.warning(
                "shares_set_aside",
                shares=stake.file.set_aside,
                reason="they are of another source, or of another number of shards",
            )
        if claimed:
            runs = stake.claimed_runs()
            rehasher.add_all(Work(0, stake.content, stake.grid, stake.share, start, stop) for start, stop in runs)

    # --- answers

    @property
    def has_more(self) -> bool:
        """Nothing comes later but what is re-hashed."""
        return False

    def take(self, part: m.ManifestPart, body: bytes) -> Iterable[m.Message]:
        """Answer what is needed and what is held, every time that the manifest comes."""
        del body
        if part.entries != self._manifest or part.first_file_id or not part.last:
            raise RemoteProtocolError("the manifest is repeated, otherwise than before")
        return self._stake.answers(0)

    def rejoin(self) -> None:
        """Nothing to do: the manifest is answered whole."""

    def _messages(self, answer: Answer) -> Sequence[m.Message]:
        needed = self._stake.needed_messages(0, answer.needed)
        return [*needed, *self._stake.held_messages(0, answer.held)]

    def rehashed(self, batch: Rehashed | FinalsRehashed) -> Sequence[m.Message]:
        """Answer claimed chunks, now that it is known what is on the disk."""
        assert isinstance(batch, Rehashed)  # a single file is staged
        answer = self._stake.rehashed(batch.share, batch.start, batch.digests)
        self._counters.rehashed_bytes += batch.bytes
        if batch.share == self._stake.share:
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
        return self._stake.needed_messages(0, self._stake.missing(MISSING_MOST))

    def close(self, finish: m.Finish) -> bytes:
        """Let no further write in, and compare what is staged with what the sender read."""
        stake = self._stake
        stake.close()
        self._counters.held_bytes = stake.held_bytes()
        root = root_digest(stake.digests())
        if root != finish.root_digest or finish.chunks != stake.chunks:
            reason = "what is staged differs from what the sender read, though every chunk was equal: send it again"
            stake.discard()
            raise TransferFailed(Code.DIGEST, reason)
        if stake.share.count > 1:
            self._steps.append(stake.seal)
        return root

    def next_step(self) -> Step:
        """Seal a share; commit or, where a shard is not the last one, be done."""
        if self._rehashing:
            return None
        if self._steps:
            return self._steps.pop()
        if self._is_committed:
            return m.Complete(True)
        stake = self._stake
        match stake.file.next_step(stake.share):
            case ShareStep.WAIT:
                self._log.info("share_complete", shard=str(stake.share), missing=stake.file.missing_shares)
                return m.Complete(False)
            case ShareStep.REHASH:
                for share, start, stop in stake.file.sealed_claims():
                    self._rehashing += self._rehasher.add(Work(0, stake.content, stake.grid, share, start, stop))
                return None if self._rehashing else self.next_step()  # somebody else has done it just now
            case ShareStep.COMMIT:
                return self._commit

    def _commit(self) -> None:
        begun = time.monotonic()
        self._stake.file.commit()
        self._counters.sync_seconds = time.monotonic() - begun
        self._is_committed = True

    def leave(self, *, cleanly: bool) -> None:
        """Nothing to do: the file stays in staging."""

    # --- chunks

    def begin(self, connection: Connection, header: m.ChunkHeader) -> list[Part]:
        """Check every segment of a chunk, and begin them."""
        places = [(self._position(header.chunk_id, segment), segment) for segment in header.segments]
        return [begin_segment(self._stake, connection, position, segment) for position, segment in places]

    def _position(self, chunk_id: int, segment: m.Segment) -> int:
        if segment.file_id:
            raise RemoteProtocolError(f"chunk {chunk_id}: file {segment.file_id} was not offered")
        position = self._stake.position(segment)
        if position is None:
            where = f"bytes {segment.offset} to {segment.offset + segment.length}"
            whose = f"shard {self._stake.share}" if self._stake.share.count > 1 else f"file {segment.file_id}"
            raise RemoteProtocolError(f"chunk {chunk_id}: {where} are no segment of {whose}")
        return position

    def end(self, connection: Connection, parts: list[Part], digests: list[bytes], computed: list[bytes]) -> bool:
        """Settle the segments of a chunk."""
        by = connection.connection_id
        good = [
            self._stake.deliver(part.position, connection, digest, actual, by)
            for part, digest, actual in zip(parts, digests, computed, strict=True)
        ]
        return all(good)

    def abandon(self, connection: Connection) -> None:
        """Take back what a connection was writing."""
        self._stake.abandon(connection)

    def shut(self) -> None:
        """Let no further write in."""
        self._stake.close()


def begin_segment(stake: Stake, connection: Connection, position: int, segment: m.Segment) -> Part:
    """Begin one segment; who else is writing it is shut and has left first."""
    while True:
        turn, other = stake.begin(position, connection)
        if turn is not Turn.WAIT:
            return Part(stake, position, segment, turn is Turn.WRITE)
        if other is not None and not other.end(LEAVE_SECONDS):
            raise ConnectionLost(f"another connection does not leave segment {position}")
