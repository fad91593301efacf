"""The target of a transfer of one file, or of a shard's share of it.

The sender is told at once which segments are needed. CLAIMED segments are answered as they are re-hashed. Chunks go
from the data connections to the `FileShare` directly.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import messages as m
from filestreamer.wire.digests import root_digest
from filestreamer.wire.errors import Code, RemoteProtocolError, TransferFailed
from filestreamer.wire.grid import Share
from filestreamer.wire.runs import runs
from receiver.disk.attributes.attributes import Attributes
from receiver.file.answers import needed_messages
from receiver.file.file_share import MISSING_MOST, FileShare
from receiver.file.rehash import FinalsRehashed, Rehashed, Rehasher, Work
from receiver.file.shared_file import ShareStep
from receiver.file.states import CLAIMED
from receiver.file.target import NextStep, OneFile


class FileTarget(OneFile):
    """Receives one file, or a share of it, into a `FileShare` that was claimed."""

    def __init__(
        self,
        entry: m.Entry,
        file_share: FileShare,
        counters: TransferCounters,
        rehasher: Rehasher,
        log: Any,
        *,
        attributes: Attributes,
    ) -> None:
        """Begin: describe the transfer in `counters` and `log`, and have the CLAIMED segments re-hashed."""
        super().__init__(entry)
        self.name = file_share.file.name
        self.chunks = file_share
        self._attributes = attributes
        self._counters = counters
        self._rehasher = rehasher
        self._log = log
        self._rehashing = 0
        """Batches of other shares that are being re-hashed, before the file is committed."""
        self._is_sealed = False
        self._is_committed = False
        path, size_bytes = file_share.file.content.path, file_share.size_bytes
        counters.size_bytes += size_bytes
        counters.chunks += file_share.chunks
        counters.name = path
        if file_share.is_unchecked:
            counters.unchecked_bytes += size_bytes
        counters.chunk_map = file_share.chunk_map
        states = file_share.states()
        claimed = states.count(CLAIMED)
        shard = {"shard": str(file_share.share)} if file_share.share.count > 1 else {}
        log.info("transfer_started", file=path, bytes=size_bytes, claimed_chunks=claimed, **shard)
        if file_share.file.set_aside:
            log.warning(
                "shares_set_aside",
                shares=file_share.file.set_aside,
                reason="these shares come from another source, or from another number of shards",
            )
        if claimed:
            rehasher.add_all(self._work(file_share.share, start, stop) for start, stop in runs(states, CLAIMED))

    def _work(self, share: Share, start: int, stop: int) -> Work:
        file = self.chunks.file
        return Work(0, file.content, file.grid, share, start, stop)

    # --- answers

    has_more = False
    """Later answers come from `take_rehashed` alone."""

    def take_part(self, part: m.ManifestPart, body: bytes) -> Iterable[m.Message]:
        """Answer what is needed and what is held, each time that the manifest comes."""
        del body
        self._check_part(part)
        return self.chunks.answers()

    def take_rehashed(self, batch: Rehashed | FinalsRehashed) -> Iterator[m.Message]:
        """Answer CLAIMED segments of this share, now that they are re-hashed."""
        assert isinstance(batch, Rehashed)  # the file is in staging, and not under its final name
        answer = self.chunks.rehashed(batch.share, batch.start, batch.digests)
        self._counters.rehashed_bytes += batch.bytes
        if batch.share != self.chunks.share:  # a sealed share: its sender has ended, and waits for no answer
            self._rehashing -= 1
            return
        yield from needed_messages(0, self.chunks.share, answer.needed)
        yield from self.chunks.held_messages(answer.held)

    def more(self) -> Sequence[m.Message]:
        """Return nothing: later answers come from `take_rehashed` alone."""
        return ()

    def take_zeros(self, message: m.Zeros) -> Iterator[m.Message]:
        """Make segments of the share zeros; repeat the message when they are."""
        for file_id, first, count in message.segments:
            if file_id:
                raise RemoteProtocolError(f"file {file_id} was told as zeros, and was not offered")
            self._counters.zero_bytes += self.chunks.make_zeros(first, first + count)
        yield message

    # --- the end

    def missing(self) -> Iterable[m.Needed]:
        """Return what is missing, or as much of it as keeps the sender busy."""
        return needed_messages(0, self.chunks.share, self.chunks.missing(MISSING_MOST))

    def finish(self, finish: m.Finish) -> bytes:
        """Stop all writes, and compare the root digest of what is staged with the sender's."""
        file_share = self.chunks
        file_share.stop_writes()
        self._counters.held_bytes = file_share.held_bytes()
        root = root_digest(file_share.digests())
        if root != finish.root_digest or finish.chunks != file_share.chunks:
            file_share.discard()
            raise TransferFailed(
                Code.DIGEST,
                "the staged file differs from what the sender read, though every chunk was equal: send it again",
            )
        return root

    def next_step(self) -> NextStep:
        """Return the next step: seal the share of a shard; re-hash sealed shares; commit the file; Complete."""
        if self._rehashing:
            return None
        if self.chunks.share.count > 1 and not self._is_sealed:
            return self._seal
        if self._is_committed:
            return m.Complete(True, left=self._counters.left_files)
        file, share = self.chunks.file, self.chunks.share
        match file.next_step(share):
            case ShareStep.WAIT:
                self._log.info("share_complete", shard=str(share), missing=file.missing_shares)
                return m.Complete(False)
            case ShareStep.REHASH:
                for other, start, stop in file.sealed_claims():
                    self._rehashing += self._rehasher.add(self._work(other, start, stop))
                # Another shard may have had the same segments re-hashed meanwhile: then ask the file again.
                return None if self._rehashing else self.next_step()
            case ShareStep.COMMIT:
                return self._commit

    def _seal(self) -> None:
        self.chunks.seal()
        self._is_sealed = True

    def _commit(self) -> None:
        begun = time.monotonic()
        self.chunks.file.commit(self._attributes)
        self._counters.left_files = int(self.chunks.file.was_left)
        self._counters.sync_seconds = time.monotonic() - begun
        self._is_committed = True

    def stop_writes(self) -> None:
        """Refuse further writes: the transfer is over."""
        self.chunks.stop_writes()

    def close(self, *, cleanly: bool) -> None:
        """Do nothing: the file stays in staging, and is closed behind the last transfer that has a share of it."""
