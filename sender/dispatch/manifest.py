"""What is sent, part by part: entries as they were found, the chunks they make, and what each is still to carry.

A part is what one ManifestPart lists. It is cut by itself (`wire.layout`), answered, sent, settled, and then let go:
of a million files, a few thousand are here at a time. The coordinator adds parts, takes answers, and lets go; data
connections read what the chunk that they were dealt carries, and withdraw files that they can't read.
"""

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from filestreamer.wire.errors import RemoteProtocolError
from filestreamer.wire.grid import Grid, hole_segments
from filestreamer.wire.layout import Layout
from filestreamer.wire.messages import EntryType, ManifestPart, Segment, SkipKind
from sender.source.item import Item
from sender.source.stream import Stream

_NONE: Final = 0
"""It has no segment, or several, which are chunks of their own."""
_UNANSWERED: Final = 1
_COMPARING: Final = 2
_TO_SEND: Final = 3
_THERE: Final = 4
_SENT: Final = (_TO_SEND, _NONE)


class Part:
    """The entries of one ManifestPart, and their chunks. All ids count over the transfer."""

    def __init__(
        self, first_file_id: int, first_chunk: int, items: Sequence[Item], chunk_size: int, *, last: bool
    ) -> None:
        self.first_file_id = first_file_id
        self.first_chunk = first_chunk
        self.items = items
        self.last = last
        self.layout = Layout(chunk_size)
        self._sizes = [item.sent_bytes for item in items]
        for size in self._sizes:
            self.layout.add(size)
        self.forget_answers()
        self.chunks = self.layout.chunks
        self.end_chunk = first_chunk + self.chunks
        self.end_file_id = first_file_id + len(items)
        self.bytes = sum(self._sizes) - sum(
            self._hole_bytes(index) for index, item in enumerate(items) if item.entry.holes
        )
        """Bytes of its segments, but for those that lie in holes."""
        self.unanswered_chunks = self.open_chunks = self.chunks
        """Chunks that are not answered, and not settled: the deal counts them."""
        self.is_sent = False
        self.withdrawn_before = 0
        """How many files the receiver was told to be withdrawn, on this control connection, when this was sent."""

    def forget_answers(self) -> None:
        """Begin with no answer to any small file."""
        self._states = bytearray(len(self.items))
        self._unready: dict[int, int] = {}
        """Of each bundle, by chunk id: its files that are not answered, or not compared yet."""
        for index, size in enumerate(self._sizes):
            if 0 < size <= self.layout.chunk_size:
                chunk_id = self.first_chunk + self.layout.chunk_of(index, 0)
                is_hole = self.items[index].entry.holes[:1] == ((0, size),)
                self._states[index] = _THERE if is_hole else _UNANSWERED
                self._unready[chunk_id] = self._unready.get(chunk_id, 0) + (not is_hole)

    @property
    def message(self) -> ManifestPart:
        """What is said of it."""
        return ManifestPart(self.first_file_id, tuple(item.entry for item in self.items), self.last)

    @property
    def is_done(self) -> bool:
        """Whether the receiver has been told of it and nothing of it is open any more."""
        return self.is_sent and not self.open_chunks

    def holds(self, file_id: int) -> bool:
        """Whether an entry is in this part."""
        return self.first_file_id <= file_id < self.end_file_id

    def item(self, file_id: int) -> Item:
        """Return one entry."""
        return self.items[file_id - self.first_file_id]

    def grid(self, file_id: int) -> Grid:
        """Return the segments of one file."""
        return self.layout.grid(file_id - self.first_file_id)

    def is_large(self, file_id: int) -> bool:
        """Whether a file has several segments, which are chunks of their own."""
        return self._sizes[file_id - self.first_file_id] > self.layout.chunk_size

    def with_segments(self, files: range) -> list[int]:
        """Return those of these files that are in this part and have segments."""
        first = self.first_file_id
        inner = range(max(files.start, first), min(files.stop, self.end_file_id))
        return [file_id for file_id in inner if self._sizes[file_id - first]]

    def chunk_of(self, file_id: int, segment: int) -> int:
        """Return which chunk carries a segment of a file."""
        return self.first_chunk + self.layout.chunk_of(file_id - self.first_file_id, segment)

    def chunks_of(self, file_id: int) -> range:
        """Return the chunks of a large file."""
        first = self.chunk_of(file_id, 0)
        return range(first, first + self.grid(file_id).segments)

    def hole_chunks(self) -> Iterator[int]:
        """Yield the chunks that lie in holes entirely: nobody answers or sends them."""
        yield from (chunk_id for chunk_id, unready in self._unready.items() if not unready)
        for index, item in enumerate(self.items):
            if item.entry.holes and self._sizes[index] > self.layout.chunk_size:
                base = self.chunk_of(self.first_file_id + index, 0)
                for first, end in hole_segments(self.layout.grid(index), item.entry.holes):
                    yield from range(base + first, base + end)

    def payload_bytes(self, file_id: int) -> int:
        """Return the bytes of a file's segments, but for those that lie in holes."""
        return self._sizes[file_id - self.first_file_id] - self._hole_bytes(file_id - self.first_file_id)

    def _hole_bytes(self, index: int) -> int:
        grid = self.layout.grid(index)
        return sum(grid.bytes_between(*run) for run in hole_segments(grid, self.items[index].entry.holes))

    def is_bundle(self, chunk_id: int) -> bool:
        """Whether a chunk carries small files."""
        return chunk_id in self._unready

    def carried(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return what a chunk carries, in order, as far as its answers say."""
        base, states = self.first_file_id, self._states
        segments = self.layout.segments(chunk_id - self.first_chunk)
        return tuple([Segment(base + at, offset, size) for at, offset, size in segments if states[at] in _SENT])

    # --- the answers for small files

    def needs(self, file_id: int) -> int | None:
        """Take an answer: a small file is to be sent. Return its chunk where that is ready by now."""
        return self._answer(file_id, _TO_SEND)

    def has(self, file_id: int) -> int | None:
        """Take an answer: a small file is there. Return its chunk where that is ready by now."""
        return self._answer(file_id, _THERE)

    def compares(self, file_id: int) -> bool:
        """Take an answer: a small file is to be compared; whether that is new."""
        index = file_id - self.first_file_id
        is_new = self._states[index] == _UNANSWERED
        if is_new:
            self._states[index] = _COMPARING
        return is_new

    def is_answered(self, file_id: int) -> bool:
        """Whether a small file was answered."""
        return self._states[file_id - self.first_file_id] != _UNANSWERED

    def _answer(self, file_id: int, state: int) -> int | None:
        index = file_id - self.first_file_id
        if self._states[index] not in (_UNANSWERED, _COMPARING):
            return None
        self._states[index] = state
        chunk_id = self.chunk_of(file_id, 0)
        self._unready[chunk_id] -= 1
        return None if self._unready[chunk_id] else chunk_id


class StreamPart(Part):
    """The one part of a stream: its chunks are those that were read by now."""

    def __init__(self, item: Item, stream: Stream) -> None:
        super().__init__(0, 0, [item], stream.chunk_size, last=True)
        self._stream = stream

    def grow(self) -> None:
        """Take in what was read since."""
        self.bytes, self.chunks = self._stream.size, self._stream.chunks
        self.end_chunk = self.chunks

    def grid(self, file_id: int) -> Grid:
        """Return the segments so far."""
        del file_id
        return Grid(self.bytes, self.layout.chunk_size)

    def is_large(self, file_id: int) -> bool:
        """Each segment is a chunk."""
        del file_id
        return True

    def chunk_of(self, file_id: int, segment: int) -> int:
        """Segments are numbered as chunks are."""
        del file_id
        return segment

    def carried(self, chunk_id: int) -> tuple[Segment, ...]:
        """Return the segment of a chunk."""
        return self._stream.segments(chunk_id)


class Manifest:
    """The parts that are not let go. The lock protects the lists."""

    def __init__(self, chunk_size: int) -> None:
        self.chunk_size = chunk_size
        self.chunks = 0
        """Number of chunks so far."""
        self.files = 0
        """Number of entries so far."""
        self.is_listed = False
        """Whether the last part is here, and a stream has ended."""
        self._lock = threading.Lock()
        self._parts: list[Part] = []
        self._first_chunks: list[int] = []
        self._first_files: list[int] = []
        self._withdrawn: set[int] = set()
        """Files that can't be sent after all, of which the receiver may have to be told again."""
        self._told: deque[int] = deque()
        """Those of them that were said on this control connection and not heard for sure, in that order."""
        self.told = 0
        """How many were said on this control connection."""
        self._heard: set[int] = set()
        """Those that the receiver knows of."""
        self._untold: set[int] = set()
        """Those of them that the coordinator has not heard of yet."""
        self.lost_groups: dict[int, SkipKind] = {}
        """Hard-link groups of which the first name, whose bytes are sent for all, was withdrawn, and why."""

    def add(self, items: Sequence[Item], *, last: bool) -> Part:
        """Append a part."""
        stream = items[0].stream if items else None
        if stream is not None:
            part: Part = StreamPart(items[0], stream)
        else:
            part = Part(self.files, self.chunks, items, self.chunk_size, last=last)
        with self._lock:
            self._parts.append(part)
            self._first_chunks.append(part.first_chunk)
            self._first_files.append(part.first_file_id)
        self.chunks += part.chunks
        self.files += len(items)
        self.is_listed = last and stream is None
        return part

    def grow(self, part: StreamPart, *, is_whole: bool) -> None:
        """Take in what was read of a stream; `is_whole` once nothing follows."""
        part.grow()
        self.chunks = part.end_chunk
        self.is_listed = is_whole

    @property
    def parts(self) -> list[Part]:
        """The parts that are here, in order."""
        with self._lock:
            return list(self._parts)

    def part_of_chunk(self, chunk_id: int) -> Part:
        """Return the part that a chunk is in, which was not let go."""
        part = self._find_chunk(chunk_id)
        assert part is not None
        return part

    def _find_chunk(self, chunk_id: int) -> Part | None:
        with self._lock:
            at = bisect_right(self._first_chunks, chunk_id) - 1
            return self._parts[at] if at >= 0 else None

    def part_of_file(self, file_id: int) -> Part | None:
        """Return the part that an entry is in; None where that was let go. Raises RemoteProtocolError where none is."""
        if file_id >= self.files:
            raise RemoteProtocolError(f"the receiver answers file {file_id}, which was not offered")
        with self._lock:
            at = bisect_right(self._first_files, file_id) - 1
            return self._parts[at] if at >= 0 else None

    def let_go(self) -> int:
        """Forget the first parts that are done; return how many. The last part stays: nothing grows with it."""
        count = 0
        with self._lock:
            while len(self._parts) > 1 and self._parts[0].is_done:
                if any(map(self._parts[0].holds, self._untold)):
                    break
                self._parts.pop(0)
                del self._first_chunks[0], self._first_files[0]
                count += 1
            if count:
                self._forget_withdrawn()
        return count

    def _forget_withdrawn(self) -> None:
        """Forget what was withdrawn of parts that were let go, where the receiver knows of it."""
        for file_id in [file_id for file_id in self._heard if file_id < self._first_files[0]]:
            self._heard.discard(file_id)
            self._withdrawn.discard(file_id)

    @property
    def is_single(self) -> bool:
        """Whether this is one file in the destination itself: to the protocol no tree, wherever it was found."""
        part = self.parts[0]
        if self.files > 1 or not part.last or not part.items:
            return False
        entry = part.items[0].entry
        return entry.type is EntryType.FILE and b"/" not in entry.path

    # --- what data connections ask

    def carried(self, chunk_id: int) -> list[tuple[Segment, Item]]:
        """Return what a chunk is to carry now, and of which entries: what is there, or withdrawn, is left out.

        So a chunk that waited to be dealt when its file was withdrawn carries nothing, even if its part was let go.
        """
        part = self._find_chunk(chunk_id)
        if part is None:
            return []
        segments = part.carried(chunk_id)
        if self._withdrawn:
            segments = tuple([segment for segment in segments if segment.file_id not in self._withdrawn])
        return [(segment, part.item(segment.file_id)) for segment in segments]

    def is_bundle(self, chunk_id: int) -> bool:
        """Whether a chunk carries small files."""
        part = self._find_chunk(chunk_id)
        return part is not None and part.is_bundle(chunk_id)

    def withdraw(self, file_id: int) -> bool:
        """Leave a file out from now on; whether that is new. Its part stays until `told_withdrawn`."""
        with self._lock:
            was_let_go = file_id < self._first_files[0]  # it is settled, and the receiver knows
            is_new = file_id not in self._withdrawn and not was_let_go
            if is_new:
                self._withdrawn.add(file_id)
                self._untold.add(file_id)
            return is_new

    def told_withdrawn(self, file_id: int) -> None:
        """Hear that the coordinator, and through it the receiver, knows that a file is left out."""
        with self._lock:
            self._untold.discard(file_id)

    @property
    def is_all_told(self) -> bool:
        """Whether the coordinator knows of every file that is left out."""
        return not self._untold

    def withdrawn_between(self, first: int, end: int) -> list[int]:
        """Return the files [first, end) that are left out, and of which the receiver may not know."""
        with self._lock:
            if len(self._withdrawn) < end - first:
                return sorted(file_id for file_id in self._withdrawn if first <= file_id < end)
            return [file_id for file_id in range(first, end) if file_id in self._withdrawn]

    def tell_withdrawn(self, file_ids: Sequence[int]) -> None:
        """Note that these were said on this control connection."""
        with self._lock:
            self._told.extend(file_ids)
            self.told += len(file_ids)

    def tell_again(self) -> None:
        """Begin with another control connection: nothing was said on it."""
        with self._lock:
            self._told.clear()
            self.told = 0
            for part in self._parts:
                part.is_sent = False

    def hear_answer(self, file_id: int) -> None:
        """Take notice of an answer: the receiver knows all that was said before the part that it answers."""
        part = self.part_of_file(file_id)
        if part is None or not part.is_sent:
            return
        with self._lock:
            heard = part.withdrawn_before - (self.told - len(self._told))
            for _ in range(heard):
                self._heard.add(self._told.popleft())
            if heard > 0:
                self._forget_withdrawn()

    def is_withdrawn(self, file_id: int) -> bool:
        """Whether a file is left out."""
        return file_id in self._withdrawn
