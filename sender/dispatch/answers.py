"""Acts on the receiver's answers: queues the chunks that are needed, has held ones compared, marks others as done.

A large file is answered by segments, each of which is a chunk. Small files are answered as a whole. The bundle that
carries one is queued once each of its files is answered and, if it is held, compared; if the bundle carries nothing
then, it is done. The coordinator calls this.
"""

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.runs import as_ranges
from sender.dispatch.manifest import Manifest
from sender.dispatch.part import Part
from sender.dispatch.send_queue import SendQueue
from sender.dispatch.verify import FILES_AT_ONCE, Compared, Held, HeldFiles, Verifier


class Answers:
    """Handles the receiver's answers. Raises RemoteProtocolError for an answer that the protocol does not allow."""

    def __init__(self, manifest: Manifest, queue: SendQueue, verifier: Verifier, counters: TransferCounters) -> None:
        self._manifest = manifest
        self._queue = queue
        self._verifier = verifier
        self._counters = counters

    def need(self, message: m.Needed) -> None:
        """Queue the chunks of the files and segments that are needed."""
        for files in message.files:
            file_ids = self._offered(files)
            for part in self._manifest.parts_of(file_ids):
                self._need_files(part, file_ids)
        for segments in message.segments:
            self._need_segments(segments)

    def _need_segments(self, segments: m.SegmentRange) -> None:
        part = self._manifest.part_of_file(segments.file_id)
        if part is None:
            return
        first = segments.first_segment
        self._check(part, segments.file_id, first, first + segments.segments)
        if part.is_large(segments.file_id):
            start = part.chunk_of(segments.file_id, first)
            self._queue.need(start, start + segments.segments)
        else:
            self._need_files(part, range(segments.file_id, segments.file_id + 1))

    def reopen(self, message: m.Needed) -> None:
        """Queue the chunks again that the receiver of a single file misses after Finish."""
        if sum(segments.segments for segments in message.segments) > self._manifest.chunks:
            raise RemoteProtocolError("the receiver misses more chunks than there are")
        if sum(len(self._offered(files)) for files in message.files):
            self._queue.reopen(0, self._manifest.chunks)
        for segments in message.segments:
            part = self._manifest.parts[0]
            first = segments.first_segment
            self._check(part, segments.file_id, first, first + segments.segments)
            self._queue.reopen(first, first + segments.segments)

    def hold(self, message: m.Held) -> None:
        """Have held segments compared; mark files that the receiver accepts unread as done."""
        for files in message.unchecked:
            self._counters.unchecked_bytes += self._leave(files)
        for files in message.left:
            self._counters.size_bytes -= self._leave(files)
        part = self._manifest.part_of_file(message.file_id)
        if message.digests:
            self._queue.may_finish_ahead = False
        if message.files:
            self._hold_files(message)
        elif message.digests and part is not None:
            self._hold_segments(part, message)

    def _hold_files(self, message: m.Held) -> None:
        """Have held small files compared."""
        size, at = limits.DIGEST_BYTES, 0
        for answered in message.files:
            files = self._offered(answered)
            for part in self._manifest.parts_of(files):
                own = range(max(files.start, part.first_file_id), min(files.stop, part.end_file_id))
                first = at + (own.start - files.start) * size
                self._hold_small_files(part, own, message.digests[first : first + len(own) * size])
            at += len(files) * size

    def _hold_small_files(self, part: Part, files: range, digests: bytes) -> None:
        """Have held small files of one part compared, of which these are the digests."""
        if not part.are_small(files):
            raise RemoteProtocolError(
                f"the receiver answers files {files.start} to {files.stop - 1} as a whole, and not all have one segment"
            )
        size = limits.DIGEST_BYTES
        told = [
            (file_id, digests[at : at + size])
            for file_id in part.begin_comparing(files)
            for at in [(file_id - files.start) * size]
        ]
        for first in range(0, len(told), FILES_AT_ONCE):
            self._verifier.compare(HeldFiles(part, told[first : first + FILES_AT_ONCE], self._queue.epoch))

    def _hold_segments(self, part: Part, message: m.Held) -> None:
        file_id, first, size = message.file_id, message.first_segment, limits.DIGEST_BYTES
        share = part.share(file_id) if self._manifest.shares is not None else self._queue.share
        if not share.holds(first):
            raise RemoteProtocolError(f"the receiver answers segment {first}, which is not in shard {share}")
        end = first + (len(message.digests) // size - 1) * share.count + 1
        self._check(part, file_id, first, end)
        if not part.is_large(file_id):
            self._hold_small_files(part, range(file_id, file_id + 1), message.digests)
            return
        start = part.chunk_of(file_id, first) - first  # the chunk of segment 0
        held = Held(part.item(file_id), file_id, part.grid(file_id), first, start + first, b"", self._queue.epoch)
        if message.final:
            held = held._replace(whole=part.chunks_of(file_id))
        for begin, stop in self._queue.hold(start + first, start + end, held.whole):
            ordinals = share.ordinals(begin - start, stop - start)
            at = (ordinals.start - share.ordinal(first)) * size
            digests = message.digests[at : at + len(ordinals) * size]
            self._verifier.compare(held._replace(first_segment=begin - start, first_chunk=begin, digests=digests))

    def compared(self, result: Compared) -> None:
        """Handle the comparison of held small files. A result of an earlier epoch is ignored."""
        if result.epoch != self._queue.epoch:
            return
        for files in as_ranges(result.equal):
            self._leave_small_files(result.part, files)
        for files in as_ranges(result.different):
            self._need_files(result.part, files)

    def withdraw(self, file_id: int) -> None:
        """Leave out a file that is withdrawn."""
        part = self._manifest.part_of_file(file_id)
        if part is None:
            return
        self._verifier.forget(file_id)
        self._counters.files -= 1
        self._counters.size_bytes -= part.size_bytes(file_id)
        if part.is_large(file_id):
            self._queue.withdraw(part.chunks_of(file_id))
        else:
            self._leave_small_files(part, range(file_id, file_id + 1))

    def _offered(self, files: m.FileRange) -> range:
        """Return a range of files, all of which were offered. Raises RemoteProtocolError."""
        end = files.first_file_id + files.files
        if end > self._manifest.files:
            raise RemoteProtocolError(f"the receiver answers file {end - 1}, which was not offered")
        return range(files.first_file_id, end)

    def _check(self, part: Part, file_id: int, first: int, end: int) -> None:
        """Check that a file has the segments [first, end)."""
        segments = part.grid(file_id).segments
        if not first < end <= segments:
            raise RemoteProtocolError(
                f"the receiver answers segments {first} to {end - 1} of file {file_id}, which has {segments}"
            )

    def _need_files(self, part: Part, files: range) -> None:
        for file_id in part.large_files(files):
            chunks = part.chunks_of(file_id)
            self._queue.need(chunks.start, chunks.stop)
        self._bundles_ready(part, part.need(files))

    def _leave(self, files: m.FileRange) -> int:
        """Mark files as done that stay at the receiver as they are; return the bytes of those not answered before."""
        file_ids, new_bytes = self._offered(files), 0
        for part in self._manifest.parts_of(file_ids):
            for file_id in part.large_files(file_ids):
                new_bytes += self._leave_large_file(part, file_id)
            new_bytes += self._leave_small_files(part, file_ids)
            if new_bytes and self._manifest.is_single:
                # It may have been sent, to a receiver that was restarted after the commit: a tree begins anew then.
                self._queue.digests.leave_out(range(part.first_chunk, part.end_chunk))
        return new_bytes

    def _leave_large_file(self, part: Part, file_id: int) -> int:
        chunks = part.chunks_of(file_id)
        new = self._queue.hold(chunks.start, chunks.stop)
        for start, stop in new:
            self._queue.mark_done(range(start, stop), self._queue.epoch)
        return part.size_bytes(file_id) if new else 0

    def _leave_small_files(self, part: Part, files: range) -> int:
        unanswered_bytes, ready = part.do_without(files)
        self._bundles_ready(part, ready)
        return unanswered_bytes

    def _bundles_ready(self, part: Part, chunk_ids: list[int]) -> None:
        """Queue the bundles that an answer has made ready. A bundle that carries nothing is done."""
        for chunk_id in chunk_ids:
            # Nearly always no file is withdrawn: then the segments, which are made anew, need not be looked at.
            if self._manifest.carried(chunk_id) if self._manifest.withdrawn else part.is_carrying(chunk_id):
                self._queue.need(chunk_id, chunk_id + 1)
            elif self._queue.hold(chunk_id, chunk_id + 1):
                self._queue.mark_done((chunk_id,), self._queue.epoch)
