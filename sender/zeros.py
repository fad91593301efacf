"""The coordinator's handling of whole chunks of zeros: told to the receiver by range, and done when it repeats them.

A data connection finds them (`network.chunk_sender`), and takes them out of the queue. What was told on a control
connection that is lost is told again on the next one, unless the receiver says by then that it knows.
"""

import itertools
from collections import deque
from collections.abc import Iterator

from filestreamer.telemetry.counters import TransferCounters
from filestreamer.wire import limits
from filestreamer.wire import messages as m
from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import WHOLE, Share
from filestreamer.wire.sockets.control_link import ControlLink
from sender.dispatch.manifest import FoundZeros, Manifest
from sender.dispatch.part import Part
from sender.dispatch.send_queue import SendQueue


class Zeros:
    """Tells zeros, and counts them. For the coordinator's thread."""

    def __init__(self, manifest: Manifest, queue: SendQueue, counters: TransferCounters, link: ControlLink) -> None:
        self._manifest = manifest
        self._queue = queue
        self._counters = counters
        self._link = link
        self._waiting: deque[m.SegmentRange] = deque()
        """Found, and not told on this control connection; in order."""
        self._told: deque[m.SegmentRange] = deque()
        """Told on this control connection, and not known to be done; in order."""

    def take(self, event: FoundZeros) -> None:
        """Handle chunks that a connection has found to be zeros."""
        part = self._manifest.part_of_file(event.file_id)
        if event.epoch != self._queue.epoch or part is None:
            return
        base = part.chunk_of(event.file_id, 0)
        self._waiting.extend(m.SegmentRange(event.file_id, first - base, end - first) for first, end in event.chunks)

    def tell(self) -> None:
        """Tell what waits, if the receiver has the entry by now on this control connection."""
        while self._link.channel is not None and self._link.state in ("manifest", "moving"):
            some = list(itertools.takewhile(self._is_listed, itertools.islice(self._waiting, limits.RANGES_PER_NEEDED)))
            if not some:
                return
            for each in some:
                self._waiting.popleft()
                self._told.append(each)
            self._link.say(m.Zeros(tuple(some)))

    def _is_listed(self, segments: m.SegmentRange) -> bool:
        part = self._manifest.part_of_file(segments.file_id)
        return part is None or part.is_sent

    def begin_offer(self) -> None:
        """Begin with another control connection: tell again what may not have arrived."""
        self._drop_done()
        self._waiting.extendleft(reversed(self._told))
        self._told.clear()

    def start_over(self) -> None:
        """Forget everything: another incarnation of the receiver answers anew."""
        self._waiting.clear()
        self._told.clear()
        self._counters.zero_bytes = 0

    def take_known(self, message: m.Zeros) -> None:
        """Handle what the receiver knows to be zeros. Raises RemoteProtocolError where it was not told."""
        for file_id, first, count in message.segments:
            part = self._manifest.part_of_file(file_id)
            if part is None:
                continue
            if not (part.is_large(file_id) and first + count <= part.grid(file_id).segments):
                raise RemoteProtocolError(f"the receiver takes segments of file {file_id} for zeros that it has not")
            base, share = part.chunk_of(file_id, 0), part.share(file_id)
            for begin, end in _own_runs(share, first, first + count):
                for start, stop in self._queue.zeros_arrived(base + begin, base + end):
                    self._counters.zero_bytes += self._bytes(part, file_id, start, stop)
        self._drop_done()

    def _drop_done(self) -> None:
        """Drop what was told first, as far as it is done."""
        while self._told and not self._is_told(self._told[0]):
            self._told.popleft()

    def _is_told(self, segments: m.SegmentRange) -> bool:
        part = self._manifest.part_of_file(segments.file_id)
        return part is not None and self._queue.is_told(part.chunk_of(segments.file_id, segments.first_segment))

    def uncount(self, file_id: int) -> None:
        """Count the zeros of a file no longer: it is withdrawn, or some of it is to be sent again."""
        self._counters.zero_bytes -= self._zero_bytes(file_id)

    def count_again(self, file_id: int) -> None:
        """Count the zeros that a file has by now."""
        self._counters.zero_bytes += self._zero_bytes(file_id)

    def _zero_bytes(self, file_id: int) -> int:
        part = self._manifest.part_of_file(file_id)
        if part is None or not part.is_large(file_id):
            return 0
        chunks = part.chunks_of(file_id)
        runs = self._queue.zeros(chunks.start, chunks.stop)
        return sum(self._bytes(part, file_id, start, stop) for start, stop in runs)

    def _bytes(self, part: Part, file_id: int, start: int, stop: int) -> int:
        """Return the bytes of these ordinals of a file: of a single file those of a share, of a tree all chunks."""
        share, base = self._queue.share, part.chunk_of(file_id, 0)
        return share.bytes_between(part.grid(file_id), start - base, stop - base)


def _own_runs(share: Share, first: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of those of the segments [first, end) that this shard of a tree sends."""
    if share is WHOLE:
        yield first, end
        return
    for ordinal in share.ordinals(first, end):
        yield share.chunk(ordinal), share.chunk(ordinal) + 1
