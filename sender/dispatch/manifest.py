"""The parts of the manifest that are under way.

The coordinator adds a part, offers it, takes in the receiver's answers, and drops the part once all of its chunks are
done. So of a million files a few thousand are in memory at a time. Data connections ask here what a chunk carries, and
withdraw files that they can't read.
"""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.messages import Segment
from filestreamer.wire.tree_shares import TreeShares
from sender.dispatch.part import Part, StreamPart
from sender.dispatch.withdrawn_files import WithdrawnFiles
from sender.mailbox import Event
from sender.source.item import Item, Unsendable
from sender.source.stream import Stream


class Withdrew(Event):
    """A file of a tree was withdrawn: it can't be sent as it was listed."""

    file_id: int
    error: Unsendable


class FoundZeros(Event):
    """Chunks of a large file are zeros, and were taken out of the queue to be told (`send_queue`)."""

    file_id: int
    chunks: list[tuple[int, int]]
    """Ranges [first, end); of a shard, its own."""
    epoch: int


class Manifest:
    """The parts that were added and not dropped, in order. The coordinator adds and drops; any thread may ask."""

    def __init__(self, chunk_size: int, shares: TreeShares | None = None) -> None:
        """`shares`: what is this shard's of a tree."""
        self.chunk_size = chunk_size
        self.shares = shares
        self.chunks = 0
        """Number of chunks so far."""
        self.files = 0
        """Number of entries so far."""
        self.is_listed = False
        """Whether the last part was added and, where that is a stream, the stream has ended."""
        self.stream: Stream | None = None
        """The stream that is all of the manifest, if so."""
        self.withdrawn = WithdrawnFiles()
        self._mutex = threading.Lock()  # protects the lists below, which are as long as each other
        self._parts: list[Part] = []
        self._first_chunks: list[int] = []
        self._first_files: list[int] = []

    def add(self, items: Sequence[Item], *, last: bool) -> Part:
        """Append a part."""
        stream = items[0].stream if items else None
        if stream is not None:
            part: Part = StreamPart(items[0], stream)
            self.stream = stream
        else:
            part = Part(self.files, self.chunks, items, self.chunk_size, last=last, shares=self.shares)
        with self._mutex:
            self._parts.append(part)
            self._first_chunks.append(part.first_chunk)
            self._first_files.append(part.first_file_id)
        self.chunks += part.chunks
        self.files += len(items)
        self.is_listed = last and stream is None
        return part

    def grow(self, part: StreamPart, *, is_whole: bool) -> None:
        """Add the chunks of a stream that were read since; `is_whole` when the stream has ended."""
        part.grow()
        self.chunks = part.end_chunk
        self.is_listed = is_whole

    @property
    def parts(self) -> list[Part]:
        """The parts that are here, in order."""
        with self._mutex:
            return list(self._parts)

    def parts_of(self, files: range) -> list[Part]:
        """Return the parts that are here and list any of these files, in order."""
        with self._mutex:
            first = max(0, bisect_right(self._first_files, files.start) - 1)
            return self._parts[first : bisect_left(self._first_files, files.stop)]

    def part_of_chunk(self, chunk_id: int) -> Part:
        """Return the part that a chunk is in, which was not dropped."""
        part = self._find_chunk(chunk_id)
        assert part is not None
        return part

    def _find_chunk(self, chunk_id: int) -> Part | None:
        with self._mutex:
            at = bisect_right(self._first_chunks, chunk_id) - 1
            return self._parts[at] if at >= 0 else None

    def part_of_file(self, file_id: int) -> Part | None:
        """Return the part of an entry; None if it was dropped. Raises RemoteProtocolError for an unknown file_id."""
        if file_id >= self.files:
            raise RemoteProtocolError(f"the receiver answers file {file_id}, which was not offered")
        with self._mutex:
            at = bisect_right(self._first_files, file_id) - 1
            return self._parts[at] if at >= 0 else None

    def drop_done_parts(self) -> int:
        """Drop the first parts, as far as they are done; return how many. The last part of all stays."""
        count = 0
        with self._mutex:
            while len(self._parts) > 1 and self._parts[0].is_done and self.withdrawn.drop_part(self._parts[0].files):
                del self._parts[0], self._first_chunks[0], self._first_files[0]
                count += 1
        return count

    @property
    def is_single(self) -> bool:
        """Whether this is one file, or a stream, in the destination itself: the protocol does not call that a tree."""
        if self.files != 1 or self.shares is not None:  # asked for each file of a tree
            return False
        part = self.parts[0]
        return part.last and bool(part.items) and part.items[0].entry.is_no_tree

    # --- what data connections ask

    def carried(self, chunk_id: int) -> list[tuple[Segment, Item]]:
        """Return the segments that a chunk carries now, each with its entry: files that are withdrawn are left out.

        So a chunk that was waiting in the queue when its file was withdrawn carries nothing, even if its part was
        dropped since.
        """
        part = self._find_chunk(chunk_id)
        if part is None:
            return []
        segments = part.carried(chunk_id)
        if self.withdrawn:
            segments = tuple([segment for segment in segments if segment.file_id not in self.withdrawn])
        items, first = part.items, part.first_file_id
        return [(segment, items[segment.file_id - first]) for segment in segments]

    def is_bundle(self, chunk_id: int) -> bool:
        """Whether a chunk carries small files."""
        part = self._find_chunk(chunk_id)
        return part is not None and part.is_bundle(chunk_id)

    def end_of_run(self, chunk_id: int, file_id: int) -> int:
        """Return the end of the chunks that may follow one that carries this file in a run (`Part.end_of_run`)."""
        part = self._find_chunk(chunk_id)
        return part.end_of_run(chunk_id, file_id) if part is not None else chunk_id + 1

    def withdraw(self, file_id: int, error: Unsendable) -> Withdrew | None:
        """Withdraw a file that can't be sent as listed. Return the event to post; None if it was withdrawn before.

        Raises `error` if the file is the only one.
        """
        if self.is_single:
            raise error
        return Withdrew(file_id, error) if self.withdrawn.add(file_id) else None

    # --- the control connection

    def begin_offer(self) -> None:
        """Begin with another control connection, on which no part and no Withdrawn was sent yet."""
        self.withdrawn.say_again()
        for part in self.parts:
            part.is_sent = False

    def take_answer(self, file_id: int) -> None:
        """Note an answer for a file: the receiver has every message that was sent before the part of that file."""
        part = self.part_of_file(file_id)
        if part is not None and part.is_sent:
            self.withdrawn.arrived(part.withdrawn_before)
